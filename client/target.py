"""Where a server is, as users write it, and what cannot be given along with it."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import fields

from rockbed.config import StoreConfig
from rockbed.errors import InvalidConfig

_ADDRESS = re.compile(r"(?is)(grpcs?|(grpc\+)?unix|https?|tcp|dns|ipv[46]):.*|[\w.-]+:\d+|.*://.*")


def url(server: str) -> str:
    """The target for PyStorage of a server as it is typed: "host:port" and "unix:/path" stand for themselves, too."""
    if server.startswith(("grpc://", "grpcs://", "grpc+unix://")):
        return server
    return "grpc+unix://" + server.removeprefix("unix:") if server.startswith("unix:") else "grpc://" + server


def address(target: str) -> str:
    """gRPC's name of "grpc://host:port", "grpcs://host:port", "host:port", "grpc+unix:///path" or "unix:/path".

    Raises InvalidConfig.
    """
    if target.startswith(("grpc+unix://", "unix:")):
        return "unix:" + target.removeprefix("grpc+unix://").removeprefix("unix:")
    host, colon, port = target.removeprefix("grpc://").removeprefix("grpcs://").rpartition(":")
    if not host or not colon or not port.isdigit() or not 0 < int(port) < 65_536 or "/" in host:
        raise InvalidConfig(f"{target!r} names no server: give grpc://HOST:PORT, as in grpc://127.0.0.1:7400")
    return f"{host}:{port}"


def is_on_this_machine(target: str) -> bool:
    """Whether a server's address, without TLS, is one that only this machine has."""
    if not target.startswith("grpc://"):
        return target.startswith("grpc+unix://")
    host = target.removeprefix("grpc://").rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def must_be_directory(target: str | os.PathLike[str], connection: object) -> None:
    """Raise InvalidConfig for a directory that is opened with a connection, or for what looks like an address."""
    if connection is not None:
        raise InvalidConfig(f"{target} is a directory: a connection is for grpc://HOST:PORT")
    if isinstance(target, str) and _ADDRESS.fullmatch(target):
        raise InvalidConfig(
            f"{target!r} looks like an address: a server is grpc://HOST:PORT, with TLS grpcs://HOST:PORT, on a socket "
            "grpc+unix:///PATH (a directory of this name is pathlib.Path(...))"
        )


def must_be_default(target: str, config: StoreConfig, clock: Callable[[], float]) -> None:
    """Raise InvalidConfig for settings that were given to a client of a server."""
    default = StoreConfig()
    unlike = [f.name for f in fields(config) if getattr(config, f.name) != getattr(default, f.name)]
    changed = [name if name == "sweep_rows_s" else name.removesuffix("_s") for name in unlike]  # as they were given
    if clock is not time.time:
        changed.append("clock")
    if changed:
        raise InvalidConfig(
            f"{target} is a server, which has its own settings: {', '.join(changed)} cannot be given here"
        )
