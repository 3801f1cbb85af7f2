"""What callers may do to a server: vanish, not read, send nonsense. Others are served, and memory stays flat."""

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from rockbed import PyEmbedding, PyStorage, StorageFull
from rockbed.types import I64
from rockbed.v1 import admin_pb2, embedding_pb2, embedding_pb2_grpc
from tests.api.helpers import assert_sound, embedding, keys_of, ones, sgd
from tests.crash.serving import Process
from tests.source_tree import ROOT
from tests.waiting import until

VANISH = """
import os, sys, grpc
from rockbed.v1 import embedding_pb2 as pb, embedding_pb2_grpc
stub = embedding_pb2_grpc.EmbeddingStub(grpc.insecure_channel("unix:" + sys.argv[1]))
part = pb.ApplyGradientsRequest(more=True)
part.groups.add(group=0, keys=bytes(8), gradients=bytes(16))
def parts():
    yield part
    yield part
    os._exit(9)
list(stub.ApplyGradientsStream(parts()))
"""


def test_clients_that_vanish_within_a_push_leave_nothing_and_take_no_place(process: Process) -> None:
    process.start("--streams-max", "2")
    with PyStorage(process.target) as storage:
        rows = embedding(storage)
        for _ in range(5):
            gone = subprocess.run([sys.executable, "-c", VANISH, str(process.socket)], cwd=ROOT, timeout=60)
            assert gone.returncode == 9
        assert storage.stats()["rows"] == 0
        with grpc.insecure_channel(f"unix:{process.socket}") as channel:
            stub = embedding_pb2_grpc.EmbeddingStub(channel)
            until(lambda: _streams(stub))
        rows.apply_gradients(keys_of(1), ones(1))
        assert_sound(storage)


def _streams(stub: Any) -> bool:
    try:
        return len(list(stub.LookupStream(iter([embedding_pb2.LookupRequest(group=0)])))) == 1
    except grpc.RpcError:
        return False


def test_a_client_that_does_not_read_holds_up_nobody_and_fills_no_memory(process: Process) -> None:
    process.start()
    with PyStorage(process.target) as storage, grpc.insecure_channel(f"unix:{process.socket}") as channel:
        rows = embedding(storage, 64)
        keys = np.arange(20_000)
        rows.lookup(keys)
        request = embedding_pb2.LookupRequest(group=0, keys=keys.tobytes())  # an answer of 5 MB
        stub = embedding_pb2_grpc.EmbeddingStub(channel)
        sent = threading.Semaphore(0)

        def requests() -> Iterator[Any]:
            for _ in range(200):
                sent.release()
                yield request

        before = process.memory_bytes
        answers = stub.LookupStream(requests())
        assert sent.acquire(timeout=20)
        for _ in range(20):
            rows.lookup(keys)
        assert process.memory_bytes - before < 200 << 20  # of the gigabyte that was asked for
        answers.cancel()
        assert_sound(storage)


def test_a_full_disk_refuses_pushes_and_serves_lookups_until_there_is_room(
    small_disk: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    process = Process(tmp_path_factory.mktemp("serve"))
    process.data = small_disk / "store"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(12 << 20))
    process.start()
    try:
        with PyStorage(process.target) as storage:
            rows = embedding(storage, 64, optimizer=sgd(1.0))
            keys, pushed = np.arange(2_000), 0
            while _pushes(rows, keys):
                pushed += 1
            assert pushed > 0
            assert (rows.lookup(keys, train=False) == -pushed).all()
            filler.unlink()
            until(lambda: _pushes(rows, keys))
            assert (rows.lookup(keys, train=False) == -pushed - 1).all()
            assert process.end(signal.SIGTERM)[0] == 0
        process.start()
        with PyStorage(process.target) as storage:
            again = embedding(storage, 64, optimizer=sgd(1.0))
            assert (again.lookup(keys, train=False) == -pushed - 1).all()
            assert_sound(storage)
    finally:
        process.kill()


def _pushes(rows: PyEmbedding, keys: I64) -> bool:
    try:
        rows.apply_gradients(keys, ones(keys.size, 64))
    except StorageFull:
        return False
    return True


@pytest.mark.slow
def test_ten_thousand_random_messages_crash_nothing_change_nothing_and_fill_no_memory(process: Process) -> None:
    process.start("--message-bytes-max", "65536")
    with PyStorage(process.target) as storage, grpc.insecure_channel(f"unix:{process.socket}") as channel:
        rows = embedding(storage)
        rows.apply_gradients(np.arange(10), ones(10))
        lsn = storage.stats()["last_lsn"]
        methods = [
            f"/{service.full_name}/{name}"
            for file in (embedding_pb2, admin_pb2)
            for service in file.DESCRIPTOR.services_by_name.values()
            for name in service.methods_by_name
            # those take nothing, and unknown fields are allowed; a Shrink that removes rows is a number chance finds
            if name not in ("Flush", "Check", "Compact", "Shrink")
        ]
        _fuzz(channel, methods, 500, seed=1)  # what comes once: buffers, threads
        before = process.memory_bytes
        _fuzz(channel, methods, 9_500, seed=2)
        assert process.memory_bytes - before < 48 << 20
        assert storage.stats()["last_lsn"] == lsn
        assert (rows.lookup(np.arange(10)) == -0.5).all()
        assert_sound(storage)


def _fuzz(channel: grpc.Channel, methods: list[str], messages: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(messages):
        method = chance.choice(methods)
        data = chance.randbytes(chance.choice([1, 2, 5, 20, 300, 5_000]))
        streams = method.endswith("Stream")
        call: Any = channel.stream_stream(method) if streams else channel.unary_stream(method)
        try:
            list(call(iter([data]) if streams else data, timeout=20))
        except grpc.RpcError as error:
            found: Any = error
            assert found.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED), (method, data)
