"""What reads, copies and removes rows sees those on the device; crashes, threads, and no device at all."""

import builtins
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import DeviceUnavailable, Feature, FusedEmbedding, InvalidConfig, PyStorage, Ragged
from rockbed.errors import StorageFailed
from rockbed.server import scanning, shrinking
from rockbed.server.daemon_settings import load
from rockbed.server.engine import Engine
from rockbed.server.scanning import Rows
from rockbed.storage.gpu import devices
from rockbed.storage.gpu.launcher import Launcher
from tests.api.helpers import (
    QUIET,
    Clock,
    Served,
    adagrad,
    as_after_kill,
    assert_sound,
    embedding,
    engine_of,
    keys_of,
    ones,
    uniform,
)
from tests.gpu.stores import Open, contents, small, stats_of, table_of
from tests.source_tree import ROOT

SCRIPT = """
import sys
import numpy as np
from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.storage.gpu import devices
from tests.gpu.host_launcher import HostLauncher
devices.open_launcher = lambda name: HostLauncher()
storage = PyStorage(sys.argv[1], device="cuda:0", device_memory=1 << 13, memory_budget=1 << 16)
rows = PyEmbedding(storage, PyOptimizer(name="sgd", gamma=1.0), PyInitializer(name="zeros"), 4, 0)
for i in range(10**6):
    keys = (np.arange(40) * 7 + 11 * i) % 400
    rows.apply_gradients(keys, np.full((40, 4), -1, np.float32))
    print(i, flush=True)
    if i % 9 == 8:
        storage.flush()
"""


def changed(storage: PyStorage, **options: Any) -> Any:
    """A group whose rows 0..39 are on disk as -0.5, and on the device as -1."""
    rows = embedding(storage, **options)
    rows.apply_gradients(np.arange(40), ones(40))
    storage.flush()
    rows.apply_gradients(np.arange(40), ones(40))
    assert stats_of(rows)["device_rows"] == 40
    assert (stats_of(rows)["dirty_rows"], stats_of(rows)["device_dirty_rows"]) == (0, 40)
    return rows


# --- what reads rows ---


def test_a_checkpoint_has_the_rows_of_the_device(open_storage: Open, tmp_path: Path) -> None:
    storage = open_storage()
    rows = changed(storage)
    storage.checkpoint(tmp_path / "copy")
    rows.apply_gradients(np.arange(40), ones(40))
    with PyStorage(tmp_path / "copy", read_only=True) as copy:
        assert (embedding(copy).lookup(np.arange(40), train=False) == -1).all()
    storage.restore_from(tmp_path / "copy")
    assert (rows.lookup(np.arange(40), train=False) == -1).all()
    assert stats_of(rows)["device_rows"] == 40
    rows.apply_gradients(np.arange(40), ones(40))
    assert (rows.lookup(np.arange(40), train=False) == -1.5).all()


def test_an_export_and_get_rows_show_the_rows_of_the_device(open_storage: Open, tmp_path: Path) -> None:
    storage = open_storage()
    rows = changed(storage)
    found = storage.get_rows(rows.group, np.arange(45))
    assert (found.weights[:40] == -1).all()
    assert found.update_num.tolist() == [2] * 40 + [0] * 5
    assert [int(each.sum()) for each in (found.in_memory, found.dirty)] == [40, 40]
    storage.export(tmp_path / "tables", format="npz")
    with PyStorage(tmp_path / "other") as other:
        other.import_(tmp_path / "tables")
        assert (embedding(other).lookup(np.arange(40), train=False) == -1).all()


def test_check_compares_the_device_with_what_is_below(open_storage: Open) -> None:
    storage = open_storage()
    rows = changed(storage)
    assert_sound(storage)
    table = table_of(rows)
    table.data[:] = 0.125
    assert "40 rows on the device differ from the copy below" in storage.check().problems[0]


def test_a_read_only_store_is_looked_up_on_the_device(open_storage: Open) -> None:
    storage = open_storage()
    changed(storage)
    storage.close()
    rows = embedding(open_storage(read_only=True, rows=64))
    assert (rows.lookup(np.arange(-40, 40), train=False)[:, 0] == np.repeat([0, -1], 40)).all()
    assert stats_of(rows)["device_rows"] == 40


# --- what changes and removes rows ---


@pytest.mark.parametrize("mode", ["replace", "keep"])
def test_rows_are_put_over_those_on_the_device(open_storage: Open, mode: str) -> None:
    storage = open_storage()
    rows = changed(storage)
    storage.put_rows(rows.group, np.arange(30, 50), ones(20, value=7), mode=mode)
    expected = np.repeat([-1, 7 if mode == "replace" else -1, 7], [30, 10, 10])
    np.testing.assert_array_equal(rows.lookup(np.arange(50), train=False)[:, 0], expected)
    rows.apply_gradients(np.arange(50), ones(50))
    np.testing.assert_array_equal(rows.lookup(np.arange(50), train=False)[:, 0], expected - 0.5)
    assert_sound(storage)


def test_shrink_judges_rows_as_they_are_on_the_device_and_removes_them(open_storage: Open, clock: Clock) -> None:
    storage = open_storage(clock=clock)
    rows = changed(storage)
    clock.now += 100
    rows.apply_gradients(np.arange(10), ones(10))
    assert storage.shrink(max_age=50).removed[rows.group]["age"] == 30
    assert stats_of(rows)["device_rows"] == 10
    np.testing.assert_array_equal(rows.lookup(np.arange(40), train=False)[:, 0], np.repeat([-1.5, 0], [10, 30]))
    assert storage.shrink(min_norm=100).removed[rows.group]["norm"] == 10
    assert (stats_of(rows)["device_rows"], stats_of(rows)["rows"]) == (0, 0)


def test_a_row_that_is_pushed_while_shrink_looks_on_stays(open_storage: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage()
    rows = changed(storage)

    def scan(*given: Any) -> Iterator[Rows]:
        for found in scanning.scan(*given):
            rows.apply_gradients(keys_of(5), ones(1, value=100))
            yield found

    monkeypatch.setattr(shrinking, "scan", scan)
    storage.shrink(min_norm=50)
    assert rows.lookup(np.arange(40), train=False)[:, 0].tolist() == [0] * 5 + [-51] + [0] * 34


def test_the_sweeper_sees_that_a_row_lives_on_the_device(open_storage: Open, clock: Clock) -> None:
    storage = open_storage(clock=clock, ttl=10, sweep_rows_s=1 << 20)
    rows = changed(storage)
    engine_of(storage)._background.stop()
    sweeper = engine_of(storage)._background._sweeper
    clock.now += 8
    rows.apply_gradients(np.arange(10), ones(10))
    clock.now += 5
    storage.flush()
    assert sweeper.turn(10.0) == 30
    np.testing.assert_array_equal(rows.lookup(np.arange(40), train=False)[:, 0], np.repeat([-1.5, 0], [10, 30]))
    clock.now += 20
    assert sweeper.turn(10.0) == 10
    assert stats_of(rows)["device_rows"] == 0


def test_a_dropped_group_leaves_nothing_on_the_device(open_storage: Open) -> None:
    storage = open_storage()
    rows = changed(storage)
    storage.drop_group(rows.group)
    again = embedding(storage, 8, initializer=uniform())
    assert stats_of(again)["device_rows"] == 0
    assert again.lookup(np.arange(40), train=False).any() == 0
    again.apply_gradients(np.arange(40), ones(40, 8))
    assert_sound(storage)


# --- crashes ---


@pytest.mark.parametrize("device", [True, False])
def test_after_a_crash_the_journal_brings_back_what_was_on_the_device(
    open_storage: Open, tmp_path: Path, device: bool
) -> None:
    storage = open_storage(rows=64 * 2, memory_budget=1 << 16)
    rows = embedding(storage, optimizer=adagrad(), initializer=uniform())
    rng = np.random.default_rng(3)
    for step in range(12):
        rows.apply_gradients(rng.permutation(300)[:50], rng.normal(size=(50, 4)).astype(np.float32))
        if step == 7:
            storage.flush()
    before = contents(rows, np.arange(300))
    as_after_kill(storage, tmp_path / "killed")
    killed = open_storage("killed", **({} if device else {"device": None}))
    again = embedding(killed, optimizer=adagrad(), initializer=uniform())
    for one, other in zip(before, contents(again, np.arange(300)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert_sound(killed)


def test_kill_9_loses_no_push_that_was_answered(open_storage: Open, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = -1
        for line in process.stdout:
            last = int(line)
            if last == 24:
                process.send_signal(signal.SIGKILL)
                break
        last = max([last, *map(int, process.stdout.read().split())])
    storage = open_storage(device=None)
    found = embedding(storage).lookup(np.arange(400), train=False)[:, 0]
    pushes = [(np.arange(40) * 7 + 11 * i) % 400 for i in range(last + 2)]
    answered = np.bincount(np.concatenate(pushes[:-1]), minlength=400)
    one_more = np.bincount(np.concatenate(pushes), minlength=400)
    assert found.tolist() in (answered.tolist(), one_more.tolist())
    assert_sound(storage)


def test_an_update_that_fails_after_the_journal_ends_the_session_and_is_made_up_for(
    open_storage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage()
    rows = changed(storage)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(table_of(rows), "update", fail)
    with pytest.raises(StorageFailed, match="the device is gone"):
        rows.apply_gradients(np.arange(40), ones(40))
    storage.close()
    assert (embedding(open_storage()).lookup(np.arange(40), train=False) == -1.5).all()


# --- threads ---


def test_threads_that_train_one_group_and_its_neighbour_lose_nothing(open_storage: Open) -> None:
    storage = open_storage(rows=64 * 2 + 40, write_back_interval=0.05)
    groups = [embedding(storage, group=number) for number in (1, 2)]
    problems: list[BaseException] = []

    def train(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for step in range(10):
                keys = rng.permutation(120)[:25]
                rows = groups[(seed + step) % 2]
                rows.lookup(keys)
                rows.apply_gradients(keys, ones(25))
                counts[rows.group][seed][keys] += 1
        except BaseException as problem:
            problems.append(problem)

    counts = {rows.group: np.zeros((4, 120)) for rows in groups}
    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    for rows in groups:
        expected = counts[rows.group].sum(axis=0) * -0.5
        np.testing.assert_array_equal(rows.lookup(np.arange(120), train=False)[:, 0], expected)
    assert_sound(storage)


def test_groups_are_opened_and_altered_while_others_train(open_storage: Open) -> None:
    storage = open_storage(rows=64 * 4)
    rows = small(storage, 256)
    problems: list[BaseException] = []

    def train() -> None:
        try:
            for _ in range(15):
                rows.lookup(np.arange(30))
                rows.apply_gradients(np.arange(30), ones(30))
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=train)
    thread.start()
    for number in (1, 2, 3):
        embedding(storage, group=number).apply_gradients(keys_of(1), ones(1))
        rows.alter(duplicates="sequential" if number % 2 else "sum")
    thread.join()
    assert problems == []
    assert (rows.lookup(np.arange(30), train=False) == -7.5).all()


# --- a server ---


def test_a_server_looks_up_and_trains_on_its_device(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "open_launcher", lambda name: launcher)
    storage = Served(tmp_path / "store", **QUIET, device="cuda:0", device_memory=1 << 16)
    try:
        rows = embedding(storage)
        fused = FusedEmbedding([Feature("x", rows, "sum"), Feature("s", rows, None)])
        batch = {"x": Ragged.from_lists([[1, 2], []]), "s": Ragged.from_lists([[2], [3]])}
        fused.apply_gradients(fused.lookup(batch), ones(2), {"s": ones(2)})
        out = fused.lookup(batch, train=False)
        assert (out["x"][:, 0].tolist(), out["s"][:, 0].tolist()) == ([-1.5, 0], [-1, -0.5])
        assert (stats_of(rows)["device"], stats_of(rows)["device_rows"]) == (True, 3)
    finally:
        storage.close()


def test_the_daemon_has_settings_for_it() -> None:
    settings = load(None, {"ROCKBED_DEVICE": "cuda:1"}, {"data": "x", "device_memory": "2GiB"}).settings
    assert (settings.store().device, settings.store().device_memory) == ("cuda:1", 2 << 30)
    with pytest.raises(InvalidConfig, match="device is 'tpu', not 'cuda:0'"):
        load(None, {}, {"data": "x", "device": "tpu"})


# --- without one ---


def test_without_cupy_nothing_is_made_and_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "cupy":
            raise ModuleNotFoundError("No module named 'cupy'", name="cupy")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DeviceUnavailable, match=r"device='cuda:0': .*pip install 'rockbed\[gpu\]'.*device=None"):
        PyStorage(tmp_path / "store", device="cuda:0")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "gpu"}, "device is 'gpu', not 'cuda:0'"),
        ({"device": 0}, "device is 0, not 'cuda:0'"),
        ({"device_memory": 1 << 20}, "device_memory is for a device"),
        ({"device": "cuda:0", "device_memory": 10}, r"device_memory is 10, outside 4096\.\."),
    ],
)
def test_a_device_that_cannot_be_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        PyStorage(tmp_path / "store", **options)


def test_a_server_has_its_own_device() -> None:
    with pytest.raises(InvalidConfig, match="has its own settings: device, device_memory cannot be given"):
        PyStorage("grpc://127.0.0.1:1", device="cuda:0", device_memory=1 << 20)


def test_without_a_device_nothing_is_different(tmp_path: Path) -> None:
    with PyStorage(tmp_path / "store", device="cpu") as storage:
        rows = embedding(storage)
        rows.apply_gradients(keys_of(1), ones(1))
        assert not stats_of(rows)["device"]
        assert isinstance(engine_of(storage), Engine)
        assert engine_of(storage).device is None
