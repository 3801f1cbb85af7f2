"""A server over the wire: what it refuses and how it says so, requests that are applied once, restarts."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from rockbed import (
    Connection,
    InvalidConfig,
    PyStorage,
    ServerUnavailable,
    StorageClosed,
    StoreExists,
)
from rockbed.config import StoreConfig
from rockbed.errors import all_errors
from rockbed.server import exporting
from rockbed.server.daemon import Daemon
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.engine import Engine
from rockbed.server.group import Group
from rockbed.server.limits import Limits
from rockbed.server.scanning import Rows, scan
from rockbed.v1 import admin_pb2, admin_pb2_grpc, embedding_pb2, embedding_pb2_grpc
from rockbed.wire import CODE_KEY
from tests.api.helpers import embedding, keys_of, ones, sgd
from tests.server.served import Connect, Server, refused
from tests.waiting import until

NOT_LOOPBACK = ["0.0.0.0:7400", "10.0.0.1:80", "[::]:7400", "example.com:7400", "127.example.com:7400"]


@pytest.fixture
def channel(server: Server, connect: Connect) -> Iterator[grpc.Channel]:
    """To a server that has group 0, dim 4, with rows for keys 0 to 9."""
    target = server.start(limits=Limits(message_bytes_max=1 << 16, keys_max=1_000))
    embedding(connect(target)).apply_gradients(np.arange(10), ones(10))
    with grpc.insecure_channel(target.removeprefix("grpc://")) as channel:
        yield channel


def _keys(*keys: int) -> bytes:
    return np.array(keys, "<i8").tobytes()


# --- what a client that nobody here wrote may send ---

LOOKUPS = [
    (embedding_pb2.LookupRequest(group=0, keys=b"1234567"), "INVALID_ARGUMENT", "wrong_shape", "7 bytes"),
    (embedding_pb2.LookupRequest(group=9, keys=_keys(1)), "NOT_FOUND", "unknown_group", "known: 0"),
    (embedding_pb2.LookupRequest(group=1 << 20, keys=_keys(1)), "NOT_FOUND", "unknown_group", "1048576"),
    (embedding_pb2.LookupRequest(keys=bytes(8 * 1_001)), "INVALID_ARGUMENT", "limit_exceeded", "keys_max is 1000"),
    (embedding_pb2.LookupRequest(keys=_keys(1), precision=5), "INVALID_ARGUMENT", "invalid_config", "precision 5"),  # type: ignore[arg-type,unused-ignore]
]


@pytest.mark.parametrize(("request_", "status", "code", "said"), LOOKUPS)
def test_a_bad_lookup_is_refused_by_a_standard_status_and_a_code(
    channel: grpc.Channel, request_: Any, status: str, code: str, said: str
) -> None:
    found = refused(embedding_pb2_grpc.EmbeddingStub(channel).Lookup, request_)
    assert (found[0].name, found[1]) == (status, code)
    assert said in found[2]


def _push(*shares: dict[str, Any], **request: Any) -> Any:
    return embedding_pb2.ApplyGradientsRequest(
        groups=[embedding_pb2.GroupGradients(**{"keys": _keys(1), "gradients": bytes(16), **s}) for s in shares],
        **request,
    )


PUSHES = [
    (_push({"gradients": bytes(15)}), "dim_mismatch", "15 bytes for 1 keys of dim 4"),
    (_push({"keys": b"123"}), "wrong_shape", "3 bytes"),
    (_push({}, {}), "wrong_shape", "once"),
    (_push({"group": 3}), "unknown_group", "group 3"),
    (_push({"gradients": np.full(4, np.nan, "<f4").tobytes()}), "gradient_not_finite", "NaN"),
    (_push({"global_step": 3}), "invalid_config", "by row"),
    (_push({}, client_id="a"), "invalid_config", "request_number 0"),
    (_push({}, request_number=1), "invalid_config", "client_id"),
    (_push({}, client_id="a" * 256, request_number=1), "invalid_config", "1 to 255 bytes"),
    (_push({}, client_id="a", request_number=2**63), "invalid_config", "2^63"),
    (_push({"keys": bytes(8 * 1_001)}), "limit_exceeded", "keys_max"),
]


@pytest.mark.parametrize(("request_", "code", "said"), PUSHES)
def test_a_bad_push_is_refused_and_changes_nothing(
    server: Server, channel: grpc.Channel, request_: Any, code: str, said: str
) -> None:
    before = server.engine.journal.last_lsn
    found = refused(embedding_pb2_grpc.EmbeddingStub(channel).ApplyGradients, request_)
    assert found[1] == code
    assert said in found[2]
    assert server.engine.journal.last_lsn == before


CONFIGS = [
    "",
    "[]",
    "{",
    "{}",
    '{"group": 1}',
    '{"group": 1, "dim": 4, "optimizer": 3, "initializer": {"name": "zeros"}}',
]
CONFIGS += ['{"group": 1, "dim": "4", "optimizer": {"name": "sgd"}, "initializer": {"name": "zeros"}}']
CONFIGS += ['{"group": 1, "dim": 4, "optimizer": {"name": "sgd"}, "initializer": {"name": "zeros"}, "colour": 3}']
CONFIGS += ['{"group": 1, "dim": 4, "optimizer": {"name": "sgd", "gamma": {}}, "initializer": {"name": "zeros"}}']
CONFIGS += ['{"group": 1, "dim": 4, "optimizer": {"name": "sgd"}, "initializer": {"name": []}}']


@pytest.mark.parametrize("config", CONFIGS)
def test_a_bad_config_is_refused_as_one(channel: grpc.Channel, config: str) -> None:
    stub = admin_pb2_grpc.AdminStub(channel)
    status, code, _ = refused(stub.CreateGroup, admin_pb2.CreateGroupRequest(config_json=config))
    assert (status.name, code) in {("INVALID_ARGUMENT", "invalid_config"), ("INVALID_ARGUMENT", "unknown_name")}
    # for a group that is not there, that may be what is said
    assert refused(stub.AlterGroup, admin_pb2.AlterGroupRequest(config_json=config))[1] in {code, "unknown_group"}


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/tmp/x", "a/b", ".hidden", "a\0b", "x" * 129, "ä"])
def test_copies_have_names_and_no_paths(server: Server, channel: grpc.Channel, name: str) -> None:
    stub = admin_pb2_grpc.AdminStub(channel)
    before = sorted(server.folder.iterdir())
    for call, request in (
        (stub.Checkpoint, admin_pb2.CheckpointRequest(name=name)),
        (stub.Dump, admin_pb2.DumpRequest(name=name)),
        (lambda request: next(stub.Export(request)), admin_pb2.ExportRequest(name=name, format="npz")),
        (lambda request: next(stub.Import(request)), admin_pb2.ImportRequest(name=name, mode="replace")),
    ):
        assert refused(call, request)[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_config")
    assert sorted(server.folder.iterdir()) == before


def test_a_precision_that_is_unknown_makes_no_rows(server: Server, channel: grpc.Channel) -> None:
    before = server.engine.groups[0].counters.rows
    request = embedding_pb2.LookupRequest(keys=_keys(70, 71), train=True, precision=9)  # type: ignore[arg-type,unused-ignore]
    assert refused(embedding_pb2_grpc.EmbeddingStub(channel).Lookup, request)[1] == "invalid_config"
    assert server.engine.groups[0].counters.rows == before


def test_more_rows_than_an_answer_holds_are_not_told(channel: grpc.Channel) -> None:
    stub = admin_pb2_grpc.AdminStub(channel)
    found = refused(stub.GetRows, admin_pb2.GetRowsRequest(group=0, keys=bytes(8 * 900)))
    assert found[1] == "limit_exceeded"


def test_an_empty_request_drops_no_group(channel: grpc.Channel) -> None:
    found = refused(admin_pb2_grpc.AdminStub(channel).DropGroup, admin_pb2.DropGroupRequest())
    assert found[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_config")


def test_an_export_whose_client_has_gone_ends_and_leaves_nothing(
    server: Server, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rockbed.audit")

    def endless(engine: Engine, group: Group) -> Iterator[Rows]:
        rows = next(scan(engine, group))
        while True:
            yield rows

    monkeypatch.setattr(exporting, "scan", endless)
    call = admin_pb2_grpc.AdminStub(channel).Export(admin_pb2.ExportRequest(name="export", format="npz"))
    assert next(call).rows_seen == 10
    (worker,) = (thread for thread in threading.enumerate() if thread.name == "rockbed-long-call")
    call.cancel()
    worker.join(30)
    assert not worker.is_alive()
    assert [path.name for path in server.folder.iterdir()] == ["store"]
    until(lambda: "given up, the caller is gone" in caplog.messages[-1])


def test_random_bytes_at_every_method_change_nothing(server: Server, channel: grpc.Channel) -> None:
    chance = random.Random(5)
    before = server.engine.journal.last_lsn, set(server.engine.groups), server.engine.groups[0].counters.rows
    methods = [
        f"/{service.full_name}/{name}"
        for file in (embedding_pb2, admin_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for name in service.methods_by_name
        if name not in ("Flush", "Check", "Compact")  # they take nothing, and unknown fields are allowed
    ]
    assert len(methods) >= 14
    for method in methods:
        streams = method.endswith("Stream")
        for _ in range(60):
            data = chance.randbytes(chance.choice([1, 2, 5, 20, 300]))
            call: Any = channel.stream_stream(method) if streams else channel.unary_stream(method)
            try:
                list(call(iter([data]) if streams else data))
            except grpc.RpcError as error:
                found: Any = error
                assert found.code() is not grpc.StatusCode.UNKNOWN, (method, data)
                assert dict(found.trailing_metadata()).get(CODE_KEY) != "server_error", (method, data, found.details())
    after = server.engine.journal.last_lsn, set(server.engine.groups), server.engine.groups[0].counters.rows
    assert after == before


def test_every_error_has_a_class_that_the_client_can_build() -> None:
    for code, cls in all_errors().items():
        assert cls(f"what {code} says").args == (f"what {code} says",)


# --- limits, and the client's ways with them ---


def test_a_lookup_larger_than_the_server_takes_is_split(server: Server, connect: Connect) -> None:
    rows = embedding(connect(server.start(limits=Limits(keys_max=100), workers=2), in_flight=3))
    keys = np.random.default_rng(1).permutation(1_234)
    for start in range(0, 1_234, 100):
        part = keys[start : start + 100]
        rows.apply_gradients(part, np.repeat(part[:, None], 4, axis=1).astype(np.float32))
    np.testing.assert_array_equal(rows.lookup(keys)[:, 0], -0.5 * keys)
    assert rows.lookup(np.empty(0, np.int64)).shape == (0, 4)


def test_lookups_together_are_sent_in_messages_that_the_server_takes(server: Server, connect: Connect) -> None:
    storage = connect(server.start(limits=Limits(message_bytes_max=1 << 16, keys_max=500)))
    tables = [embedding(storage, dim, dim) for dim in (2, 40, 7)]
    for table in tables:
        table.apply_gradients(np.arange(100), ones(100, table.dim))
    items = [
        (table, np.arange(n)) for table, n in zip(tables * 3, (400, 90, 450, 2_000, 3, 0, 80, 500, 1), strict=True)
    ]
    for (table, keys), got in zip(items, storage.lookup(items, train=False), strict=True):
        np.testing.assert_array_equal(got, table.lookup(keys, train=False))


def test_each_of_several_lookups_says_whether_it_trains(server: Server, channel: grpc.Channel) -> None:
    before = server.engine.groups[0].counters.rows
    many = channel.unary_unary("/rockbed.v1.Embedding/LookupMany")
    lookups = [
        embedding_pb2.LookupRequest(keys=_keys(key), train=train)
        for key, train in ((9_001, False), (9_002, True), (9_003, False), (9_004, True))
    ]
    answer = embedding_pb2.LookupManyResponse.FromString(
        many(embedding_pb2.LookupManyRequest(lookups=lookups).SerializeToString())
    )
    assert len(answer.lookups) == 4
    assert server.engine.groups[0].counters.rows == before + 2


def test_lookups_together_that_cannot_be_make_no_rows(server: Server, channel: grpc.Channel) -> None:
    before = server.engine.groups[0].counters.rows
    good = embedding_pb2.LookupRequest(keys=_keys(70, 71), train=True)
    many = channel.unary_unary("/rockbed.v1.Embedding/LookupMany")
    for bad, code in (
        (embedding_pb2.LookupRequest(group=9, keys=_keys(1)), "unknown_group"),
        (embedding_pb2.LookupRequest(keys=bytes(8 * 999)), "limit_exceeded"),
        (embedding_pb2.LookupRequest(keys=_keys(1), precision=9), "invalid_config"),  # type: ignore[arg-type,unused-ignore]
    ):
        request = embedding_pb2.LookupManyRequest(lookups=[good, bad]).SerializeToString()
        assert refused(many, request)[1] == code
    assert server.engine.groups[0].counters.rows == before


def test_a_message_beyond_the_limit_is_refused_by_name(server: Server, channel: grpc.Channel) -> None:
    status, _, _ = refused(
        embedding_pb2_grpc.EmbeddingStub(channel).Lookup, embedding_pb2.LookupRequest(keys=bytes(1 << 17))
    )
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_answer_beyond_the_limit_is_refused_before_it_is_made(
    server: Server, connect: Connect, channel: grpc.Channel
) -> None:
    embedding(connect(f"{server.daemon.target}"), 100, group=1)  # type: ignore[union-attr]
    request = embedding_pb2.LookupRequest(group=1, keys=bytes(8 * 999))
    assert refused(embedding_pb2_grpc.EmbeddingStub(channel).Lookup, request)[1] == "limit_exceeded"


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_on_the_wire_is_within_its_stated_error(
    server: Server, connect: Connect, precision: str
) -> None:
    target = server.start()
    exact, half = (embedding(connect(target, precision=p), optimizer=sgd(1.0)) for p in ("float32", precision))
    values = np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)
    exact.apply_gradients(np.arange(50), values)
    relative = 2.0**-11 if precision == "float16" else 2.0**-8
    np.testing.assert_allclose(half.lookup(np.arange(50)), -values, rtol=relative, atol=2.0**-25)
    half.apply_gradients(np.arange(50, 100), values)
    got = exact.lookup(np.arange(50, 100))
    np.testing.assert_allclose(got, -values, rtol=relative, atol=2.0**-25)
    assert not np.array_equal(got, -values)


def test_both_streams_answer_in_order(server: Server, channel: grpc.Channel) -> None:
    stub = embedding_pb2_grpc.EmbeddingStub(channel)
    pushes = (_push({"keys": _keys(k), "gradients": np.full(4, k, "<f4").tobytes()}) for k in range(20, 30))
    assert [answer.applied for answer in stub.ApplyGradientsStream(pushes)] == [True] * 10
    lookups = (embedding_pb2.LookupRequest(keys=_keys(k)) for k in range(20, 30))
    got = [np.frombuffer(answer.weights, "<f4")[0] for answer in stub.LookupStream(lookups)]
    assert got == [-0.5 * k for k in range(20, 30)]


def test_prefetch_brings_cold_rows_into_memory_and_makes_none(tmp_path: Path) -> None:
    with PyStorage(tmp_path / "store", write_back_interval=3600, memory_budget=1 << 16) as storage:
        rows = embedding(storage)
        for start in range(0, 2_000, 100):
            rows.apply_gradients(np.arange(start, start + 100), ones(100))
    engine = Engine(tmp_path / "store", StoreConfig(write_back_interval_s=3600, memory_budget=1 << 20))
    daemon = Daemon(engine, ServerConfig(listen="127.0.0.1:0"))
    try:
        with grpc.insecure_channel(daemon.target.removeprefix("grpc://")) as channel:
            stub = embedding_pb2_grpc.EmbeddingStub(channel)
            answer = stub.Prefetch(embedding_pb2.PrefetchRequest(keys=_keys(1, 2, 3, 3, 7_000)))
        assert (answer.in_memory, answer.absent) == (3, 1)
        counters = engine.groups[0].counters
        assert (counters.rows, counters.inserts, counters.misses, counters.lookup_keys) == (2_000, 0, 0, 0)
        assert engine.groups[0].table.count == 3
    finally:
        daemon.stop(0)
        engine.close()


# --- where a server listens ---


@pytest.mark.parametrize("listen", NOT_LOOPBACK)
def test_an_address_that_others_can_reach_must_be_asked_for_by_name(listen: str) -> None:
    with pytest.raises(InvalidConfig, match=r"without encryption .*--insecure"):
        ServerConfig(listen=listen)
    assert ServerConfig(listen=listen, insecure=True).listen == listen


def test_every_problem_of_a_server_config_is_said_at_once(tmp_path: Path) -> None:
    limits = Limits(keys_max=0, kept_bytes_max=-1, kept_s=0, shared_bytes_max=-2)
    with pytest.raises(InvalidConfig) as caught:
        ServerConfig(listen="7400", workers=0, limits=limits, checkpoints=tmp_path / "none")
    for said in (
        "listen is '7400'",
        "workers is 0",
        "keys_max is 0",
        "kept_bytes_max is -1",
        "kept_s is 0",
        "shared_bytes_max is -2",
        "create it",
    ):
        assert said in str(caught.value)


def test_a_port_that_is_taken_is_said(server: Server) -> None:
    target = server.start()
    with pytest.raises(ServerUnavailable, match=r"cannot listen on .*Is another server there"):
        Daemon(server.engine, ServerConfig(listen=target.removeprefix("grpc://")))


def test_a_unix_socket_serves_too(server: Server, connect: Connect, tmp_path: Path) -> None:
    target = server.start(listen=f"unix:{tmp_path}/socket")
    assert target == f"grpc+unix://{tmp_path}/socket"
    embedding(connect(target)).apply_gradients(keys_of(3), ones(1))


@pytest.mark.parametrize("target", ["grpc://", "grpc://host", "grpc://host:0", "grpc://:7400", "grpc://a/b:1"])
def test_a_target_that_names_no_server_is_said(target: str) -> None:
    with pytest.raises(InvalidConfig, match="names no server: give grpc://HOST:PORT"):
        PyStorage(target)


def test_settings_go_to_where_they_mean_something(server: Server, tmp_path: Path) -> None:
    target = server.start()
    with pytest.raises(InvalidConfig, match="has its own settings: ttl, memory_budget, clock cannot be given"):
        PyStorage(target, ttl=3, memory_budget=1 << 20, clock=lambda: 0.0)
    with pytest.raises(InvalidConfig, match="is a directory: a connection is for"):
        PyStorage(tmp_path / "other", connection=Connection())
    with pytest.raises(InvalidConfig, match=r"deadline_s is 0.*retry_s is -1.*in_flight is 0.*precision is 'int8'"):
        Connection(deadline_s=0, retry_s=-1, in_flight=0, precision="int8")


def test_nobody_there_is_said_after_the_time_to_try(connect: Connect) -> None:
    with pytest.raises(ServerUnavailable, match=r"cannot be reached .*is the server running"):
        connect("grpc://127.0.0.1:1", retry_s=0.3)


def test_a_closed_connection_says_so(server: Server, connect: Connect) -> None:
    storage = connect(server.start())
    rows = embedding(storage)
    storage.close()
    storage.close()
    for call in (storage.stats, storage.flush, lambda: rows.lookup(keys_of(1))):
        with pytest.raises(StorageClosed, match=r"the connection to grpc://.* is closed"):
            call()


# --- groups ---


def test_a_group_is_altered_while_it_is_used(server: Server, connect: Connect, channel: grpc.Channel) -> None:
    assert server.daemon is not None
    rows = embedding(connect(server.daemon.target))
    stub = admin_pb2_grpc.AdminStub(channel)
    (group,) = stub.ListGroups(admin_pb2.ListGroupsRequest()).groups
    changed = group.config_json.replace('"gamma": 0.5', '"gamma": 2.0')
    assert changed != group.config_json
    assert '"gamma": 2.0' in stub.AlterGroup(admin_pb2.AlterGroupRequest(config_json=changed)).config_json
    rows.apply_gradients(keys_of(77), ones(1))
    assert rows.lookup(keys_of(77))[0, 0] == -2.0
    other = changed.replace('"dim": 4', '"dim": 8')
    assert refused(stub.AlterGroup, admin_pb2.AlterGroupRequest(config_json=other))[1] == "dim_mismatch"
    unknown = changed.replace('"group": 0', '"group": 5')
    assert refused(stub.AlterGroup, admin_pb2.AlterGroupRequest(config_json=unknown))[1] == "unknown_group"


def test_a_checkpoint_is_written_once_under_its_name(server: Server, connect: Connect) -> None:
    storage = connect(server.start())
    embedding(storage).apply_gradients(keys_of(1), ones(1))
    storage.checkpoint("monday")
    with pytest.raises(StoreExists):
        storage.checkpoint("monday")
    with pytest.raises(InvalidConfig, match="on a server a copy has a name"):
        storage.checkpoint("a/tuesday")
    PyStorage.restore(server.folder / "monday", server.folder / "again")
    with PyStorage(server.folder / "again") as again:
        assert embedding(again).lookup(keys_of(1), train=False)[0, 0] == -0.5
