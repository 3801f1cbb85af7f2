"""Health checks by the standard service's own client."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rockbed.config import GroupConfig
from rockbed.errors import StorageFailed
from rockbed.v1 import embedding_pb2, embedding_pb2_grpc
from tests.server.served import Server
from tests.waiting import until

SERVICES = ["", "rockbed.v1.Admin", "rockbed.v1.Embedding", "rockbed.v1.SharedEmbedding"]
WORKERS = 2
GROUP = GroupConfig(group=0, dim=4, optimizer={"name": "sgd"}, initializer={"name": "zeros"})
Status = health_pb2.HealthCheckResponse


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.start(workers=WORKERS).removeprefix("grpc://")) as channel:
        yield channel


class Watching:
    """A call of Watch; what it is told is put into `said`, and its end as a status code."""

    def __init__(self, channel: grpc.Channel, service: str = "") -> None:
        self.said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call = health_pb2_grpc.HealthStub(channel).Watch(_request(service))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            for answer in self.call:
                self.said.put(answer.status)
        except grpc.RpcError as error:
            self.said.put(error.code())

    def next(self) -> Any:
        return self.said.get(timeout=20)


def _request(service: str = "") -> Any:
    return health_pb2.HealthCheckRequest(service=service)


def _status(channel: grpc.Channel, service: str = "") -> Any:
    return health_pb2_grpc.HealthStub(channel).Check(_request(service), timeout=20).status


def _fail(server: Server) -> None:
    """Leave the engine as an entry that cannot be applied leaves it."""
    with pytest.raises(StorageFailed), server.engine.must_succeed(1):
        raise MemoryError


# --- Check ---


@pytest.mark.parametrize("service", SERVICES)
def test_a_server_that_takes_calls_is_serving(channel: grpc.Channel, service: str) -> None:
    assert _status(channel, service) == Status.SERVING


def test_a_service_that_is_not_there_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        _status(channel, "rockbed.v1.Embeddings")
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "no service 'rockbed.v1.Embeddings'; known: ''," in error.details()


@pytest.mark.parametrize("service", SERVICES)
def test_an_engine_that_cannot_go_on_is_not_serving(server: Server, channel: grpc.Channel, service: str) -> None:
    _fail(server)
    assert _status(channel, service) == Status.NOT_SERVING


def test_a_check_is_answered_while_every_worker_is_busy(server: Server, channel: grpc.Channel) -> None:
    server.engine.open_group(GROUP)
    waiting: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(WORKERS)]
    streams = [embedding_pb2_grpc.EmbeddingStub(channel).LookupStream(iter(q.get, None)) for q in waiting]
    for requests, stream in zip(waiting, streams, strict=True):
        requests.put(embedding_pb2.LookupRequest())
        next(stream)  # answered: one of the workers has this stream, and waits for the next request
    assert _status(channel) == Status.SERVING
    for requests in waiting:
        requests.put(None)


# --- Watch ---


@pytest.mark.parametrize("service", SERVICES)
def test_a_watcher_sees_the_server_end(server: Server, channel: grpc.Channel, service: str) -> None:
    watching = Watching(channel, service)
    assert watching.next() == Status.SERVING
    server.stop()
    assert watching.next() == Status.NOT_SERVING
    assert watching.next() is grpc.StatusCode.UNAVAILABLE


def test_a_watcher_sees_the_engine_fail_and_then_the_server_end(server: Server, channel: grpc.Channel) -> None:
    watching = Watching(channel)
    assert watching.next() == Status.SERVING
    _fail(server)
    assert watching.next() == Status.NOT_SERVING
    server.stop()
    assert watching.next() is grpc.StatusCode.UNAVAILABLE


def test_a_watcher_of_a_service_that_is_not_there_is_told_so_and_kept(server: Server, channel: grpc.Channel) -> None:
    watching = Watching(channel, "rockbed.v1.Embeddings")
    assert watching.next() == Status.SERVICE_UNKNOWN
    server.stop()
    assert watching.next() is grpc.StatusCode.UNAVAILABLE


def test_watchers_take_no_worker_from_those_that_look_up(server: Server, channel: grpc.Channel) -> None:
    server.engine.open_group(GROUP)
    watchers = [Watching(channel) for _ in range(WORKERS + 5)]
    assert [watching.next() for watching in watchers] == [Status.SERVING] * len(watchers)
    answer = embedding_pb2_grpc.EmbeddingStub(channel).Lookup(embedding_pb2.LookupRequest(keys=bytes(8)), timeout=20)
    assert len(answer.weights) == 4 * GROUP.dim


def test_neither_watchers_nor_what_is_no_request_hold_up_the_end(server: Server, channel: grpc.Channel) -> None:
    assert server.daemon is not None
    watching = Watching(channel)
    watching.next()
    for method in ("Check", "Watch"):
        with pytest.raises(grpc.RpcError):
            list(channel.unary_stream(f"/grpc.health.v1.Health/{method}")(b"\xff"))
    stopping = threading.Thread(target=server.daemon.stop, args=(3600,))
    stopping.start()
    stopping.join(30)
    ended = not stopping.is_alive()
    channel.close()  # so that it ends in any case
    stopping.join()
    assert ended


def test_a_watcher_that_has_gone_is_forgotten(server: Server, channel: grpc.Channel) -> None:
    assert server.daemon is not None
    watching = Watching(channel)
    watching.next()
    watchers = server.daemon._health._watchers
    assert len(watchers) == 1
    watching.call.cancel()
    until(lambda: not watchers)
