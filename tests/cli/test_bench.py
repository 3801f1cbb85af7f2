"""bench: figures, and no trace of it afterwards."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rockbed import PyEmbedding, PyStorage, StorageFull
from rockbed.config import StoreConfig
from rockbed.server.daemon import Daemon
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.engine import Engine
from tests.cli.helpers import INTERRUPTIBLE, Place, done, environment, make_store, refused, said
from tests.server.served import Server
from tests.source_tree import ROOT
from tests.waiting import until

SHORT = ("--seconds", 0.05, "--keys", 500, "--batch", 100)


def test_bench_measures_and_leaves_no_group(place: Place) -> None:
    found = said("bench", *SHORT, "--threads", 2, "--dim", 8, *place.options)
    assert (found["dim"], found["keys"], found["batch"], found["threads"]) == (8, 500, 100, 2)
    for call in ("lookup", "push"):
        assert found[f"{call}_keys_s"] > 0
        assert 0 < found[f"small_{call}_ms"]["p50"] <= found[f"small_{call}_ms"]["p99"]
    assert [config["group"] for config in said("groups", *place.options)] == [1, 7]
    assert said("stats", *place.options)["rows"] == 101


def test_bench_says_what_its_figures_are_worth(place: Place) -> None:
    assert "A quick look" in done("bench", *SHORT, *place.options)


def test_bench_in_a_new_directory_makes_a_store(tmp_path: Path) -> None:
    said("bench", *SHORT, "--data", tmp_path / "new")
    assert said("groups", "--data", tmp_path / "new") == []


def test_a_call_that_fails_ends_bench_and_leaves_no_group(model: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StorageFull("no room")

    monkeypatch.setattr(PyEmbedding, "apply_gradients", full)
    assert "no room" in refused("bench", *SHORT, "--threads", 2, *model.options, code=1)
    assert len(said("groups", *model.options)) == 2


def test_a_group_that_cannot_be_dropped_is_named(model: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StorageFull("no room")

    monkeypatch.setattr(PyStorage, "drop_group", full)
    line = refused("bench", *SHORT, *model.options, code=1)
    monkeypatch.undo()
    (left,) = {config["group"] for config in said("groups", *model.options)} - {1, 7}
    assert f"the group {left} of the measurement is still there" in line


def test_bench_refuses_a_server_that_only_reads(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    engine = Engine(tmp_path / "store", StoreConfig(read_only=True))
    daemon = Daemon(engine, ServerConfig(listen="127.0.0.1:0"))
    try:
        assert "read_only" in refused("bench", *SHORT, "--server", daemon.target, code=1)
    finally:
        daemon.stop(0)
        engine.close()


def test_ctrl_c_drops_the_group(server: Server, served: Place) -> None:
    command = [sys.executable, "-c", INTERRUPTIBLE, "bench", "--seconds", "600", "--threads", "2", *served.options]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until(lambda: any(group.counters.push_keys for n, group in server.engine.groups.items() if n not in (1, 7)))
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (130, b""), err
    assert b"Traceback" not in err
    assert set(server.engine.groups) == {1, 7}
