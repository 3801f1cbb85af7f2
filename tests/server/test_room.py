"""Calls that need room in memory while rows are written back: they wait for as much as they need, and no longer."""

import threading
from typing import Any

import numpy as np
import pytest

from rockbed import PyEmbedding
from rockbed.errors import BatchTooLarge
from rockbed.server import space
from rockbed.storage import writeback
from rockbed.storage.hot import NeedSpace
from rockbed.storage.rows import RowFiles
from tests.api.helpers import SMALL, OpenStorage, assert_sound, embedding, engine_of, ones, push_in_pieces

RUN_ROWS = 100
WAIT_S = 20.0


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of about RUN_ROWS rows."""
    monkeypatch.setattr(writeback, "RUN_BYTES", 64 * RUN_ROWS)


def full_of_dirty_rows(open_storage: OpenStorage) -> tuple[PyEmbedding, int]:
    """A group whose rows 0 to n - 1 take all memory, each newer than on disk; n."""
    storage = open_storage(memory_budget=SMALL)
    rows = embedding(storage)
    rows.lookup(np.arange(1))
    n = engine_of(storage).groups[0].table.capacity
    push_in_pieces(rows, np.arange(n), size=50)
    stats = storage.stats()
    assert stats["dirty_rows"] == n
    assert stats["rows_written_back"] == 0
    return rows, n


def test_a_call_writes_back_what_it_needs_and_not_all_that_is_dirty(open_storage: OpenStorage) -> None:
    rows, n = full_of_dirty_rows(open_storage)
    rows.lookup(np.arange(n, n + 10))
    stats = rows.storage.stats()
    assert 10 <= stats["rows_written_back"] <= 2 * RUN_ROWS < n / 5
    rows.apply_gradients(np.arange(n + 10, n + 10 + 3 * RUN_ROWS), ones(3 * RUN_ROWS))
    stats = rows.storage.stats()
    assert 3 * RUN_ROWS <= stats["rows_written_back"] <= 7 * RUN_ROWS
    np.testing.assert_array_equal(rows.lookup(np.arange(n), train=False), ones(n, value=-0.5))
    assert_sound(rows.storage)


@pytest.mark.parametrize(("counts", "times"), [(16, 8), (1, 128)])
def test_a_call_that_never_finds_room_gives_up_whoever_makes_it(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, counts: int, times: int
) -> None:
    engine = engine_of(embedding(open_storage()).storage)
    asked: list[NeedSpace] = []

    def make_space(_: object, need: NeedSpace) -> int:
        asked.append(need)
        return counts

    def call() -> None:
        raise NeedSpace(engine.groups[0].table, 7)

    monkeypatch.setattr(space, "make_space", make_space)
    with pytest.raises(BatchTooLarge, match="the push needs 7 more rows"):
        space.with_space(engine, call, "the push")
    assert len(asked) == times


def test_a_call_goes_on_as_soon_as_a_flush_under_way_has_made_room(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, n = full_of_dirty_rows(open_storage)
    new = np.arange(n, n + RUN_ROWS)
    original, make_space = RowFiles.put_run, space.make_space
    runs: list[int] = []
    waits, stuck, go_on = threading.Event(), threading.Event(), threading.Event()

    def put_run(self: RowFiles, *args: Any) -> None:
        runs.append(len(args[0]))
        if len(runs) == 1:
            call.start()
            assert waits.wait(WAIT_S)
        if len(runs) == 4:
            stuck.set()
            assert go_on.wait(WAIT_S)
        original(self, *args)

    def waiting(*args: Any) -> int:
        waits.set()
        return make_space(*args)

    monkeypatch.setattr(RowFiles, "put_run", put_run)
    monkeypatch.setattr(space, "make_space", waiting)

    def train() -> None:
        rows.lookup(new)
        rows.apply_gradients(new, ones(new.size))

    call = threading.Thread(target=train)
    flush = threading.Thread(target=rows.storage.flush)
    flush.start()
    try:
        assert stuck.wait(WAIT_S)
        call.join(WAIT_S)
        assert not call.is_alive()
        assert flush.is_alive()
        assert len(runs) == 4  # nobody else has written
    finally:
        go_on.set()
        flush.join()
        call.join()
    assert sum(runs) >= n
    np.testing.assert_array_equal(rows.lookup(np.arange(n + RUN_ROWS), train=False), ones(n + RUN_ROWS, value=-0.5))
    assert_sound(rows.storage)
