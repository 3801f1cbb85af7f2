"""Who may call what: roles, groups, ports."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from rockbed import Connection, InvalidConfig, PermissionDenied, PyStorage, Unauthenticated, UnknownGroup
from rockbed.server.access import Role
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.service_access import NEEDED
from rockbed.v1 import admin_pb2, embedding_pb2, embedding_pb2_grpc
from tests.api.helpers import embedding, engine_of, keys_of, ones
from tests.server.served import Connect, Server, refused
from tests.waiting import until

SECRETS = {role: f"the secret of {role}, long enough" for role in ("read", "train", "admin")}
BOUND = "a trainer's who has one group only"
METHODS = [
    (f"/{service.full_name}/{name}", name)
    for file in (embedding_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for name in service.methods_by_name
]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.toml"
    tables = [f'[[token]]\nname = "{role}er"\nrole = "{role}"\nsecret = "{text}"\n' for role, text in SECRETS.items()]
    tables += [f'[[token]]\nname = "bound-{r}"\nrole = "{r}"\nsecret = "{BOUND} {r}"\ngroups = [1]\n' for r in SECRETS]
    file.write_text("".join(tables))
    file.chmod(0o600)
    return file


@pytest.fixture
def target(server: Server, tokens: Path) -> str:
    return server.start(tokens=tokens)


@pytest.fixture
def channel(target: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(target.removeprefix("grpc://")) as channel:
        yield channel


def test_every_method_has_a_role() -> None:
    assert {name for _, name in METHODS} == set(NEEDED)


@pytest.mark.parametrize(
    "sent", [None, "", "Bearer ", "Bearer nobody's", SECRETS["admin"], "Basic " + SECRETS["admin"]]
)
@pytest.mark.parametrize(("method", "name"), METHODS)
def test_no_method_answers_without_a_token_that_is_known(
    server: Server, channel: grpc.Channel, method: str, name: str, sent: str | None
) -> None:
    metadata = () if sent is None else (("authorization", sent),)
    found = refused(channel.unary_unary(method), b"", metadata=metadata, timeout=10)
    assert found[:2] == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")
    assert server.engine.groups == {}


@pytest.mark.parametrize("role", ["read", "train"])
@pytest.mark.parametrize(("method", "name"), METHODS)
def test_no_method_answers_a_role_below_its_own(channel: grpc.Channel, method: str, name: str, role: str) -> None:
    call = channel.unary_unary(method)
    metadata = (("authorization", f"Bearer {SECRETS[role]}"),)
    if NEEDED[name] > Role[role.upper()]:
        found = refused(call, b"", metadata=metadata, timeout=10)
        assert found[:2] == (grpc.StatusCode.PERMISSION_DENIED, "permission_denied")
        assert repr(role) in found[2]
        return
    try:
        call(b"", metadata=metadata, timeout=10)
    except grpc.RpcError as error:
        said: Any = error
        assert said.code() is not grpc.StatusCode.PERMISSION_DENIED


def test_each_role_does_its_work(target: str, connect: Connect) -> None:
    trainer = connect(target, token=SECRETS["train"])
    rows = embedding(trainer)
    rows.apply_gradients(keys_of(1), ones(1))
    reader = connect(target, token=SECRETS["read"])
    served = embedding(reader)
    assert served.lookup(keys_of(1, 2), train=False)[:, 0].tolist() == [-0.5, 0]
    assert reader.stats()["rows"] == 1
    assert reader.get_rows(0, keys_of(1)).update_num[0] == 1
    for call in (
        lambda: served.lookup(keys_of(9)),
        lambda: served.apply_gradients(keys_of(1), ones(1)),
        lambda: embedding(reader, group=5),
        lambda: embedding(reader, clip_norm=1.0),
        trainer.flush,
        lambda: trainer.drop_group(0),
        trainer.shrink,
        lambda: trainer.put_rows(0, keys_of(1), ones(1)),
    ):
        with pytest.raises(PermissionDenied):
            call()
    assert list(reader.groups()) == [0]
    connect(target, token=SECRETS["admin"]).drop_group(0)


def test_a_token_with_groups_reaches_those_only(target: str, connect: Connect) -> None:
    everyone = connect(target, token=SECRETS["admin"])
    for group in (1, 2, "by name"):
        embedding(everyone, group=group).apply_gradients(keys_of(1), ones(1))
    bound = connect(target, token=f"{BOUND} admin")
    mine, other = embedding(bound, group=1), embedding(everyone, group=2)
    assert list(bound.groups()) == [1]
    assert list(bound.stats()["groups"]) == [1]
    mine.apply_gradients(keys_of(1), ones(1))
    assert bound.shrink(group=1, min_count=9).removed[1]["count"] == 1
    other.storage = bound
    for call in (
        lambda: other.lookup(keys_of(1)),
        lambda: bound.apply_gradients([(mine, keys_of(1), ones(1)), (other, keys_of(1), ones(1))]),
        lambda: bound.get_rows(2, keys_of(1)),
        lambda: bound.put_rows(2, keys_of(1), ones(1)),
        lambda: bound.drop_group(2),
        lambda: bound.shrink(group=2),
        bound.shrink,
        bound.flush,
        bound.check,
        lambda: bound.checkpoint("all"),
        lambda: bound.dump("all"),
        lambda: embedding(bound, group=2),
        lambda: embedding(bound, group=3),
        lambda: embedding(bound, group="by name"),
        lambda: embedding(bound, group="a new name"),
    ):
        with pytest.raises(PermissionDenied):
            call()
    assert other.config.group in everyone.groups()
    assert list(everyone.names()) == ["by name"]
    assert mine.lookup(keys_of(1), train=False)[0, 0] == 0.0


def test_a_withdrawn_token_ends_at_the_next_call(
    target: str, tokens: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rockbed.server.service_access._REFRESH_S", 0)
    storage = connect(target, token=SECRETS["train"])
    tokens.write_text('[[token]]\nname = "new"\nrole = "train"\nsecret = "one that came after"\n')
    with pytest.raises(Unauthenticated, match="does not know the token"):
        storage.stats()
    connect(target, token="one that came after").stats()


def test_a_client_without_a_token_is_told_how_to_give_one(target: str) -> None:
    with pytest.raises(Unauthenticated, match=r"connection=Connection\(token="):
        PyStorage(target)


def test_admin_calls_are_answered_on_their_own_port(server: Server, connect: Connect) -> None:
    target = server.start(admin_listen="127.0.0.1:0")
    assert server.daemon is not None
    assert server.daemon.admin_target != target
    trainer, operator = connect(target), connect(server.daemon.admin_target)
    embedding(trainer).apply_gradients(keys_of(1), ones(1))
    with pytest.raises(PermissionDenied, match="admin port only"):
        trainer.drop_group(0)
    assert operator.drop_group(0) == 1
    with pytest.raises(UnknownGroup):
        trainer.get_rows(0, keys_of(1))


def test_every_admin_call_leaves_a_line_and_a_refused_one_too(
    target: str, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rockbed.audit")
    operator = connect(target, token=SECRETS["admin"], client_id="shell")
    embedding(operator)
    operator.flush()
    operator.check()
    operator.shrink(min_norm=1)
    operator.put_rows(0, keys_of(1), ones(1))
    operator.drop_group(0)
    with pytest.raises(PermissionDenied):
        connect(target, token=SECRETS["read"]).flush()
    lines = [record.getMessage() for record in caplog.records]
    for said in ("create group 0", "flush", "check", "shrink", "put 1 rows into group 0", "drop group 0"):
        assert any(f"adminer shell: {said}" in line for line in lines), said
    assert any("refused Flush: 'reader' has the role 'read'" in line for line in lines)


def test_a_secret_is_in_no_repr() -> None:
    assert "hush" not in repr(Connection(token="hush hush hush hush"))


@pytest.mark.parametrize("token", ["", "zeile\n", "ä"])
def test_a_token_that_no_header_can_hold_is_refused(token: str) -> None:
    with pytest.raises(InvalidConfig, match="token"):
        Connection(token=token)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="tokens is"):
        ServerConfig(tokens=tmp_path / "none")


def test_lookups_on_a_stream_are_checked_one_by_one(target: str, channel: grpc.Channel, connect: Connect) -> None:
    embedding(connect(target, token=SECRETS["train"])).apply_gradients(keys_of(1), ones(1))
    stub = embedding_pb2_grpc.EmbeddingStub(channel)
    requests = (embedding_pb2.LookupRequest(keys=np.array([1]).tobytes(), train=train) for train in (False, True))
    answers = stub.LookupStream(requests, metadata=(("authorization", f"Bearer {SECRETS['read']}"),))
    assert np.frombuffer(next(answers).weights, "<f4")[0] == -0.5
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    failed: Any = caught.value
    assert failed.code() is grpc.StatusCode.PERMISSION_DENIED


def test_nobody_uses_up_the_request_numbers_of_another(target: str, connect: Connect) -> None:
    trainer, bound = connect(target, token=SECRETS["train"]), connect(target, token=f"{BOUND} train")
    rows, other = embedding(trainer), embedding(bound, group=1)
    other.apply_gradients(keys_of(1), ones(1), request=("trainer-1", 2**62))
    assert trainer.last_request("trainer-1") == 0
    rows.apply_gradients(keys_of(1), ones(1), request=("trainer-1", 1))
    rows.apply_gradients(keys_of(1), ones(1), request=("trainer-1", 1))
    assert rows.lookup(keys_of(1))[0, 0] == -0.5
    assert (trainer.last_request("trainer-1"), bound.last_request("trainer-1")) == (1, 2**62)


def test_opening_a_group_otherwise_takes_the_role_that_altering_it_takes(
    server: Server, target: str, connect: Connect, tokens: Path
) -> None:
    embedding(connect(target, token=SECRETS["train"]))
    server.stop()
    server.engine.close()
    server.engine = server.engine.reopened()
    again = server.start(tokens=tokens)
    with pytest.raises(PermissionDenied, match="change the settings of group 0"):
        embedding(connect(again, token=SECRETS["train"]), ttl=0.001)
    embedding(connect(again, token=SECRETS["admin"]), ttl=1e6)
    assert server.engine.groups[0].config.ttl_s == 1e6


def test_a_refusal_of_an_operator_leaves_a_line_with_who_asked(
    target: str, connect: Connect, channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rockbed.audit")
    embedding(connect(target, token=SECRETS["admin"]), group=2)
    with pytest.raises(PermissionDenied):
        connect(target, token=f"{BOUND} admin", client_id="shell").drop_group(2)
    refused(channel.unary_unary("/rockbed.v1.Admin/Flush"), b"", metadata=(("rockbed-client", "nobody"),))
    lines = [record.getMessage() for record in caplog.records if record.name == "rockbed.audit"]
    assert any("bound-admin shell: refused: 'bound-admin' may not use group 2" in line for line in lines)
    assert any("ipv4:127.0.0.1" in line and "nobody: refused Flush: the server wants a token" in line for line in lines)


def test_what_an_operator_does_leaves_a_line_before_and_one_with_how_it_ended(
    target: str, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rockbed.audit")
    storage = connect(target, token=SECRETS["admin"], client_id="shell")
    embedding(storage, group=2).lookup(keys_of(3))
    storage.shrink(group=2, min_count=1)
    storage.drop_group(2)
    with pytest.raises(UnknownGroup):
        storage.drop_group(2)

    def lines() -> list[str]:
        said = [record.getMessage() for record in caplog.records if record.name == "rockbed.audit"]
        return [line.partition(" shell: ")[2] for line in said]

    until(lambda: len(lines()) == 8)  # a stream's last one comes after its answer
    asked, ended = lines()[::2], lines()[1::2]
    assert [line.split()[0] for line in asked] == ["create", "shrink", "drop", "drop"]
    for before, after, outcome in zip(
        asked, ended, ["done in", "done in", "done in", "failed: UnknownGroup"], strict=True
    ):
        assert after.startswith(f"{before}: {outcome}")


def test_open_reflection_streams_are_bounded(server: Server) -> None:
    target = server.start()
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    closing = threading.Event()

    def silent() -> Iterator[bytes]:
        closing.wait()
        yield from ()

    with grpc.insecure_channel(target.removeprefix("grpc://")) as channel:
        streams = [channel.stream_stream(method)(silent()) for _ in range(200)]
        until(lambda: sum(stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED for stream in streams if stream.done()))
        stub = embedding_pb2_grpc.EmbeddingStub(channel)
        found = refused(stub.Lookup, embedding_pb2.LookupRequest(), timeout=10)
        assert found[1] == "unknown_group"
        closing.set()


def test_an_import_writes_to_the_groups_of_its_token_alone(
    server: Server, tokens: Path, tmp_path: Path, connect: Connect
) -> None:
    """Also where the export has another group's rows under a number that is the token's."""
    with PyStorage(tmp_path / "made") as made:
        embedding(made, 4, 40_000)
        config = dataclasses.replace(made.groups()[40_000], group=1, name="theirs")
        made.drop_group(40_000)
        rows = engine_of(made).open_group(config)
        made.put_rows(rows.number, keys_of(5), ones(1))
        made.export(tmp_path / "exports" / "made", format="npz")
    target = server.start(tokens=tokens, exports=tmp_path / "exports")
    theirs = embedding(connect(target, token=SECRETS["admin"]), 4, "theirs")
    with pytest.raises(UnknownGroup, match="no rows for group 1 of this store"):
        connect(target, token=f"{BOUND} admin").import_("made", groups=[1])
    assert server.engine.group(theirs.group).counters.rows == 0


def test_an_export_is_removed_by_a_token_of_its_groups_alone(
    server: Server, tokens: Path, tmp_path: Path, connect: Connect
) -> None:
    (tmp_path / "exports").mkdir()
    target = server.start(tokens=tokens, exports=tmp_path / "exports")
    operator, bound = connect(target, token=SECRETS["admin"]), connect(target, token=f"{BOUND} admin")
    for group in (1, 2):
        embedding(operator, group=group)
    reports = {
        name: operator.export(name, format="npz", groups=groups) for name, groups in (("own", [1]), ("all", [1, 2]))
    }
    with pytest.raises(PermissionDenied):
        bound.remove_export("all", reports["all"])
    bound.remove_export("own", reports["own"])
    with pytest.raises(PermissionDenied):
        connect(target, token=SECRETS["train"]).remove_export("all", reports["all"])
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["all"]
