"""The server's end of TLS: certificates from files, read again when they change."""

import logging
import ssl
from pathlib import Path
from typing import Any

import grpc

from rockbed.errors import InvalidConfig
from rockbed.server.daemon_config import ServerConfig

_log = logging.getLogger("rockbed.server")


def credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """What TLS needs, None without it. Raises InvalidConfig where a file cannot be read, or is not PEM."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    files = [path for path in (config.tls_cert, config.tls_key, config.tls_client_ca) if path is not None]
    stamps = [_stamps(files)]
    first = read_files(files)

    def renewed() -> Any:
        # asked for each new connection: a certificate that was replaced is used without a restart
        now = _stamps(files)
        if now == stamps[0]:
            return None
        stamps[0] = now
        try:
            found = read_files(files)
        except InvalidConfig as error:
            _log.error("the certificate of before stays in use: %s", error)
            return None
        _log.info("read %s anew", config.tls_cert)
        return found

    return grpc.dynamic_ssl_server_credentials(
        first, renewed, require_client_authentication=config.tls_client_ca is not None
    )


def _stamps(files: list[Path]) -> list[int]:
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in files]


def read_files(files: list[Path]) -> Any:
    """What gRPC takes of a certificate, its key and, if it is there, the clients' authority. Raises InvalidConfig."""
    contents = []
    for path in files:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidConfig(f"{path} cannot be read: {error.strerror}") from None
        if b"-----BEGIN " not in content:
            raise InvalidConfig(f"{path} is not a PEM file: it begins no certificate and no key")
        contents.append(content)
    certificate, key, *authority = contents
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files[0], files[1])
    except ssl.SSLError as error:
        raise InvalidConfig(f"{files[1]} is not the key of {files[0]}, or one of them is damaged: {error}") from None
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authority[0] if authority else None)
