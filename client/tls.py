"""The files of an encrypted connection. Loads nothing that is slow to load."""

from dataclasses import dataclass
from pathlib import Path

from rockbed.errors import InvalidConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """For grpcs://: tls_ca is a PEM file with the authorities that may vouch for the server, None = those of the
    system; tls_cert and tls_key are PEM files by which the client shows who it is, where the server asks for that;
    tls_name is the name that the server's certificate must have, None = that of the target. Raises InvalidConfig."""

    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_name: str | None = None

    def __post_init__(self) -> None:
        problems = tls_problems(self)
        if problems:
            raise InvalidConfig("connection: " + "; ".join(problems))


def tls_problems(tls: Tls) -> list[str]:
    """What is wrong with the files named; empty when nothing is."""
    problems = []
    if (tls.tls_cert is None) != (tls.tls_key is None):
        problems.append("tls_cert and tls_key belong together: give both, or none")
    for name in ("tls_ca", "tls_cert", "tls_key"):
        path = getattr(tls, name)
        if path is not None and not Path(path).is_file():
            problems.append(f"{name} is {str(path)!r}, which is no file")
    return problems
