"""Write-back beside pushes: a flush holds every row that it says it holds."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed import PyEmbedding, PyStorage
from rockbed.guarded_lock import GuardedLock
from rockbed.storage import hot_kernels, writeback
from rockbed.storage.record import SLOTS
from rockbed.storage.writeback import WriteBack, _runs
from rockbed.types import F32, I64, U8
from tests.api.helpers import Clock, OpenStorage, as_after_kill, assert_sound, embedding, engine_of, keys_of, ones
from tests.splitmix import mix64
from tests.waiting import until


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


def test_memory_for_records_is_found_before_the_lock_is_taken_and_kept(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writeback, "RUN_BYTES", 1 << 16)
    for wait in ("_IDLE_S", "_LONG_S"):  # pieces stay small, however slow the machine is
        monkeypatch.setattr(writeback, wait, 60.0)
    storage = open_storage()
    rows = embedding(storage)
    n = 5_000  # several runs, and several pieces in each
    lock, room = engine_of(storage).groups[0].lock, engine_of(storage).write_back._room
    kept = room.values(1, 1)  # held, so that no other memory gets its address
    room._bytes[:] = 0xAA  # what is found has been written to: zeros
    touch = writeback._Room.touch
    used = 0

    def noted_touch(self: Any, size: int) -> None:
        assert not lock.unguarded._is_owned()  # type: ignore[attr-defined]
        assert not lock._sharing
        touch(self, size)

    def noted_copy(part: Any, copy: Callable[[], object], dirty: I64, values: U8) -> None:
        nonlocal used
        at, size = address(values) - address(kept), dirty.size * values.shape[1]
        assert 0 <= at <= len(room._bytes) - size
        assert part.lock.is_brief
        if at >= used:
            assert not values[: dirty.size].any()
            used = at + size
        copy()

    monkeypatch.setattr(writeback._Room, "touch", noted_touch)
    copies(monkeypatch, noted_copy)
    for turn in (1, 2):
        rows.apply_gradients(np.arange(n), ones(n))
        storage.flush()
        assert storage.stats()["rows_written_back"] == turn * n
        assert not lock.is_brief
        assert not lock.favours_sharing
    assert 0 < used < 1 << 16
    np.testing.assert_array_equal(rows.lookup(np.arange(n)), ones(n, value=-1.0))
    assert_sound(storage)


def address(array: U8) -> int:
    start: int = array.__array_interface__["data"][0]
    return start


def copies(monkeypatch: pytest.MonkeyPatch, during: Callable[[Any, Any, I64, U8], object]) -> None:
    """Have during(group, copy, rows, records) called where rows of a group would be copied to where records begins; it
    calls copy() itself."""
    copy = WriteBack._copy

    def instead(self: WriteBack, part: Any, dirty: I64, taken: I64, values: U8, stamp: int) -> int:
        copied: list[int] = []
        during(part, lambda: copied.append(copy(self, part, dirty, taken, values, stamp)), dirty, values)
        return copied[0]

    monkeypatch.setattr(WriteBack, "_copy", instead)


@pytest.mark.parametrize("train", [True, False])
def test_small_lookups_go_on_while_rows_are_copied_and_pushes_do_not(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, train: bool
) -> None:
    storage = open_storage()
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1, 2), ones(2))
    rows.lookup(keys_of(1, 2))  # finds every row: from now on none has to be made
    found: list[F32] = []
    pushed = threading.Event()

    def push() -> None:
        rows.apply_gradients(keys_of(2), ones(1))
        pushed.set()

    push_beside = threading.Thread(target=push)

    def beside(part: Any, copy: Callable[[], object], *_: object) -> None:
        lookup = threading.Thread(target=lambda: found.append(rows.lookup(keys_of(1, 2), train=train)))
        lookup.start()
        lookup.join(20)
        assert len(found) == 1
        push_beside.start()
        until(lambda: part.lock._is_claimed)
        assert not pushed.wait(0.05)
        copy()

    with monkeypatch.context() as patch:
        copies(patch, beside)
        storage.flush()
    assert pushed.wait(20)
    push_beside.join(20)
    np.testing.assert_array_equal(found, [ones(2, value=-0.5)])
    assert storage.stats()["dirty_rows"] == 1
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2))[:, 0], [-0.5, -1.0])
    assert_sound(storage)


def test_lookups_go_on_while_the_marks_of_what_was_written_are_taken_off(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage()
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1, 2), ones(2))
    rows.lookup(keys_of(1, 2))
    change, found = hot_kernels.change_flags, list[F32]()

    def beside(flags: U8, at: I64, clear: int, put: int) -> None:
        if clear == hot_kernels.WRITING:
            lookup = threading.Thread(target=lambda: found.append(rows.lookup(keys_of(1, 2))))
            lookup.start()
            lookup.join(20)
            assert len(found) == 1
        change(flags, at, clear, put)

    with monkeypatch.context() as patch:
        patch.setattr(hot_kernels, "change_flags", beside)
        storage.flush()
    np.testing.assert_array_equal(found, [ones(2, value=-0.5)])
    assert storage.stats()["dirty_rows"] == 0
    assert_sound(storage)


def test_a_piece_is_brief_by_its_bytes(open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage()
    wide = embedding(storage, 1_024)
    wide.apply_gradients(np.arange(256), ones(256, 1_024))
    brief: list[bool] = []

    def note(part: Any, copy: Callable[[], object], *_: object) -> None:
        brief.append(part.lock.is_brief)
        copy()

    copies(monkeypatch, note)
    storage.flush()
    assert brief
    assert not any(brief)


def after_20_s(rows: PyEmbedding, clock: Clock) -> None:
    clock.now += 20
    rows.lookup(keys_of(1, 2))


CHANGES: dict[str, Callable[[PyStorage, PyEmbedding, Clock], object]] = {
    "a lookup makes rows": lambda _, rows, __: rows.lookup(keys_of(3, 4)),
    "a lookup renews rows": lambda _, rows, __: rows.lookup(keys_of(1, 2)),
    "a push": lambda _, rows, __: rows.apply_gradients(keys_of(1, 2), ones(2)),
    "a push makes rows": lambda _, rows, __: rows.apply_gradients(keys_of(3, 4), ones(2)),
    "rows are put": lambda storage, rows, _: storage.put_rows(rows.group, keys_of(1, 3), ones(2)),
    "expired rows begin anew": lambda _, rows, clock: after_20_s(rows, clock),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_makes_a_row_dirty_marks_it_as_touched(open_storage: OpenStorage, clock: Clock, change: str) -> None:
    storage = open_storage(clock=clock)
    rows = embedding(storage, ttl=10.0, refresh="lookup")
    rows.apply_gradients(keys_of(1, 2), ones(2))
    storage.flush()
    table = engine_of(storage).groups[0].table
    table.flags[: table.high] &= ~np.uint8(hot_kernels.TOUCHED)  # as eviction leaves rows that are clean
    table.touching = hot_kernels.TOUCHED
    clock.now += 6
    CHANGES[change](storage, rows, clock)
    flags = table.flags[: table.high]
    assert (flags & hot_kernels.DIRTY != 0).sum() == storage.stats()["dirty_rows"] == 2
    assert (flags[flags & hot_kernels.DIRTY != 0] & hot_kernels.TOUCHED != 0).all()
