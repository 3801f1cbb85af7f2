"""A device that fails, or has no memory left, at any step; device memory that is given back."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import DeviceOutOfMemory, PyEmbedding
from rockbed.errors import StorageFailed
from rockbed.server import device_lookups
from rockbed.storage.gpu.launcher import Launcher
from tests.api.helpers import assert_sound, embedding, engine_of, keys_of, ones, uniform
from tests.gpu.stores import Open, contents, small, stats_of, table_of


@pytest.mark.parametrize("what", ["lookup", "push"])
def test_a_device_without_memory_leaves_no_row_half_filled(
    open_storage: Open, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    storage = open_storage(rows=64)
    rows = small(storage, initializer=uniform())
    keys, others = np.arange(16), np.arange(16, 80)
    rows.apply_gradients(keys, ones(16))
    rows.apply_gradients(others, ones(64))
    before, real, failed, done = contents(rows, keys), launcher.empty, 0, False
    while not done:  # the first array that is asked for finds no memory, then the second, and so on
        rows.lookup(others, train=False)  # the device is full, and has none of the keys
        left = failed

        def empty(*shape: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                raise DeviceOutOfMemory("no memory left")
            return real(*shape)

        with monkeypatch.context() as patch:
            patch.setattr(launcher, "empty", empty)
            try:
                if what == "lookup":
                    rows.lookup(keys, train=False)
                else:
                    rows.apply_gradients(keys, ones(16))
                done = True
            except DeviceOutOfMemory:
                failed += 1
        assert_sound(storage)
    assert failed > 15
    weights, _, counts, _ = contents(rows, keys)
    pushes = int(what == "push")  # one, however often it was tried
    np.testing.assert_array_equal(counts, before[2] + pushes)
    np.testing.assert_array_equal(weights, before[0] - np.float32(0.5 * pushes))


@pytest.mark.parametrize("failing", [("update", "unpin"), ("unpin",)])
def test_a_push_that_the_journal_has_is_never_reported_as_one_that_was_not_applied(
    open_storage: Open, monkeypatch: pytest.MonkeyPatch, failing: tuple[str, ...]
) -> None:
    storage = open_storage()
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1), ones(1))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device is gone")

    for name in failing:
        monkeypatch.setattr(table_of(rows), name, fail)
    with pytest.raises(StorageFailed, match="the device is gone"):
        rows.apply_gradients(keys_of(1), ones(1))
    storage.close()
    assert embedding(open_storage()).lookup(keys_of(1), train=False)[0, 0] == -1


def test_rows_of_a_push_that_is_skipped_altogether_are_not_pinned(open_storage: Open) -> None:
    rows = small(open_storage(rows=64), not_finite="skip_row")
    rows.apply_gradients(np.arange(64), ones(64, value=np.inf))
    rows.apply_gradients(np.arange(64, 128), ones(64))
    assert (rows.lookup(np.arange(64, 128), train=False) == -0.5).all()


def test_a_push_whose_undoing_fails_leaves_new_rows_and_lets_go_of_all(
    open_storage: Open, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(rows=128)
    groups = [embedding(storage, group=number, initializer=uniform()) for number in (1, 2)]
    for rows in groups:
        rows.apply_gradients(np.arange(60), ones(60))

    def no_memory(*_: Any) -> None:
        raise DeviceOutOfMemory("no memory left")

    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            patch.setattr(launcher, "empty", no_memory)
            raise OSError("no room")

        patch.setattr(engine_of(storage).journal, "append", full)
        with pytest.raises(OSError, match="no room"):
            storage.apply_gradients([(rows, np.arange(56, 64), ones(8)) for rows in groups])
    for rows in groups:
        assert (stats_of(rows)["rows"], stats_of(rows)["push_keys"]) == (64, 60)
        rows.apply_gradients(np.arange(100, 164), ones(64))  # which needs all the room there is
        assert contents(rows, np.arange(64))[2].tolist() == [1] * 60 + [0] * 4
    assert_sound(storage)


def test_rows_that_could_not_be_filled_are_not_there(
    open_storage: Open, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, real = open_storage(), launcher.launch
    rows = embedding(storage, initializer=uniform())
    expected = embedding(open_storage("below", device=None), initializer=uniform()).lookup(np.arange(20))

    def launch(module: Any, name: str, *rest: Any) -> None:
        if name == "load_rows":
            raise RuntimeError("not now")
        real(module, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(launcher, "launch", launch)
        with pytest.raises(RuntimeError, match="not now"):
            rows.lookup(np.arange(20))
    np.testing.assert_array_equal(rows.lookup(np.arange(20)), expected)
    assert_sound(storage)


def _dropped(rows: PyEmbedding) -> None:
    rows.storage.drop_group(rows.group)


def _closed(rows: PyEmbedding) -> None:
    rows.storage.close()


@pytest.mark.parametrize("end", [_dropped, _closed])
def test_device_memory_is_given_back_at_once(open_storage: Open, end: Callable[[PyEmbedding], None]) -> None:
    rows = embedding(open_storage())
    rows.apply_gradients(keys_of(1), ones(1))
    data = weakref.ref(table_of(rows).data)
    gc.collect()
    gc.disable()  # what waits for it may wait long, and the memory is wanted for a new group, or a restored store
    try:
        end(rows)
        assert data() is None
    finally:
        gc.enable()


def test_a_lookup_is_done_though_its_group_gets_less_room_meanwhile(
    open_storage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(rows=256)
    rows = small(storage, 256, initializer=uniform())
    real = device_lookups.whole

    def whole(*given: Any) -> Any:
        monkeypatch.setattr(device_lookups, "whole", real)
        embedding(storage, group=9)
        return real(*given)

    monkeypatch.setattr(device_lookups, "whole", whole)
    found = rows.lookup(np.arange(256))
    assert table_of(rows).capacity == 128
    np.testing.assert_array_equal(rows.lookup(np.arange(256), train=False), found)
    assert rows.prefetch(np.arange(256)) == (256, 0)


def test_a_restored_group_is_altered_and_stays_on_the_device(open_storage: Open, tmp_path: Path) -> None:
    storage = open_storage()
    rows = embedding(storage)
    storage.checkpoint(tmp_path / "copy")
    storage.restore_from(tmp_path / "copy")
    rows.alter(duplicates="sequential")
    assert not stats_of(rows)["device"]
    rows.alter(duplicates="sum")
    assert stats_of(rows)["device"]


def test_an_imported_group_takes_no_share_before_it_is_opened(open_storage: Open, tmp_path: Path) -> None:
    source = open_storage("source", device=None)
    embedding(source, group=5).apply_gradients(keys_of(1), ones(1))
    source.export(tmp_path / "tables", format="npz")
    storage = open_storage(rows=200)
    rows = small(storage, 200)
    storage.import_(tmp_path / "tables")
    assert table_of(rows).capacity == 200
    imported = embedding(storage, group=5, weight_min=-9.0)  # whoever opens it first may change it
    assert (table_of(rows).capacity, table_of(imported).capacity) == (100, 100)
    assert imported.lookup(keys_of(1), train=False)[0, 0] == -0.5
