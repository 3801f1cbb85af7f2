"""Dump, checkpoint, restore: what leaves a store, and what comes back."""

import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import InvalidConfig, PyStorage, StoreExists, StoreLocked, StoreNotFound, UnknownGroup, UnknownName
from tests.api.helpers import SMALL, Clock, OpenStorage, adagrad, embedding, engine_of, keys_of, ones, push_in_pieces

DAY = 86_400


def _parse(path: Path) -> tuple[list[int], list[int], list[int], dict[tuple[int, int], list[float]]]:
    """damo's dump, read with nothing but struct."""
    data = path.read_bytes()
    (n,) = struct.unpack_from("<i", data)
    groups, dims = (struct.unpack_from(f"<{n}i", data, 4 + 4 * n * i) for i in (0, 1))
    counts = struct.unpack_from(f"<{n}q", data, 4 + 8 * n)
    at, rows = 4 + 16 * n, {}
    for group, dim, count in zip(groups, dims, counts, strict=True):
        for _ in range(count):
            key, its_group, *weights = struct.unpack_from(f"<qi{dim}f", data, at)
            assert its_group == group
            rows[group, key] = weights
            at += 12 + 4 * dim
    assert at == len(data)
    return list(groups), list(dims), list(counts), rows


def _filled(storage: PyStorage, clock: Clock) -> None:
    one, two = embedding(storage, dim=2, group=1), embedding(storage, dim=3, group=2, optimizer=adagrad())
    one.apply_gradients(keys_of(5, -6), ones(2, 2))
    clock.now += 3 * DAY
    one.apply_gradients(keys_of(7), ones(1, 2))
    one.apply_gradients(keys_of(7), ones(1, 2))
    two.apply_gradients(keys_of(2**62), ones(1, 3))


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        (None, {(1, 5), (1, -6), (1, 7), (2, 2**62)}),
        ({"expire_days": 2}, {(1, 7), (2, 2**62)}),
        ({"min_count": 2}, {(1, 7)}),
        ({"group": 1}, {(1, 5), (1, -6), (1, 7)}),
        ({"group": 1, "expire_days": 2, "min_count": 1}, {(1, 7)}),
    ],
)
def test_a_dump_has_damos_layout_and_the_rows_that_meet_the_condition(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, condition: Any, kept: set[tuple[int, int]]
) -> None:
    storage = open_storage(clock=clock)
    _filled(storage, clock)
    assert storage.dump(tmp_path / "dump", condition) == len(kept)
    groups, dims, counts, rows = _parse(tmp_path / "dump")
    assert groups == ([1] if condition and "group" in condition else [1, 2])
    assert dims == [2, 3][: len(groups)]
    assert sum(counts) == len(kept)
    weights = {(1, 5): [-0.5] * 2, (1, -6): [-0.5] * 2, (1, 7): [-1.0] * 2, (2, 2**62): [-0.5] * 3}
    assert rows == {key: weights[key] for key in kept}


@pytest.mark.embedded  # on a server there are no paths
def test_a_dump_is_refused_where_it_cannot_be_right(storage: PyStorage, clock: Clock, tmp_path: Path) -> None:
    _filled(storage, clock)
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(StoreExists):
        storage.dump(tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"mine"
    with pytest.raises(UnknownName, match="expire_days, min_count, group"):
        storage.dump(tmp_path / "dump", {"days": 1})
    with pytest.raises(InvalidConfig, match="min_count is -1"):
        storage.dump(tmp_path / "dump", {"min_count": -1})
    with pytest.raises(UnknownGroup):
        storage.dump(tmp_path / "dump", {"group": 9})
    for condition in ("group", ["group"], 3):
        with pytest.raises(InvalidConfig, match="dump condition: expected"):
            storage.dump(tmp_path / "dump", condition)  # type: ignore[arg-type]
    with pytest.raises(StoreNotFound, match="create it first"):
        storage.dump(tmp_path / "nowhere" / "dump")
    with pytest.raises(StoreExists):
        storage.dump(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "there"]


def test_a_checkpoint_is_a_store_that_trains_on(open_storage: OpenStorage, clock: Clock, tmp_path: Path) -> None:
    storage = open_storage(clock=clock, memory_budget=SMALL)
    rows = embedding(storage, optimizer=adagrad(), admission={"name": "min_count", "count": 2})
    for _ in range(2):
        rows.lookup(np.arange(300))
    push_in_pieces(rows, np.arange(300))
    rows.lookup(keys_of(1_000))
    storage.checkpoint(tmp_path / "checkpoint")
    wanted = rows.lookup(np.arange(300), train=False)
    push_in_pieces(rows, np.arange(300))
    PyStorage.restore(tmp_path / "checkpoint", tmp_path / "again")
    restored = embedding(
        open_storage("again", clock=clock), optimizer=adagrad(), admission={"name": "min_count", "count": 2}
    )
    np.testing.assert_array_equal(restored.lookup(np.arange(300), train=False), wanted)
    push_in_pieces(restored, np.arange(300))  # slots came along: the same second step
    np.testing.assert_array_equal(
        restored.lookup(np.arange(300), train=False), rows.lookup(np.arange(300), train=False)
    )
    restored.lookup(keys_of(1_000))  # the first sighting of key 1000 came along too
    assert engine_of(restored.storage).group(0).counters.rows == 301


def test_a_checkpoint_under_load_is_one_moment_of_the_whole_store(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage(write_back_interval=0.02, memory_budget=1 << 20)
    one, two = embedding(storage, group=1), embedding(storage, group=2, optimizer=adagrad(1.0))
    keys, stop = np.arange(400), threading.Event()

    def train() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            storage.apply_gradients([(one, keys, ones(400)), (two, keys, ones(400))], request=("t", step))

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for i in range(4):
            storage.checkpoint(tmp_path / f"checkpoint-{i}")
    finally:
        stop.set()
        thread.join()
    for i in range(4):
        PyStorage.restore(tmp_path / f"checkpoint-{i}", tmp_path / f"restored-{i}")
        restored = open_storage(f"restored-{i}")
        steps = restored.last_request("t")
        assert (embedding(restored, group=1).lookup(keys, train=False) == -0.5 * steps).all()
        # Adagrad with gradients of 1: w = -sum over t of 1/sqrt(t), which needs weights and slots of the same step
        wanted = -sum(1 / np.sqrt(t) for t in range(1, steps + 1))
        found = embedding(restored, group=2, optimizer=adagrad(1.0)).lookup(keys, train=False)
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
        assert (found == found[0]).all()
        assert restored.check().problems == []


def test_a_store_that_is_being_written_is_no_source_of_a_restore(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(np.arange(3), ones(3))
    with pytest.raises(StoreLocked):
        PyStorage.restore(storage.path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    storage.close()
    PyStorage.restore(storage.path, tmp_path / "copy")
    assert (embedding(open_storage("copy")).lookup(np.arange(3), train=False) == -0.5).all()


def test_paths_that_are_taken_or_no_checkpoint_are_refused(storage: PyStorage, tmp_path: Path) -> None:
    embedding(storage).apply_gradients(keys_of(1), ones(1))
    storage.checkpoint(tmp_path / "checkpoint")
    with pytest.raises(StoreExists):
        storage.checkpoint(tmp_path / "checkpoint")
    with pytest.raises(StoreNotFound, match="no checkpoint"):
        PyStorage.restore(tmp_path / "nothing", tmp_path / "new")
    with pytest.raises(StoreExists):
        PyStorage.restore(tmp_path / "checkpoint", tmp_path / "checkpoint")
    assert not (tmp_path / "new").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
