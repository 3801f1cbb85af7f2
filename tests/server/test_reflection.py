"""Reflection: a client that knows nothing but the address finds the services, their messages, and rows."""

import queue
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from rockbed.v1 import admin_pb2, admin_pb2_grpc
from tests.server.served import Server

WORKERS = 2
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
CONFIG = '{"group": 3, "dim": 2, "optimizer": {"name": "sgd", "gamma": 0.5}, "initializer": {"name": "zeros"}}'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.start(workers=WORKERS).removeprefix("grpc://")) as channel:
        yield channel


def test_every_service_is_listed(channel: grpc.Channel) -> None:
    assert sorted(ProtoReflectionDescriptorDatabase(channel).get_services()) == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "rockbed.v1.Admin",
        "rockbed.v1.Embedding",
        "rockbed.v1.SharedEmbedding",
    ]


def test_rows_are_trained_with_messages_that_only_the_server_described(channel: grpc.Channel) -> None:
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))

    def call(service: str, name: str, **fields: Any) -> Any:
        method = pool.FindServiceByName(f"rockbed.v1.{service}").FindMethodByName(name)
        request = json_format.ParseDict(fields, GetMessageClass(method.input_type)())
        answer = GetMessageClass(method.output_type)
        path = f"/{method.containing_service.full_name}/{method.name}"
        return channel.unary_unary(path, lambda message: message.SerializeToString(), answer.FromString)(request)

    call("Admin", "CreateGroup", configJson=CONFIG)
    keys = np.array([7, -1], "<i8")
    grads = np.array([[1, 2], [3, 4]], "<f4")
    share = {"group": 3, "keys": _base64(keys), "gradients": _base64(grads)}
    assert call("Embedding", "ApplyGradients", groups=[share]).applied
    weights = call("Embedding", "Lookup", group=3, keys=_base64(keys)).weights
    np.testing.assert_array_equal(np.frombuffer(weights, "<f4").reshape(2, 2), -0.5 * grads)


def _base64(array: Any) -> str:
    """Bytes as protobuf's JSON has them."""
    return b64encode(array.tobytes()).decode()


def test_what_is_no_request_is_refused_by_a_standard_status(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream(REFLECTION)(iter([b"\xff"])))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1 bytes that are no request of grpc.reflection" in error.details()


def test_streams_that_clients_keep_open_take_no_worker_and_do_not_hold_up_the_end(
    server: Server, channel: grpc.Channel
) -> None:
    assert server.daemon is not None
    kept_open: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(WORKERS)]
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    streams = [stub.ServerReflectionInfo(iter(requests.get, None)) for requests in kept_open]
    for requests, stream in zip(kept_open, streams, strict=True):
        requests.put(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert next(stream).HasField("list_services_response")
    assert admin_pb2_grpc.AdminStub(channel).ServerInfo(admin_pb2.ServerInfoRequest(), timeout=20).version
    stopping = threading.Thread(target=server.daemon.stop, args=(3600,))
    stopping.start()
    stopping.join(30)
    ended = not stopping.is_alive()
    channel.close()  # so that it ends in any case
    stopping.join()
    assert ended
    for requests in kept_open:
        requests.put(None)
