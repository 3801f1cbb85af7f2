"""More calls than the server takes: refused with a hint, and tried again by clients; never unbounded."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from rockbed import Overloaded
from rockbed.v1 import embedding_pb2, embedding_pb2_grpc
from tests.api.helpers import embedding, keys_of, ones, sgd
from tests.server.served import Connect, Server, refused
from tests.waiting import until


class Holds(grpc.ServerInterceptor):  # type: ignore[misc]
    """Holds every Lookup until it is told to let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.arrived = self.held = 0

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if not details.method.endswith("/Lookup"):
            return handler
        self.arrived += 1  # one thread takes all calls, and gives each to the workers before it takes the next

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            self.held += 1
            self.go.wait()
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


@pytest.fixture
def holds() -> Iterator[Holds]:
    holds = Holds()
    yield holds
    holds.go.set()


@pytest.fixture
def stub(server: Server, connect: Connect, holds: Holds) -> Iterator[Any]:
    """Of a server with two threads and two places in the queue, which holds lookups."""
    target = server.start(holds, workers=2, queue_max=2, streams_max=2)
    embedding(connect(target), optimizer=sgd(1.0)).apply_gradients(keys_of(1), ones(1))
    assert server.daemon is not None
    workers = server.daemon._workers
    until(lambda: workers.tasks == 0)  # a call's place is free a moment after its answer has come
    with grpc.insecure_channel(target.removeprefix("grpc://")) as channel:
        yield embedding_pb2_grpc.EmbeddingStub(channel)


REQUEST = embedding_pb2.LookupRequest(keys=np.array([1]).tobytes())


def test_one_too_many_is_refused_at_once_with_a_hint(stub: Any, holds: Holds) -> None:
    waiting = [stub.Lookup.future(REQUEST) for _ in range(4)]
    until(lambda: holds.arrived == 4 and holds.held == 2)
    found = refused(stub.Lookup, REQUEST, timeout=10)
    assert found[:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")
    assert "2 requests are under way and 2 wait (workers, queue_max)" in found[2]
    with pytest.raises(grpc.RpcError) as caught:
        stub.Lookup(REQUEST, timeout=10)
    error: Any = caught.value
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    holds.go.set()
    assert {np.frombuffer(each.result().weights, "<f4")[0] for each in waiting} == {-1.0}
    stub.Lookup(REQUEST, timeout=10)


def test_callers_that_went_away_give_their_places_back(stub: Any, holds: Holds) -> None:
    for _ in range(5):
        waiting = [stub.Lookup.future(REQUEST) for _ in range(4)]
        for each in waiting:
            each.cancel()
    holds.go.set()
    until(lambda: _answers(stub))
    assert _answers(stub)


def _answers(stub: Any) -> bool:
    try:
        stub.Lookup(REQUEST, timeout=10)
    except grpc.RpcError:
        return False
    return True


def test_open_streams_do_not_keep_single_calls_waiting_and_are_bounded(stub: Any, holds: Holds) -> None:
    holds.go.set()
    closing = threading.Event()

    def silent() -> Iterator[Any]:
        yield REQUEST
        closing.wait()

    streams = [stub.LookupStream(silent()) for _ in range(2)]
    for stream in streams:
        assert next(stream).weights
    for _ in range(10):
        stub.Lookup(REQUEST, timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.LookupStream(silent()))
    error: Any = caught.value
    assert "streams_max" in error.details()
    closing.set()
    for stream in streams:
        assert list(stream) == []
    until(lambda: next(iter(_tried(stub))) is not None)


def _tried(stub: Any) -> list[Any]:
    try:
        return list(stub.LookupStream(iter([REQUEST])))
    except grpc.RpcError:
        return [None]


def test_a_client_tries_again_and_pushes_are_applied_once(server: Server, connect: Connect, holds: Holds) -> None:
    target = server.start(holds, workers=1, queue_max=0)
    rows = [embedding(connect(target, retry_s=30), optimizer=sgd(1.0)) for _ in range(4)]
    holds.go.set()

    def push(each: Any) -> None:
        for _ in range(20):
            each.apply_gradients(keys_of(1), ones(1))

    threads = [threading.Thread(target=push, args=(each,)) for each in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows[0].lookup(keys_of(1))[0, 0] == -80


def test_a_client_that_may_not_try_again_is_told(server: Server, connect: Connect, holds: Holds) -> None:
    target = server.start(holds, workers=1, queue_max=0)
    rows = embedding(connect(target, retry_s=0))
    thread = threading.Thread(target=lambda: rows.lookup(keys_of(1)))
    thread.start()
    until(lambda: holds.held == 1)
    with pytest.raises(Overloaded, match="1 requests are under way"):
        rows.lookup(keys_of(2))
    holds.go.set()
    thread.join()
