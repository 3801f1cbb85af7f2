"""`rockbed serve` in a process of its own: started, stopped, and killed under load."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from rockbed import Connection, PyStorage
from tests.api.helpers import embedding, keys_of, ones, sgd
from tests.crash.serving import Process
from tests.server.test_exactly_once import _trained
from tests.source_tree import ROOT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_end_writes_everything_back_and_exits_with_0(
    process: Process, number: signal.Signals
) -> None:
    assert "serves" in process.start()
    with PyStorage(process.target) as storage:
        embedding(storage).apply_gradients(keys_of(1, 2), ones(2))
        code, said = process.end(number)
    assert code == 0
    assert "written back, closed" in said
    with PyStorage(process.data, read_only=True) as storage:
        assert storage.stats()["last_lsn"] == storage.stats()["flushed_lsn"]
        assert storage.stats()["rows"] == 2
    assert "(1 groups, 2 rows)" in process.start()


def test_a_second_server_on_the_same_data_is_refused(process: Process) -> None:
    process.start()
    command = [sys.executable, "-m", "rockbed", "serve", "--data", str(process.data), "--listen", "127.0.0.1:0"]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert second.stderr.startswith("rockbed: ")
    assert "is open in another PyStorage" in second.stderr


def test_wrong_options_are_said_before_anything_is_made(process: Process) -> None:
    command = [sys.executable, "-m", "rockbed", "serve", "--data", str(process.data), "--listen", "0.0.0.0:1"]
    refused = subprocess.run([*command, "--fsync", "sometimes"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "fsync is 'sometimes'" in refused.stderr
    assert not process.data.exists()


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_a_server_killed_under_load_loses_no_push_and_applies_none_twice(process: Process, kills: int) -> None:
    process.start("--write-back-interval", "0.2")
    done = threading.Event()
    killed: list[float] = []

    def kill() -> None:
        chance = np.random.default_rng(kills)
        while len(killed) < kills and not done.wait(chance.uniform(0.1, 0.6)):
            process.kill()
            killed.append(time.monotonic())
            process.start("--write-back-interval", "0.2")

    killer = threading.Thread(target=kill)
    trainers = [PyStorage(process.target, connection=Connection(retry_s=120)) for _ in range(4)]
    rows = [embedding(storage, optimizer=sgd(1.0)) for storage in trainers]
    killer.start()
    sums = np.zeros(50)
    try:
        while killer.is_alive():
            sums += _trained(rows, 4, 30)
    finally:
        done.set()
        killer.join()
    assert len(killed) == kills
    np.testing.assert_array_equal(rows[0].lookup(np.arange(50))[:, 0], -sums)
    for storage in trainers:
        storage.close()


def test_a_server_told_to_end_under_load_ends_with_0_and_trainers_go_on_with_the_next(process: Process) -> None:
    process.start("--drain", "5")
    done = threading.Event()
    ended: list[int] = []

    def restart() -> None:
        while len(ended) < 2 and not done.wait(0.4):
            ended.append(process.end(signal.SIGTERM)[0])
            process.start("--drain", "5")

    restarter = threading.Thread(target=restart)
    trainers = [PyStorage(process.target, connection=Connection(retry_s=120)) for _ in range(2)]
    rows = [embedding(storage, optimizer=sgd(1.0)) for storage in trainers]
    restarter.start()
    sums = np.zeros(50)
    try:
        while restarter.is_alive():
            sums += _trained(rows, 2, 40)
    finally:
        done.set()
        restarter.join()
    assert ended == [0, 0]
    np.testing.assert_array_equal(rows[0].lookup(np.arange(50))[:, 0], -sums)
    for storage in trainers:
        storage.close()
