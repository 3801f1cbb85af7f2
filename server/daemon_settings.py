"""The settings of `rockbed serve`: from a file, the environment and flags, each by the same name.

`memory_budget` is a key of the TOML file, ROCKBED_MEMORY_BUDGET in the environment, and the flag --memory-budget.
"""

# ruff: noqa: RUF009 - `_setting` is dataclasses.field

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rockbed.config import StoreConfig, number_problems
from rockbed.errors import InvalidConfig
from rockbed.server.access import Tokens
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.limits import Limits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "ROCKBED_"
_STORE, _ADDRESS, _SECURITY, _LIMITS, _REST = "Store", "Addresses", "Security", "Limits", "Logs, metrics, copies"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
_UNITS["TI"] = 1 << 40
_SIZE = re.compile(r"(\d+) ?([KMGT]I?)?B?", re.IGNORECASE)
_OF_COMMANDS = ("server", "token")  # variables of the other commands, which take ROCKBED_DATA, too
# what Kubernetes sets in every pod for a Service whose name begins with rockbed
_OF_KUBERNETES = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)", re.ASCII
)


def _text(value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    raise ValueError("give a text")


def _path(value: Any) -> Path:
    return Path(_text(value))


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    found = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(str(value).lower())
    if found is None:
        raise ValueError("give true or false")
    return found


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        return int(value)
    raise ValueError("give a whole number")


def _bytes(value: Any) -> int:
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found:
        return int(found[1]) * _UNITS[(found[2] or "").upper()]
    try:
        return _whole(value)
    except ValueError:
        raise ValueError("give a number of bytes, as in 512MiB or 4GB") from None


def _seconds(value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("give a number of seconds") from None


def _level(value: Any) -> str:
    if str(value).upper() in ("DEBUG", "INFO", "WARNING", "ERROR"):
        return str(value).upper()
    raise ValueError("give debug, info, warning or error")


def _format(value: Any) -> str:
    if value in ("text", "json"):
        return str(value)
    raise ValueError("give text or json")


def _setting(read: Callable[[Any], Any], default: Any, panel: str, help_: str) -> Any:
    return field(default=default, metadata={"read": read, "panel": panel, "help": help_})


_S, _C, _L = StoreConfig(), ServerConfig(), Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One field a setting; metadata: read (from TOML's values and from text), panel and help."""

    data: Path | None = _setting(_path, None, _STORE, "The store's directory; a new one is made.")
    ttl: float = _setting(_seconds, _S.ttl_s, _STORE, "Seconds a row lives after it was last written; 0 = for ever.")
    memory_budget: int = _setting(_bytes, _S.memory_budget, _STORE, "Bytes of rows kept in memory.")
    block_cache_bytes: int = _setting(_bytes, _S.block_cache_bytes, _STORE, "RocksDB's cache of blocks, beside that.")
    fsync: str = _setting(_text, _S.fsync, _STORE, "When the journal is synced: never, interval or always.")
    fsync_interval: float = _setting(_seconds, _S.fsync_interval_s, _STORE, "Seconds between syncs, with interval.")
    write_back_interval: float = _setting(
        _seconds, _S.write_back_interval_s, _STORE, "Seconds until a changed row is in RocksDB."
    )
    journal_bytes_max: int = _setting(_bytes, _S.journal_bytes_max, _STORE, "Bytes of the journal; pushes wait at it.")
    sweep_rows_s: int = _setting(_whole, _S.sweep_rows_s, _STORE, "Rows a second looked at for expiry; 0 = none.")
    read_only: bool = _setting(_flag, False, _STORE, "Serve lookups only.")
    repair: bool = _setting(_flag, False, _STORE, "Open a store whose journal is damaged, up to the damage.")
    device: str | None = _setting(_text, None, _STORE, "cuda:0, say: keep hot rows in that GPU's memory.")
    device_memory: int | None = _setting(_bytes, None, _STORE, "Bytes of it for rows; 1 GiB if not given.")
    listen: str = _setting(_text, _C.listen, _ADDRESS, "HOST:PORT or unix:/path/of/a/socket.")
    admin_listen: str | None = _setting(_text, None, _ADDRESS, "Another address, for calls that take the role admin.")
    metrics_listen: str | None = _setting(_text, None, _ADDRESS, "HOST:PORT for Prometheus, on any address.")
    insecure: bool = _setting(
        _flag, False, _SECURITY, "Listen where others reach it although unencrypted, or open to everyone."
    )
    tls_cert: Path | None = _setting(_path, None, _SECURITY, "PEM file with the server's certificate.")
    tls_key: Path | None = _setting(_path, None, _SECURITY, "PEM file with its key.")
    tls_client_ca: Path | None = _setting(_path, None, _SECURITY, "PEM file: only clients it vouches for get in.")
    tokens: Path | None = _setting(_path, None, _SECURITY, "TOML file with tokens, their roles and groups.")
    workers: int | None = _setting(_whole, None, _LIMITS, "Threads that serve; two a core, and two, if not given.")
    queue_max: int = _setting(_whole, _C.queue_max, _LIMITS, "Requests that may wait for a thread; more are refused.")
    streams_max: int = _setting(_whole, _C.streams_max, _LIMITS, "Streams open at a time; more are refused.")
    message_bytes_max: int = _setting(_bytes, _L.message_bytes_max, _LIMITS, "Bytes of a request or an answer.")
    keys_max: int = _setting(_whole, _L.keys_max, _LIMITS, "Keys of a request.")
    push_bytes_max: int = _setting(_bytes, _L.push_bytes_max, _LIMITS, "Bytes of a push in several messages.")
    kept_bytes_max: int = _setting(_bytes, _L.kept_bytes_max, _LIMITS, "Bytes of batches kept between lookup and push.")
    kept_s: float = _setting(_seconds, _L.kept_s, _LIMITS, "Seconds that a batch is kept for its push.")
    shared_bytes_max: int = _setting(
        _bytes, _L.shared_bytes_max, _LIMITS, "Bytes of memory shared with clients on this machine; 0 = none."
    )
    drain: float = _setting(_seconds, 30.0, _LIMITS, "Seconds that calls under way have when the server is to end.")
    checkpoints: Path | None = _setting(_path, None, _REST, "Directory for checkpoints asked for by clients.")
    exports: Path | None = _setting(_path, None, _REST, "Directory for their dumps, exports and imports.")
    traces: bool = _setting(_flag, False, _REST, "Send OpenTelemetry traces; OTEL_* variables say where to.")
    log_format: str = _setting(_format, "text", _REST, "text, or json: one object a line.")
    log_level: str = _setting(_level, "INFO", _REST, "debug, info, warning or error.")

    def store(self) -> StoreConfig:
        """How the store is opened. Raises InvalidConfig."""
        return StoreConfig(
            ttl_s=self.ttl,
            memory_budget=self.memory_budget,
            block_cache_bytes=self.block_cache_bytes,
            fsync=self.fsync,
            fsync_interval_s=self.fsync_interval,
            write_back_interval_s=self.write_back_interval,
            journal_bytes_max=self.journal_bytes_max,
            sweep_rows_s=self.sweep_rows_s,
            read_only=self.read_only,
            repair=self.repair,
            device=self.device,
            device_memory=self.device_memory,
        )

    def server(self) -> ServerConfig:
        """How it is served. Raises InvalidConfig."""
        return ServerConfig(
            listen=self.listen,
            admin_listen=self.admin_listen,
            metrics_listen=self.metrics_listen,
            insecure=self.insecure,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            tls_client_ca=self.tls_client_ca,
            tokens=self.tokens,
            workers=_C.workers if self.workers is None else self.workers,
            queue_max=self.queue_max,
            streams_max=self.streams_max,
            limits=Limits(
                message_bytes_max=self.message_bytes_max,
                keys_max=self.keys_max,
                push_bytes_max=self.push_bytes_max,
                kept_bytes_max=self.kept_bytes_max,
                kept_s=self.kept_s,
                shared_bytes_max=self.shared_bytes_max,
            ),
            checkpoints=self.checkpoints,
            exports=self.exports,
        )


@dataclass(frozen=True, slots=True)
class Effective:
    """Settings, and where each comes from: "default", "file", "environment" or "flag"."""

    settings: Settings
    sources: dict[str, str]

    def to_toml(self) -> str:
        """A file that says the same, with a comment for each source."""
        width = max(len(each.name) for each in fields(Settings))
        lines = []
        for each in fields(Settings):
            value = getattr(self.settings, each.name)
            text = f"{each.name} = {_toml(value)}" if value is not None else f"# {each.name} is not given"
            lines.append(f"{text:<{width + 24}}  # {self.sources[each.name]}" if value is not None else text)
        return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def load(
    file: Path | None, environment: Mapping[str, str] = os.environ, flags: Mapping[str, Any] | None = None
) -> Effective:
    """The effective settings: a flag counts before the environment, that before the file, that before the default.

    flags: by name, None = not given. Raises InvalidConfig with every problem of all of them.
    """
    problems: list[str] = []
    known = {each.name: each.metadata["read"] for each in fields(Settings)}
    values: dict[str, Any] = {}
    sources = dict.fromkeys(known, "default")
    given = [("file", name, value, f"{name} in {file}") for name, value in _from_file(file, problems).items()]
    problems += unknown_variables(environment)
    variables = [(variable, variable.removeprefix(PREFIX).lower(), value) for variable, value in environment.items()]
    given += [("environment", name, value, variable) for variable, name, value in variables if _sets(variable, known)]
    flags = {name: value for name, value in (flags or {}).items() if value is not None}
    given += [("flag", name, value, "--" + name.replace("_", "-")) for name, value in flags.items()]
    for source, name, value, where in given:
        if name not in known:
            problems.append(f"{where} is unknown{_meant(name, known)}")
            continue
        try:
            values[name], sources[name] = known[name](value), source
        except ValueError as error:
            problems.append(f"{where} is {value!r}: {error}")
    settings = Settings(**values)
    problems += _problems(settings)
    if problems:
        raise InvalidConfig("settings:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return Effective(settings, sources)


def _from_file(file: Path | None, problems: list[str]) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        with file.open("rb") as opened:
            return tomllib.load(opened)
    except OSError as error:
        problems.append(f"{file} cannot be read: {error.strerror}")
    except ValueError as error:
        problems.append(f"{file} is not TOML: {error}")
    return {}


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """What is wrong with the names of Rockbed's variables; empty when nothing is."""
    known = [PREFIX + name.upper() for name in (*(each.name for each in fields(Settings)), *_OF_COMMANDS)]
    unknown = [
        f"{variable} is unknown{_meant(variable.upper(), known)}"
        for variable in environment
        if variable.startswith(PREFIX) and variable.upper() not in known
        if not _OF_KUBERNETES.fullmatch(variable.removeprefix(PREFIX))
    ]
    return [*unknown, f"the variables are {', '.join(known)}"] if unknown else []


def _sets(variable: str, known: Iterable[str]) -> bool:
    return variable.startswith(PREFIX) and variable.removeprefix(PREFIX).lower() in known


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.8)
    return f": did you mean {close[0]}?" if close else ""


def _problems(settings: Settings) -> list[str]:
    problems = []
    if settings.data is None:
        problems.append(f"data is not given: --data, {PREFIX}DATA, or data in the file says which directory to serve")
    problems += number_problems("drain", settings.drain, least=0, most=86_400)
    for make in (settings.store, settings.server):
        try:
            make()
        except InvalidConfig as error:
            problems += str(error).partition(": ")[2].split("; ")
    try:
        _read_files(settings)
    except InvalidConfig as error:
        problems.append(str(error))
    return problems


def _read_files(settings: Settings) -> None:
    """Raise InvalidConfig where the tokens or the certificate could not be used."""
    if settings.tokens is not None and settings.tokens.is_file():
        Tokens(settings.tokens)
    cert, key = settings.tls_cert, settings.tls_key
    if cert is not None and key is not None and cert.is_file() and key.is_file():
        from rockbed.server.daemon_tls import read_files  # with gRPC, which help on the options does not need

        read_files([cert, key])
