"""Pushes larger than a message: several messages, one change."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from rockbed import BatchTooLarge, GradientNotFinite
from rockbed.client.pushes import messages
from rockbed.requests import Gradients
from rockbed.server.limits import Limits
from rockbed.v1 import embedding_pb2 as pb
from rockbed.v1 import embedding_pb2_grpc
from tests.api.helpers import embedding, keys_of, ones, sgd
from tests.api.model import Model
from tests.server.served import Connect, Server
from tests.waiting import until

SMALL = Limits(message_bytes_max=1 << 16, keys_max=300, push_bytes_max=1 << 20)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_push_in_many_messages_is_one_change(server: Server, connect: Connect, precision: str) -> None:
    storage = connect(server.start(limits=SMALL), precision=precision)
    one, two = embedding(storage, group=1, optimizer=sgd(1.0)), embedding(storage, 8, group=2, optimizer=sgd(1.0))
    random = np.random.default_rng(3)
    model_one, model_two = Model(4, 1.0), Model(8, 1.0)
    for step in range(1, 4):
        keys_one, keys_two = random.integers(0, 2_000, 5_000), random.integers(0, 900, 2_000)
        values_one = random.integers(-4, 5, (5_000, 4)).astype(np.float32)
        values_two = random.integers(-4, 5, (2_000, 8)).astype(np.float32)
        items = [(one, keys_one, values_one), (two, keys_two, values_two)]
        before = server.engine.journal.last_lsn
        assert storage.apply_gradients(items, request=("t", step))
        assert server.engine.journal.last_lsn == before + 1
        assert not storage.apply_gradients(items, request=("t", step))
        model_one.push(keys_one, values_one)
        model_two.push(keys_two, values_two)
    exact = connect(storage._target)
    narrow = embedding(exact, group=1, optimizer=sgd(1.0))
    np.testing.assert_array_equal(narrow.lookup(np.arange(2_000), train=False), model_one.weights(np.arange(2_000)))
    wide = embedding(exact, 8, group=2, optimizer=sgd(1.0))
    np.testing.assert_array_equal(wide.lookup(np.arange(900), train=False), model_two.weights(np.arange(900)))


def test_a_push_beyond_the_limit_is_refused_on_both_ends(server: Server, connect: Connect) -> None:
    target = server.start(limits=SMALL)
    rows = embedding(connect(target))
    with pytest.raises(BatchTooLarge, match="push_bytes_max"):
        rows.apply_gradients(np.arange(50_000), ones(50_000))
    part = pb.ApplyGradientsRequest(more=True)
    part.groups.add(group=0, keys=bytes(8 * 300), gradients=bytes(16 * 300))
    with grpc.insecure_channel(target.removeprefix("grpc://")) as channel:
        answers = embedding_pb2_grpc.EmbeddingStub(channel).ApplyGradientsStream(part for _ in range(1_000))
        with pytest.raises(grpc.RpcError) as caught:
            list(answers)
    failed: Any = caught.value
    assert "more than 1048576 bytes, the server's push_bytes_max" in failed.details()
    assert server.engine.groups[0].counters.rows == 0


def test_nothing_is_applied_of_a_push_that_is_refused_or_cut_short(server: Server, connect: Connect) -> None:
    target = server.start(limits=SMALL)
    rows = embedding(connect(target))
    values = ones(2_000)
    values[-1, 0] = np.nan
    with pytest.raises(GradientNotFinite):
        rows.apply_gradients(np.arange(2_000), values)
    part = pb.ApplyGradientsRequest(more=True)
    part.groups.add(group=0, keys=bytes(8), gradients=bytes(16))
    with grpc.insecure_channel(target.removeprefix("grpc://")) as channel:
        stub = embedding_pb2_grpc.EmbeddingStub(channel)
        assert list(stub.ApplyGradientsStream(iter([part, part]))) == []
        with pytest.raises(grpc.RpcError) as caught:
            stub.ApplyGradients(part)
    failed: Any = caught.value
    assert "ApplyGradientsStream" in failed.details()
    assert server.engine.groups[0].counters.rows == 0


def test_whatever_a_message_holds_counts_and_pushes_share_the_limit(server: Server, connect: Connect) -> None:
    target = server.start(limits=SMALL)
    embedding(connect(target))
    part = pb.ApplyGradientsRequest(more=True, client_id="x" * 60_000)
    gather = threading.Event()

    def half() -> Iterator[Any]:
        for _ in range(10):
            yield part
        gather.wait()

    with grpc.insecure_channel(target.removeprefix("grpc://")) as channel:
        stub = embedding_pb2_grpc.EmbeddingStub(channel)
        first = stub.ApplyGradientsStream(half())
        until(lambda: server.daemon is not None and server.daemon._streams.tasks == 1)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.ApplyGradientsStream(part for _ in range(100)))
        failed: Any = caught.value
        assert dict(failed.trailing_metadata())["rockbed-code"] in ("overloaded", "limit_exceeded")
        gather.set()
        with contextlib.suppress(grpc.RpcError):  # the other may have been the one to be refused
            list(first)
    rows = embedding(connect(target))
    rows.apply_gradients(np.arange(2_000), ones(2_000))  # what was gathered was let go of


def test_parts_that_differ_are_refused(server: Server, connect: Connect) -> None:
    target = server.start(limits=SMALL)
    embedding(connect(target), step="global")
    parts = [pb.ApplyGradientsRequest(more=more) for more in (True, False)]
    for step, part in enumerate(parts, 1):
        part.groups.add(group=0, keys=keys_of(step).tobytes(), gradients=bytes(16), global_step=step)
    with grpc.insecure_channel(target.removeprefix("grpc://")) as channel, pytest.raises(grpc.RpcError) as caught:
        list(embedding_pb2_grpc.EmbeddingStub(channel).ApplyGradientsStream(iter(parts)))
    failed: Any = caught.value
    assert "differ in precision, global_step or generation" in failed.details()


class LosesFirst(grpc.ServerInterceptor):  # type: ignore[misc]
    """Loses the answer to the first stream."""

    def __init__(self) -> None:
        self.lost = 0

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if not details.method.endswith("/ApplyGradientsStream"):
            return handler

        def call(requests: Any, context: grpc.ServicerContext) -> Any:
            for answer in handler.stream_stream(requests, context):
                if self.lost == 0:
                    self.lost += 1
                    context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
                yield answer

        return grpc.stream_stream_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def test_a_lost_answer_does_not_apply_it_twice(server: Server, connect: Connect) -> None:
    loses = LosesFirst()
    rows = embedding(connect(server.start(loses, limits=SMALL)), optimizer=sgd(1.0))
    rows.apply_gradients(np.arange(2_000), ones(2_000))
    assert loses.lost == 1
    assert (rows.lookup(np.arange(2_000)) == -1).all()


def test_messages_hold_both_limits_and_everything_once() -> None:
    shares = [
        Gradients(g, np.arange(n), np.ones((n, d), np.float32)) for g, n, d in ((1, 700, 4), (2, 0, 3), (3, 5, 9))
    ]
    parts = list(messages(shares, 4, 4_000, 150))
    for part in parts:
        assert sum(share.keys.size for share in part) <= 150
        assert sum(share.keys.nbytes + share.grads.nbytes for share in part) <= 4_000
    for share in shares:
        own = [each.keys for part in parts for each in part if each.group == share.group]
        np.testing.assert_array_equal(np.concatenate(own), share.keys)
    assert [len(part) for part in messages([], 4, 4_000, 150)] == [0]
