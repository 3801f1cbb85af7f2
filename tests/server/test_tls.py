"""Encrypted connections: certificates that hold, and those that do not."""

import datetime
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from rockbed import Connection, InvalidConfig, PyStorage, ServerUnavailable, TlsFailed
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.daemon_settings import load
from tests.api.helpers import embedding, keys_of, ones
from tests.server.served import Connect, Server

NAMES = ("localhost", "127.0.0.1")


def _files(folder: Path, authority: trustme.CA, *names: str, days: int = 30) -> dict[str, Any]:
    until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
    issued = authority.issue_cert(*names, not_after=until)
    folder.mkdir(exist_ok=True)
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    (folder / "key.pem").write_bytes(issued.private_key_pem.bytes())
    return {"tls_cert": folder / "cert.pem", "tls_key": folder / "key.pem"}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


@pytest.fixture
def served(authority: trustme.CA, tmp_path: Path) -> dict[str, Any]:
    return _files(tmp_path / "server", authority, *NAMES)


def test_rows_are_looked_up_and_pushed(server: Server, connect: Connect, served: dict[str, Any], ca: Path) -> None:
    target = server.start(**served)
    assert target.startswith("grpcs://127.0.0.1:")
    rows = embedding(connect(target, tls_ca=ca))
    rows.apply_gradients(keys_of(1), ones(1))
    assert rows.lookup(keys_of(1))[0, 0] == -0.5


def test_a_client_shows_who_it_is_or_stays_outside(
    server: Server, connect: Connect, served: dict[str, Any], ca: Path, authority: trustme.CA, tmp_path: Path
) -> None:
    target = server.start(**served, tls_client_ca=ca)
    own = _files(tmp_path / "client", authority, "trainer")
    connect(target, tls_ca=ca, **own).stats()
    with pytest.raises((TlsFailed, ServerUnavailable), match=r"certificate"):
        connect(target, tls_ca=ca, retry_s=0.2)
    strange = _files(tmp_path / "strange", trustme.CA(), "trainer")
    with pytest.raises((TlsFailed, ServerUnavailable), match=r"certificate"):
        connect(target, tls_ca=ca, retry_s=0.2, **strange)


def test_an_expired_certificate_fails_at_once(
    server: Server, connect: Connect, ca: Path, authority: trustme.CA, tmp_path: Path
) -> None:
    target = server.start(**_files(tmp_path / "old", authority, *NAMES, days=-1))
    with pytest.raises(TlsFailed, match=r"(?i)certificate.*expired.*its last day"):
        connect(target, tls_ca=ca, retry_s=1_000)


def test_a_certificate_of_another_name_or_authority_fails_at_once(
    server: Server, connect: Connect, ca: Path, authority: trustme.CA, tmp_path: Path
) -> None:
    target = server.start(**_files(tmp_path / "other", authority, "other.example"))
    with pytest.raises(TlsFailed):
        connect(target, tls_ca=ca, retry_s=1_000)
    connect(target, tls_ca=ca, tls_name="other.example").stats()
    trustme.CA().cert_pem.write_to_path(tmp_path / "strange.pem")
    with pytest.raises(TlsFailed, match="tls_ca"):
        connect(target, tls_ca=tmp_path / "strange.pem", tls_name="other.example", retry_s=1_000)


def test_a_plain_client_on_a_tls_port_and_the_reverse_are_told(
    server: Server, connect: Connect, served: dict[str, Any], ca: Path
) -> None:
    target = server.start(**served)
    with pytest.raises(ServerUnavailable, match=r"without TLS .with it: grpcs://"):
        connect(target.replace("grpcs://", "grpc://"), retry_s=0.3)
    connect(target, tls_ca=ca).stats()
    server.stop()
    plain = server.start()
    with pytest.raises(TlsFailed, match="speaks TLS at all"):
        connect(plain.replace("grpc://", "grpcs://"), tls_ca=ca, retry_s=1_000)


def test_a_renewed_certificate_is_used_without_a_restart(
    server: Server,
    connect: Connect,
    served: dict[str, Any],
    ca: Path,
    authority: trustme.CA,
    caplog: pytest.LogCaptureFixture,
) -> None:
    target = server.start(**served)
    before = connect(target, tls_ca=ca)
    serial = _serial(target, ca)
    _files(served["tls_cert"].parent, authority, *NAMES)
    assert _serial(target, ca) != serial
    before.stats()
    _files(served["tls_cert"].parent / "other", authority, *NAMES)
    (served["tls_cert"].parent / "other" / "key.pem").rename(served["tls_key"])
    connect(target, tls_ca=ca).stats()
    assert "is not the key of" in caplog.text


def _serial(target: str, ca: Path) -> str:
    host, _, port = target.removeprefix("grpcs://").rpartition(":")
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection((host, int(port)), timeout=10)
    with context.wrap_socket(raw, server_hostname=host) as wrapped:
        found = wrapped.getpeercert() or {}
        return str(found["serialNumber"])


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({"tls_key"}, "belong together"),
        ({"tls_cert", "tls_key"}, "tls_client_ca is given without tls_cert"),
    ],
)
def test_half_of_the_settings_is_not_enough(served: dict[str, Any], ca: Path, missing: set[str], said: str) -> None:
    given = {name: path for name, path in {**served, "tls_client_ca": ca}.items() if name not in missing}
    with pytest.raises(InvalidConfig, match=said):
        ServerConfig(**given)


def test_a_key_of_another_certificate_is_said_by_config_too(
    server: Server, served: dict[str, Any], authority: trustme.CA, tmp_path: Path
) -> None:
    other = _files(tmp_path / "other", authority, *NAMES)
    with pytest.raises(InvalidConfig, match=r"key.pem is not the key of .*cert.pem"):
        server.start(tls_cert=served["tls_cert"], tls_key=other["tls_key"])
    (tmp_path / "tokens.toml").write_text("[[token]]")
    flags = {"data": "x", "tls_cert": str(served["tls_cert"]), "tls_key": str(other["tls_key"])}
    with pytest.raises(InvalidConfig, match=r"(?s)is not the key of"):
        load(None, {}, flags)
    with pytest.raises(InvalidConfig, match=r"token 1"):
        load(None, {}, {"data": "x", "tokens": str(tmp_path / "tokens.toml")})


def test_files_that_hold_no_certificate_are_said(server: Server, served: dict[str, Any]) -> None:
    served["tls_cert"].write_text("no certificate")
    with pytest.raises(InvalidConfig, match=r"cert.pem is not a PEM file"):
        server.start(**served)
    with pytest.raises(InvalidConfig, match="which is no file"):
        ServerConfig(tls_cert=Path("/none"), tls_key=Path("/none"))


def test_encryption_alone_lets_everyone_in_and_must_be_asked_for(served: dict[str, Any], ca: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"letting everyone in"):
        ServerConfig(listen="0.0.0.0:7400", **served)
    assert ServerConfig(listen="0.0.0.0:7400", tls_client_ca=ca, **served).listen
    assert ServerConfig(listen="0.0.0.0:7400", insecure=True, **served).listen


def test_settings_of_tls_are_for_targets_with_tls(ca: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"tls_ca: grpc://127.0.0.1:1 is not encrypted"):
        PyStorage("grpc://127.0.0.1:1", connection=Connection(tls_ca=ca))
