"""Fused batches at a server: what it refuses and how it says so, limits, tokens, answers that are lost."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from rockbed import BatchTooLarge, PermissionDenied, PyStorage, ServerError, UnknownHandle
from rockbed.requests import Request
from rockbed.server.limits import Limits
from rockbed.v1 import embedding_pb2 as pb
from rockbed.v1 import embedding_pb2_grpc
from tests.api.fused_batches import bags, gradients, looked_up
from tests.api.helpers import embedding, keys_of, sgd
from tests.server.served import Connect, Server, refused
from tests.server.test_exactly_once import LosesAnswers
from tests.waiting import until

SMALL = Limits(message_bytes_max=1 << 16, keys_max=1_000)
BATCH = [bags("a", 1, [1, 2], [], [3, 3]), bags("b", 2, [5], [6, 5], [], combiner=None)]


def _tables(storage: PyStorage) -> None:
    embedding(storage, 4, 1, optimizer=sgd(1.0))
    embedding(storage, 6, 2, optimizer=sgd(1.0))


def _push(storage: PyStorage, handle: bytes | None, request: Request | None = None) -> bool:
    pooled, sequences = gradients(storage, BATCH)
    return storage.backend.fused_apply_gradients(BATCH, handle, pooled, sequences, {}, request)


def _kept(storage: PyStorage) -> bytes:
    handle = looked_up(storage, BATCH, keep=True)[2]
    assert handle is not None
    return handle


# --- what a client that nobody here wrote may send ---


@pytest.fixture
def channel(server: Server, connect: Connect) -> Iterator[grpc.Channel]:
    """To a server that has group 1 of dim 4 and group 2 of dim 6."""
    target = server.start(limits=SMALL)
    _tables(connect(target))
    with grpc.insecure_channel(target.removeprefix("grpc://")) as channel:
        yield channel


def _keys(*keys: int) -> bytes:
    return np.array(keys, "<i8").tobytes()


def _lengths(*lengths: int) -> bytes:
    return np.array(lengths, "<u4").tobytes()


def _bags(**given: Any) -> Any:
    return pb.Bags(**{"name": "a", "group": 1, "keys": _keys(1, 2), "combiner": pb.MEAN, **given})


NAN = np.array([1, np.nan], "<f4").tobytes()
GOOD = _bags(name="good")
BAD_BATCHES = [
    ([_bags(keys=b"1234567")], "wrong_shape", "7 bytes"),
    ([_bags(lengths=b"12345")], "wrong_shape", "feature 'a': 5 bytes of lengths"),
    ([_bags(lengths=_lengths(1, 0))], "wrong_shape", "offsets run from 0 to 1, with 2 keys"),
    ([_bags(lengths=_lengths(2**32 - 1, 2**32 - 1))], "wrong_shape", "offsets run from 0 to 8589934590"),
    ([_bags(lengths=_lengths(1, 2), keys=b"")], "wrong_shape", "offsets"),
    ([_bags(weights=bytes(9))], "wrong_shape", "9 of weights"),
    ([_bags(weights=bytes(4))], "wrong_shape", "1 weights for 2 keys"),
    ([_bags(weights=NAN)], "invalid_config", "weights[1] is nan"),
    ([_bags(combiner=9)], "invalid_config", "combiner 9 is unknown"),
    ([_bags(combiner=pb.NONE, weights=bytes(8))], "invalid_config", "weights are for combining"),
    ([_bags(combiner=pb.NONE, default_key=3)], "invalid_config", "default_key is for bags"),
    ([_bags(max_norm=-1)], "invalid_config", "max_norm"),
    ([_bags(max_norm=float("nan"))], "invalid_config", "max_norm"),
    ([_bags(max_norm=float("inf"))], "invalid_config", "max_norm"),
    ([_bags(group=9)], "unknown_group", "known: 1, 2"),
    ([_bags(group=2**32 - 1)], "unknown_group", "4294967295"),
    ([_bags(name="b", lengths=_lengths(2))], "wrong_shape", "'good' has 2, 'b' has 1"),
    ([_bags(name="good", lengths=_lengths(2))], "wrong_shape", "'good' has 2, 'good' has 1"),
    ([_bags(keys=bytes(8 * 999))], "limit_exceeded", "keys_max is 1000"),
]


@pytest.mark.parametrize(("features", "code", "said"), BAD_BATCHES)
@pytest.mark.parametrize("method", ["FusedLookup", "FusedApplyGradients"])
def test_a_batch_that_cannot_be_makes_no_rows(
    server: Server, channel: grpc.Channel, method: str, features: list[Any], code: str, said: str
) -> None:
    stub = embedding_pb2_grpc.EmbeddingStub(channel)
    request: Any = (
        pb.FusedLookupRequest(features=[GOOD, *features], train=True, keep=True)
        if method == "FusedLookup"
        else pb.FusedApplyGradientsRequest(features=[GOOD, *features], pooled=bytes(4 * 2 * 8))
    )
    found = refused(getattr(stub, method), request)
    assert found[1] == code
    assert said in found[2]
    assert sum(group.counters.rows for group in server.engine.groups.values()) == 0
    assert server.engine.kept.statistics()["kept_batches"] == 0


def _push_of(**given: Any) -> Any:
    return pb.FusedApplyGradientsRequest(**{"features": [_bags()], "pooled": bytes(4 * 2 * 4), **given})


SEQUENCE = _bags(name="s", group=2, combiner=pb.NONE)
BAD_PUSHES = [
    (_push_of(pooled=bytes(31)), "dim_mismatch", "the pooled gradients are 31 bytes: send [2, 4] floats of 4 bytes"),
    (_push_of(pooled=b""), "dim_mismatch", "0 bytes"),
    (_push_of(precision=pb.FLOAT16), "dim_mismatch", "floats of 2 bytes, 16 bytes in all"),
    (_push_of(precision=7), "invalid_config", "precision 7"),
    (_push_of(sequences=[b""]), "wrong_shape", "gradients of 1 sequences for a batch that has 0"),
    (_push_of(features=[_bags(), SEQUENCE]), "wrong_shape", "gradients of 0 sequences for a batch that has 1"),
    (_push_of(features=[_bags(), SEQUENCE], sequences=[bytes(9)]), "dim_mismatch", "of sequence 0 are 9 bytes"),
    (_push_of(handle=bytes(16)), "invalid_config", "not both"),
    (_push_of(features=[], handle=bytes(16)), "unknown_handle", "push the batch itself"),
    (_push_of(features=[], handle=b""), "unknown_handle", "push the batch itself"),
    (_push_of(global_steps={5: 1}), "invalid_config", "names group 5"),
    (_push_of(global_steps={1: 1}), "invalid_config", "by row"),
    (_push_of(pooled=np.full(8, np.inf, "<f4").tobytes()), "gradient_not_finite", "group 1"),
    (_push_of(client_id="a"), "invalid_config", "request_number 0"),
    (_push_of(request_number=3), "invalid_config", "client_id"),
    (_push_of(client_id="a" * 256, request_number=1), "invalid_config", "1 to 255 bytes"),
]


@pytest.mark.parametrize(("request_", "code", "said"), BAD_PUSHES)
def test_a_push_that_cannot_be_changes_nothing(
    server: Server, channel: grpc.Channel, request_: Any, code: str, said: str
) -> None:
    before = server.engine.journal.last_lsn
    found = refused(embedding_pb2_grpc.EmbeddingStub(channel).FusedApplyGradients, request_)
    assert found[1] == code
    assert said in found[2]
    assert server.engine.journal.last_lsn == before


def test_gradients_of_another_shape_leave_the_kept_batch(server: Server, channel: grpc.Channel) -> None:
    stub = embedding_pb2_grpc.EmbeddingStub(channel)
    answer = stub.FusedLookup(pb.FusedLookupRequest(features=[_bags(), SEQUENCE], train=True, keep=True))
    assert (len(answer.pooled), [len(each) for each in answer.sequences]) == (32, [48])
    push = pb.FusedApplyGradientsRequest(handle=answer.handle, pooled=bytes(31), sequences=[bytes(48)])
    assert refused(stub.FusedApplyGradients, push)[1] == "dim_mismatch"
    push.pooled = np.ones(8, "<f4").tobytes()
    assert stub.FusedApplyGradients(push).applied
    assert refused(stub.FusedApplyGradients, push)[1] == "unknown_handle"
    assert server.engine.groups[1].counters.updates == 2


@pytest.mark.parametrize("method", ["FusedLookup", "FusedApplyGradients"])
@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x03\x0a\x01\xff", b"\x0a\x05\x39abcd", b"\xff" * 11])
def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel, method: str, data: bytes) -> None:
    found = refused(channel.unary_unary(f"/rockbed.v1.Embedding/{method}"), data)
    assert found[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_config")


# --- limits ---


def test_an_answer_beyond_the_limit_is_refused_before_rows_are_made(server: Server, channel: grpc.Channel) -> None:
    stub = embedding_pb2_grpc.EmbeddingStub(channel)
    empty = _bags(keys=b"", lengths=_lengths(*[0] * 4_097), default_key=1)
    found = refused(stub.FusedLookup, pb.FusedLookupRequest(features=[empty], train=True))
    assert found[1] == "limit_exceeded"
    assert "would be 65552 bytes, the server's message_bytes_max is 65536" in found[2]
    assert server.engine.groups[1].counters.rows == 0
    halves = stub.FusedLookup(pb.FusedLookupRequest(features=[empty], train=True, precision=pb.BFLOAT16))
    assert len(halves.pooled) == 65_552 // 2


class Sizes(grpc.ServerInterceptor):  # type: ignore[misc]
    """Bytes of the requests of each method, as they came."""

    def __init__(self) -> None:
        self.of: dict[str, list[int]] = {}

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        sizes = self.of.setdefault(details.method.rpartition("/")[2], [])

        def parse(data: bytes) -> Any:
            sizes.append(len(data))
            return handler.request_deserializer(data)

        return grpc.unary_unary_rpc_method_handler(handler.unary_unary, parse, handler.response_serializer)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ([bags("a", 1, *[[1, 1]] * 501)], "1002 keys, the server takes 1000 at once \\(keys_max\\)"),
        ([bags("a", 1, *[[]] * 4_097)], "the results are 65552 bytes .* takes 65536 at once \\(message_bytes_max\\)"),
        (
            [bags(str(i), 1, *[[]] * 999, combiner=None) for i in range(17)],
            "keys, lengths and weights are 6\\d+ bytes of a fused batch of 0 keys",
        ),
    ],
)
def test_a_batch_beyond_the_limits_is_not_sent(server: Server, connect: Connect, batch: Any, said: str) -> None:
    sizes = Sizes()
    storage = connect(server.start(sizes, limits=SMALL))
    _tables(storage)
    with pytest.raises(BatchTooLarge, match=said):
        looked_up(storage, batch)
    assert "FusedLookup" not in sizes.of


def test_gradients_beyond_the_limit_are_not_sent(server: Server, connect: Connect) -> None:
    sizes = Sizes()
    storage = connect(server.start(sizes, limits=SMALL))
    _tables(storage)
    batch = [bags("a", 1, *[[]] * 4_096)]
    handle = looked_up(storage, batch, keep=True)[2]
    pooled, sequences = gradients(storage, batch)
    for of, what in ((handle, "the gradients"), (None, "keys and gradients")):
        with pytest.raises(BatchTooLarge, match=f"{what} are .*message_bytes_max.*bfloat16"):
            storage.backend.fused_apply_gradients(batch, of, pooled, sequences, {}, None)
    assert "FusedApplyGradients" not in sizes.of
    half = connect(storage._target, precision="bfloat16")
    assert half.backend.fused_apply_gradients(batch, handle, pooled, sequences, {}, None)


def test_keys_travel_once_where_the_batch_is_kept(server: Server, connect: Connect) -> None:
    sizes = Sizes()
    storage = connect(server.start(sizes))
    _tables(storage)
    batch = [bags("a", 1, *[range(100)] * 20)]
    pooled, sequences = gradients(storage, batch)
    handle = looked_up(storage, batch, keep=True)[2]
    for of in (handle, None):
        assert storage.backend.fused_apply_gradients(batch, of, pooled, sequences, {}, None)
    (looked,), (by_handle, by_batch) = sizes.of["FusedLookup"], sizes.of["FusedApplyGradients"]
    keys, lengths, floats, rest = 8 * 2_000, 4 * 20, 4 * 20 * 4, 100
    assert keys + lengths < looked < keys + lengths + rest
    assert floats < by_handle < floats + rest
    assert keys + lengths + floats < by_batch < keys + lengths + floats + rest


def test_the_limits_of_what_is_kept_are_the_servers(server: Server, connect: Connect) -> None:
    storage = connect(server.start(limits=Limits(kept_bytes_max=0)))
    _tables(storage)
    assert looked_up(storage, BATCH, keep=True)[2] is None
    server.stop()
    storage = connect(server.start(limits=Limits(kept_s=0.01)))
    handle = _kept(storage)
    until(lambda: storage.stats()["kept_batches"] == 0)
    with pytest.raises(UnknownHandle, match=r"older than 0\.01 s"):
        _push(storage, handle)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_on_the_wire_is_within_its_stated_error(
    server: Server, connect: Connect, precision: str
) -> None:
    target = server.start()
    exact, half = connect(target), connect(target, precision=precision)
    _tables(exact)
    random = np.random.default_rng(3)
    relative = 2.0**-11 if precision == "float16" else 2.0**-8
    batch = [bags("a", 1, *([key] for key in range(50))), bags("s", 2, *([key] for key in range(50)), combiner=None)]
    pooled, sequences = (random.normal(size=(50, dim)).astype(np.float32) for dim in (4, 6))
    assert half.backend.fused_apply_gradients(batch, None, pooled, [sequences], {}, None)
    (got, (rows,), _), (rough, (coarse,), _) = looked_up(exact, batch), looked_up(half, batch)
    np.testing.assert_allclose(got, -pooled, rtol=relative, atol=2.0**-25)
    np.testing.assert_allclose(rows, -sequences, rtol=relative, atol=2.0**-25)
    assert not np.array_equal(got, -pooled)
    np.testing.assert_array_equal(rough, got)  # which has been rounded before
    np.testing.assert_array_equal(coarse, rows)


# --- who may ---

SECRETS = {
    name: f"the secret of {name}, long enough" for name in ("reader", "trainer", "other", "bound", "bound-reader")
}


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.toml"
    _write_tokens(file, bound=[1])
    return file


def _write_tokens(file: Path, bound: list[int]) -> None:
    tables = []
    for name, secret in SECRETS.items():
        groups = f"groups = {bound}\n" if "bound" in name else ""
        role = "read" if "reader" in name else "train"
        tables.append(f'[[token]]\nname = "{name}"\nrole = "{role}"\nsecret = "{secret}"\n{groups}')
    file.write_text("".join(tables))
    file.chmod(0o600)


def test_roles_and_groups_hold_for_fused_batches(server: Server, connect: Connect, tokens: Path) -> None:
    target = server.start(tokens=tokens)
    trainer, reader, bound, bound_reader = (
        connect(target, token=SECRETS[name]) for name in ("trainer", "reader", "bound", "bound-reader")
    )
    _tables(trainer)
    handle, (pooled, sequences) = _kept(trainer), gradients(trainer, BATCH)
    assert looked_up(reader, BATCH, train=False)[2] is None
    for refused_ in (
        lambda: looked_up(reader, BATCH),
        lambda: looked_up(reader, BATCH, train=False, keep=True),
        lambda: _push(reader, None),
        lambda: _push(reader, handle),
        lambda: bound.backend.fused_lookup(BATCH, pooled, sequences, train=True, keep=True),
        lambda: bound.backend.fused_apply_gradients(BATCH, None, pooled, sequences, {}, None),
        lambda: bound_reader.backend.fused_lookup(BATCH, pooled, sequences, train=False, keep=False),
    ):
        with pytest.raises(PermissionDenied):
            refused_()
    assert sum(group.counters.updates for group in server.engine.groups.values()) == 0
    assert looked_up(bound, BATCH[:1], keep=True)[2] is not None
    assert _push(trainer, handle)


def test_a_handle_is_its_owners_alone(server: Server, connect: Connect, tokens: Path) -> None:
    target = server.start(tokens=tokens)
    trainer, other = (connect(target, token=SECRETS[name]) for name in ("trainer", "other"))
    _tables(trainer)
    handle = _kept(trainer)
    with pytest.raises(UnknownHandle, match="another caller's"):
        _push(other, handle)
    assert _push(connect(target, token=SECRETS["trainer"]), handle)  # of another connection with the same token


def test_a_token_that_loses_a_group_cannot_push_what_it_had_kept(
    server: Server, connect: Connect, tokens: Path
) -> None:
    _write_tokens(tokens, bound=[1, 2])
    target = server.start(tokens=tokens)
    _tables(connect(target, token=SECRETS["trainer"]))
    bound = connect(target, token=SECRETS["bound"])
    handle, (pooled, sequences) = _kept(bound), gradients(bound, BATCH)
    _write_tokens(tokens, bound=[1, 10])  # another length, so that the change shows however coarse the clock is
    until(lambda: list(bound.groups()) == [1])
    with pytest.raises(PermissionDenied, match="group 2"):
        bound.backend.fused_apply_gradients(BATCH, handle, pooled, sequences, {}, None)


# --- answers that are lost ---


def test_no_fused_push_is_lost_or_applied_twice_where_a_third_of_the_answers_is_lost(
    server: Server, connect: Connect
) -> None:
    loses = LosesAnswers(1 / 3)
    target = server.start(loses)
    storages = [connect(target) for _ in range(3)]
    for storage in storages:
        _tables(storage)

    def train(storage: PyStorage, by_handle: bool) -> None:
        for _ in range(20):
            handle = _kept(storage)
            assert _push(storage, handle if by_handle else None) in (True, False)

    workers = [threading.Thread(target=train, args=(s, i > 0)) for i, s in enumerate(storages)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert min(loses.lost.values()) > 10
    counts = storages[0].get_rows(1, keys_of(1, 2, 3)).update_num
    assert counts.tolist() == [60] * 3
    # "sum(w row) / sum(w)" of two keys: half of the gradient of 1 for each, both halves where they are the same key
    np.testing.assert_array_equal(storages[0].get_rows(1, keys_of(1, 2, 3)).weights[:, 0], [-30, -30, -60])


class LosesFirst(grpc.ServerInterceptor):  # type: ignore[misc]
    """Loses the answer to the first fused push, and does something before the client can try again."""

    def __init__(self) -> None:
        self.then: Any = lambda: None
        self.lost = 0

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if not details.method.endswith("/FusedApplyGradients"):
            return handler

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            answer = handler.unary_unary(request, context)
            if self.lost == 0:
                self.lost += 1
                self.then()
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
            return answer

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


@pytest.mark.parametrize("request_", [None, Request("trainer", 7)])
def test_a_push_by_handle_whose_answer_was_lost_is_acknowledged(
    server: Server, connect: Connect, request_: Request | None
) -> None:
    loses = LosesFirst()
    storage = connect(server.start(loses))
    _tables(storage)
    handle = _kept(storage)
    loses.then = server.engine.kept.clear  # it would be gone anyway
    assert not _push(storage, handle, request_)  # applied before: by the attempt whose answer was lost
    assert loses.lost == 1
    assert storage.get_rows(1, keys_of(1, 2, 3)).update_num.tolist() == [1] * 3


def test_a_restart_is_waited_for_and_forgets_what_was_kept(server: Server, connect: Connect) -> None:
    target = server.start()
    storage = connect(target)
    _tables(storage)
    handle = _kept(storage)
    server.stop()
    server.start(listen=target.removeprefix("grpc://"))
    with pytest.raises(UnknownHandle, match="from before a restart"):
        _push(storage, handle)
    assert _push(storage, None)


class Answers(grpc.ServerInterceptor):  # type: ignore[misc]
    """Answers every fused lookup with nothing."""

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if not details.method.endswith("/FusedLookup"):
            return handler
        nothing = pb.FusedLookupResponse().SerializeToString
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: nothing(), handler.request_deserializer, handler.response_serializer
        )


def test_an_answer_that_lacks_something_is_an_error(server: Server, connect: Connect) -> None:
    storage = connect(server.start(Answers()))
    _tables(storage)
    with pytest.raises(ServerError, match="answered 0 of 1 sequences"):
        looked_up(storage, BATCH)
