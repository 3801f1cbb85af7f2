"""How a server listens, whom it lets in, and what it takes."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from rockbed.config import number_problems, whole_problems
from rockbed.cores import cores
from rockbed.errors import InvalidConfig
from rockbed.server.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of a Daemon.

    listen, admin_listen: "HOST:PORT" (port 0: any that is free) or "unix:/path/of/a/socket". With admin_listen, calls
    that take the role admin are answered there only. insecure: whether to listen where others than this machine reach
    it although it is not encrypted, or lets everyone in. tls_cert, tls_key: PEM files, read again when they change;
    tls_client_ca: PEM file; only clients with a certificate of that authority get in. tokens: a file (access.py).
    workers: threads that serve; queue_max: requests that may wait for one; streams_max: streams open at a time.
    checkpoints, exports: directories that clients may have copies written into, by name. metrics_listen: "HOST:PORT"
    where Prometheus finds metrics, on any address, for they hold no rows; None = nowhere.
    """

    listen: str = "127.0.0.1:7400"
    admin_listen: str | None = None
    insecure: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: Path | None = None
    workers: int = field(default_factory=lambda: 2 * cores() + 2)
    queue_max: int = 256
    streams_max: int = 64
    limits: Limits = field(default_factory=Limits)
    checkpoints: Path | None = None
    exports: Path | None = None
    metrics_listen: str | None = None

    def __post_init__(self) -> None:
        problems = [
            *whole_problems("workers", self.workers, 1, 1024),
            *whole_problems("queue_max", self.queue_max, 0, 1 << 20),
            *whole_problems("streams_max", self.streams_max, 1, 1024),
            *whole_problems("message_bytes_max", self.limits.message_bytes_max, 1 << 16, (1 << 31) - 1),
            *whole_problems("push_bytes_max", self.limits.push_bytes_max, 1 << 16, 1 << 40),
            *whole_problems("keys_max", self.limits.keys_max, 1, 1 << 31),
            *whole_problems("kept_bytes_max", self.limits.kept_bytes_max, 0, 1 << 40),
            *whole_problems("shared_bytes_max", self.limits.shared_bytes_max, 0, 1 << 40),
            *number_problems("kept_s", self.limits.kept_s, above=0, most=86_400),
            *self._tls_problems(),
            *self._listen_problems("listen", self.listen),
        ]
        if self.admin_listen is not None:
            problems += self._listen_problems("admin_listen", self.admin_listen)
        if self.metrics_listen is not None and not _is_address(self.metrics_listen):
            problems.append(f"metrics_listen is {self.metrics_listen!r}, not HOST:PORT")
        for name in ("checkpoints", "exports"):
            path = getattr(self, name)
            if path is not None and not path.is_dir():
                problems.append(f"{name} is {str(path)!r}, which is no directory: create it first")
        if self.tokens is not None and not self.tokens.is_file():
            problems.append(f"tokens is {str(self.tokens)!r}, which is no file")
        if problems:
            raise InvalidConfig("server: " + "; ".join(problems))

    def _tls_problems(self) -> list[str]:
        problems = []
        if (self.tls_cert is None) != (self.tls_key is None):
            problems.append("tls_cert and tls_key belong together: give both, or none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            problems.append("tls_client_ca is given without tls_cert: a server without TLS sees no certificates")
        for name in ("tls_cert", "tls_key", "tls_client_ca"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                problems.append(f"{name} is {str(path)!r}, which is no file")
        return problems

    def _listen_problems(self, name: str, listen: str) -> list[str]:
        if listen.startswith("unix:"):
            return [] if len(listen) > len("unix:") else [f"{name} is 'unix:' without a path"]
        if not _is_address(listen):
            return [f"{name} is {listen!r}, not HOST:PORT or unix:/path"]
        if self.insecure or _is_loopback(listen.rpartition(":")[0].strip("[]")):
            return []
        lacks = []
        if self.tls_cert is None:
            lacks.append("without encryption (tls_cert, tls_key)")
        if self.tokens is None and self.tls_client_ca is None:
            lacks.append("letting everyone in (tokens, tls_client_ca)")
        return lacks and [
            f"{name} is {listen!r}, which others than this machine can reach, {' and '.join(lacks)}: give what is "
            "lacking, listen on 127.0.0.1, or say --insecure where the network itself keeps others out"
        ]

    def target(self, listen: str, port: int) -> str:
        """What a client on this machine gives to PyStorage for an address of this server."""
        if listen.startswith("unix:"):
            return "grpc+unix://" + listen.removeprefix("unix:")
        scheme = "grpc" if self.tls_cert is None else "grpcs"
        return f"{scheme}://{listen.rpartition(':')[0]}:{port}"


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and int(port) <= 65_535


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
