"""The part `daemon`: one short run of it, and that the server it is compared with gets the same bytes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import benchmarks.__main__ as command
from benchmarks import serving, sessions
from benchmarks.contenders.echo_contender import lookup_bytes, push_bytes
from benchmarks.servers import Server
from benchmarks.workloads import Sizes
from rockbed import Connection, PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.config import StoreConfig
from rockbed.server.daemon import Daemon
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.engine import Engine

SMALL = Sizes(batch_keys=500, batches=2, pushes=2, steps=2, small_calls=3, pushing_s=0.05)


@pytest.mark.slow
def test_the_part_runs_from_the_command_line_and_writes_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "sizes_of", lambda *_: SMALL)
    monkeypatch.setattr(serving, "TRAINERS", 2)
    monkeypatch.setattr(serving, "CLIENTS", 2)
    options = [
        "--contenders",
        "daemon,daemon-socket,rockbed,echo",
        "--rows",
        "2600",
        "--rounds",
        "1",
        "--seconds",
        "0.2",
    ]
    folders = ["--directory", str(tmp_path), "--output", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--parts", "daemon", *options, *folders])
    assert command.main() == 0

    records = json.loads((tmp_path / "results" / "results.json").read_text())["records"]
    done = {(record["workload"], record["contender"]) for record in records}
    one_client = ("lookup uniform", "lookup 1,000 keys", "apply zipf", "train zipf")
    assert {
        (workload, name) for workload in one_client for name in ("daemon", "daemon-socket", "rockbed", "echo")
    } <= done
    crowds = [record["more"] for record in records if "server_cpu_s" in record["more"]]
    assert crowds
    assert all(more["errors"] == 0 and 0 < more["fairness"] <= 1 and more["resident_end"] > 0 for more in crowds)
    idle = [record["more"]["resident"] for record in records if record["workload"].startswith("idle")]
    assert len(idle) == 2
    text = (tmp_path / "results" / "results.md").read_text()
    assert "## Daemon" in text
    assert "| 2 trainers |" in text
    assert "## Targets" not in text  # nothing embedded was measured
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


class _Sizes(grpc.ServerInterceptor):  # type: ignore[misc]
    """Writes down what each call of the Embedding service takes and gives."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        taken: list[int] = []

        def parse(data: bytes) -> Any:
            taken.append(len(data))
            return handler.request_deserializer(data)

        def serialize(answer: Any) -> bytes:
            data: bytes = handler.response_serializer(answer)
            if "Embedding" in details.method:
                self.seen.append((taken.pop(), len(data)))
            return data

        return grpc.unary_unary_rpc_method_handler(handler.unary_unary, parse, serialize)


def test_the_echo_is_sent_the_messages_that_the_daemon_is_sent(tmp_path: Path) -> None:
    sizes = _Sizes()
    engine = Engine(tmp_path / "store", StoreConfig())
    daemon = Daemon(engine, ServerConfig(listen="127.0.0.1:0"), interceptors=(sizes,))
    try:
        with PyStorage(daemon.target, connection=Connection(shared_memory=False)) as storage:
            optimizer, initializer = PyOptimizer(name="sgd"), PyInitializer(name="zeros")
            first, second = (PyEmbedding(storage, optimizer, initializer, 16, group) for group in (0, 1))
            keys, few = np.arange(65_536), np.arange(3)
            first.lookup(keys)
            first.apply_gradients(keys, np.zeros((65_536, 16), np.float32))
            storage.apply_gradients([(rows, few, np.zeros((3, 16), np.float32)) for rows in (first, second)])
    finally:
        daemon.stop(0)
        engine.close()
    echoed = [lookup_bytes(65_536, 16), push_bytes((65_536,), 16), push_bytes((3, 3), 16)]
    assert sizes.seen == [(len(request), answer) for request, answer in echoed]


def test_a_server_that_ends_before_it_serves_is_reported_with_what_it_said(tmp_path: Path) -> None:
    server = Server([sys.executable, "-c", "raise SystemExit('no room')"], tmp_path / "log")
    with pytest.raises(RuntimeError, match="no room"):
        server.address()
