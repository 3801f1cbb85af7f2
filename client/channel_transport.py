"""Channels to a server, encrypted or not. Loads nothing that is slow to load."""

from pathlib import Path
from typing import Any

import grpc

from rockbed.client.target import address
from rockbed.client.tls import Tls
from rockbed.errors import InvalidConfig, ServerUnavailable, TlsFailed

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # the server says what it sends
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # for how long one attempt may take, TLS and a far network included; a refused one ends at once all the same
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_ABOUT = {
    "grpc": ", and without TLS (with it: grpcs://HOST:PORT)",
    "grpcs": ", and does it want a certificate of the client's (tls_cert, tls_key)",
}
_TLS_WORDS = ("handshake failed", "certificate_verify", "verification check")


def open_channel(target: str, tls: Tls) -> Any:
    """A grpc.Channel to a server; target: what `address` takes. Raises InvalidConfig."""
    given = [n for n in ("tls_ca", "tls_cert", "tls_name") if getattr(tls, n) is not None]
    if not target.startswith("grpcs://"):
        if given:
            raise InvalidConfig(f"{', '.join(given)}: {target} is not encrypted; one with TLS is grpcs://HOST:PORT")
        return grpc.insecure_channel(address(target), _OPTIONS)
    files = (tls.tls_ca, tls.tls_key, tls.tls_cert)
    try:
        contents = [None if path is None else Path(path).read_bytes() for path in files]
    except OSError as error:
        raise InvalidConfig(f"{error.filename} cannot be read: {error.strerror}") from None
    name = () if tls.tls_name is None else (("grpc.ssl_target_name_override", tls.tls_name),)
    return grpc.secure_channel(address(target), grpc.ssl_channel_credentials(*contents), _OPTIONS + name)


def is_about_tls(failed: Any) -> bool:
    """Whether a call failed because no encrypted connection came about; trying again does not help then."""
    # gRPC has no status for it
    said = (failed.details() or "").lower()
    return failed.code() is grpc.StatusCode.UNAVAILABLE and any(words in said for words in _TLS_WORDS)


def not_reached(failed: Any, target: str) -> TlsFailed | ServerUnavailable:
    """Why a call did not reach its server."""
    said = failed.details() or "no details"
    if is_about_tls(failed):
        return TlsFailed(
            f"no encrypted connection to {target} ({said}): look at the server's certificate (its name, its "
            "last day, who signed it: tls_ca, tls_name), at the client's own (tls_cert), and whether the port "
            "speaks TLS at all"
        )
    hint = _ABOUT.get(target.partition("://")[0], "")
    return ServerUnavailable(f"{target} cannot be reached ({said}): is the server running there{hint}?")
