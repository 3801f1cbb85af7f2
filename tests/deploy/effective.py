"""What `rockbed serve` makes of a configuration that is written for another machine."""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import trustme

from rockbed.server.daemon_settings import Settings, load

OF_THE_MACHINE = re.compile(r"/(?:var/lib|etc|run/secrets)(?=/)")  # where its paths begin


def effective(folder: Path, file: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings, with the machine's directories moved below folder, where those and the files named are made.

    Raises InvalidConfig with every problem, as `rockbed config` ends with.
    """
    moved = None
    if file is not None:
        moved = folder / "moved.toml"
        moved.write_text(OF_THE_MACHINE.sub(lambda at: f"{folder}{at[0]}", file.read_text()))
    variables = {
        name: OF_THE_MACHINE.sub(lambda at: f"{folder}{at[0]}", str(value))
        for name, value in (environment or {}).items()
    }
    texts = [*variables.values(), moved.read_text() if moved else ""]
    for path in re.findall(rf"{re.escape(str(folder))}/(?:var|etc|run)/[\w./-]+", " ".join(texts)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if "/var/lib/" in path:
            Path(path).mkdir(exist_ok=True)
        else:
            Path(path).write_bytes(_content(Path(path)))
    return load(moved, variables).settings


@lru_cache
def _issued() -> trustme.LeafCert:
    return trustme.CA().issue_cert("rockbed")


def _content(file: Path) -> bytes:
    """What a file of this name holds where it is used: the server reads its tokens and its certificate."""
    if "token" in file.name:
        return b'[[token]]\nname = "trainers"\nrole = "train"\nsecret = "sixteen characters"\n'
    if "key" in file.name:
        return _issued().private_key_pem.bytes()
    return _issued().cert_chain_pems[0].bytes()
