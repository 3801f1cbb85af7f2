"""Write-back beside pushes: a flush holds every row that it says it holds."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed.guarded_lock import GuardedLock
from rockbed.storage import hot_kernels, writeback
from rockbed.storage.record import SLOTS
from rockbed.storage.writeback import WriteBack, _runs
from tests.api.helpers import OpenStorage, as_after_kill, assert_sound, embedding, engine_of, keys_of, ones
from tests.splitmix import mix64


@pytest.mark.parametrize("kernel", ["slots_of_rows", "sort_by_slot"])
def test_a_row_that_turns_dirty_beside_a_flush_displaces_no_other(
    open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    first = 1
    second = next(key for key in range(2, 200_000) if (mix64(key) ^ mix64(first)) & (SLOTS - 1) == 0)
    storage = open_storage()
    rows = embedding(storage)
    for key in (first, second):  # the first has the lower row number
        rows.apply_gradients(keys_of(key), ones(1))
    storage.flush()
    rows.apply_gradients(keys_of(second), ones(1))
    original, todo = getattr(hot_kernels, kernel), [keys_of(first)]

    def with_a_push_before(*args: Any) -> Any:
        if todo:
            rows.apply_gradients(todo.pop(), ones(1))
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(hot_kernels, kernel, with_a_push_before)
        storage.checkpoint(tmp_path / "checkpoint")
    as_after_kill(storage, tmp_path / "killed")
    for name in ("checkpoint", "killed"):
        found = open_storage(name)
        assert (embedding(found).lookup(keys_of(first, second), train=False) == -1.0).all(), name
        assert_sound(found)


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(any),
    most=st.integers(1, 12),
)
def test_runs_hold_all_rows_in_order_and_cut_no_slot(sizes: list[int], most: int) -> None:
    ends = np.cumsum(sizes)
    rows = np.arange(int(ends[-1]), dtype=np.int32)
    runs = list(_runs(rows, ends, most))
    assert np.concatenate(runs).tolist() == rows.tolist()
    borders = {0, *ends.tolist()}
    for run in runs:
        assert {int(run[0]), int(run[-1]) + 1} <= borders
        slots = {int(np.searchsorted(ends, row, side="right")) for row in run}
        assert run.size <= most or len(slots) == 1


# --- beside calls that wait ---


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether somebody seems to wait for every lock."""
    answer = [True]
    monkeypatch.setattr(GuardedLock, "is_wanted", property(lambda _: answer[0]))
    return answer


def test_write_back_takes_no_rows_while_a_call_waits_for_the_lock(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, wanted: list[bool]
) -> None:
    monkeypatch.setattr(writeback, "_GIVE_WAY_S", 60.0)
    storage = open_storage()
    rows = embedding(storage)
    rows.apply_gradients(np.arange(1_000), ones(1_000))
    flush = threading.Thread(target=storage.flush)
    flush.start()
    time.sleep(0.1)
    stats = storage.stats()
    assert (stats["dirty_rows"], stats["rows_written_back"]) == (1_000, 0)
    wanted[0] = False
    flush.join(20)
    stats = storage.stats()
    assert (stats["dirty_rows"], stats["rows_written_back"]) == (0, 1_000)


def test_calls_that_never_end_do_not_hold_write_back_up(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, wanted: list[bool]
) -> None:
    monkeypatch.setattr(writeback, "_GIVE_WAY_S", 1e-3)
    storage = open_storage()
    rows = embedding(storage)
    rows.apply_gradients(np.arange(1_000), ones(1_000))
    storage.flush()
    assert wanted[0]
    assert storage.stats()["rows_written_back"] == 1_000


def test_memory_for_records_is_found_before_the_lock_is_taken(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writeback, "RUN_BYTES", 1 << 16)
    for wait in ("_IDLE_S", "_LONG_S"):  # pieces stay small, however slow the machine is
        monkeypatch.setattr(writeback, wait, 60.0)
    storage = open_storage()
    rows = embedding(storage)
    n = 5_000  # several runs, and several pieces in each
    rows.apply_gradients(np.arange(n), ones(n))
    lock = engine_of(storage).groups[0].lock.unguarded
    touch, copy = writeback._Room.touch, WriteBack._copy
    touched: list[int] = []
    copied: list[int] = []

    def noted_touch(self: Any, count: int) -> None:
        assert not lock._is_owned()  # type: ignore[attr-defined]
        touched.append(count)
        touch(self, count)

    def noted_copy(self: WriteBack, part: Any, dirty: Any, *others: Any) -> int:
        at = others[3]
        assert touched[-1] >= at + len(dirty)
        assert part.lock.is_brief
        copied.append(copy(self, part, dirty, *others))
        return copied[-1]

    monkeypatch.setattr(writeback._Room, "touch", noted_touch)
    monkeypatch.setattr(WriteBack, "_copy", noted_copy)
    storage.flush()
    assert sum(copied) == n
    assert not engine_of(storage).groups[0].lock.is_brief
    np.testing.assert_array_equal(rows.lookup(np.arange(n)), ones(n, value=-0.5))
    assert_sound(storage)
