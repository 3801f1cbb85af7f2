"""The background thread: what it does unasked, what it does when that fails, and when pushes have to wait for it."""

import itertools
import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import PyEmbedding, PyStorage, StorageFull
from rockbed.errors import StorageCorrupt, StorageFailed
from rockbed.server import background
from rockbed.storage.rows import RowFiles
from tests.api.helpers import SMALL, Clock, OpenStorage, as_after_kill, assert_sound, embedding, engine_of, ones
from tests.waiting import until

LIMIT = 1 << 20
"""The smallest limit of a journal; a push of `fill` takes a quarter of it."""
KEYS = np.arange(1_000)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_TICK_S", 0.02)
    monkeypatch.setattr(background, "_PAUSE_MAX_S", 0.02)
    monkeypatch.setattr(background, "_BALANCE_S", 0.02)


class Broken:
    """A function that fails as often as it is called."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.calls += 1
        raise self.error


FULL = StorageFull("no room left: a test says so")


def fill(rows: PyEmbedding) -> None:
    rows.apply_gradients(KEYS, ones(KEYS.size, rows.dim))


def fill_up(storage: PyStorage, rows: PyEmbedding) -> int:
    """Push until the journal is at its limit. Returns how often."""
    pushed = 0
    while storage.stats()["journal_bytes"] < LIMIT:
        fill(rows)
        pushed += 1
    return pushed


def wide(storage: PyStorage, group: int = 0) -> PyEmbedding:
    return embedding(storage, 64, group)


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# --- what it does unasked ---


def test_pushed_rows_reach_the_disk_after_the_interval(open_storage: OpenStorage) -> None:
    storage = open_storage(still=False, write_back_interval=0.05)
    rows = embedding(storage)
    rows.apply_gradients(KEYS, ones(KEYS.size))
    until(lambda: storage.stats()["flushed_lsn"] == storage.stats()["last_lsn"])
    assert storage.stats()["dirty_rows"] == 0
    assert storage.stats()["rows_written_back"] == KEYS.size


def test_rows_that_lookups_made_or_refreshed_reach_the_disk_as_well(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(still=False, write_back_interval=0.05, ttl=100, clock=clock)
    rows = embedding(storage, refresh="lookup")
    for written in (KEYS.size, 2 * KEYS.size):
        rows.lookup(KEYS)
        until(lambda: storage.stats()["dirty_rows"] == 0)
        until(lambda: storage.stats()["rows_written_back"] == written)  # noqa: B023 - called before it changes
        clock.now += 50


def test_nothing_is_written_where_nothing_has_changed(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(still=False, write_back_interval=0.05)
    rows = embedding(storage, admission={"name": "min_count", "count": 2})
    rows.lookup(KEYS)
    until(lambda: not engine_of(storage).has_changed())
    flush = Broken(AssertionError("there is nothing to write"))
    with monkeypatch.context() as patch:
        patch.setattr(engine_of(storage), "flush", flush)
        rows.lookup(KEYS[:0])
        rows.lookup(KEYS, train=False)
        time.sleep(0.3)
        assert flush.calls == 0
        rows.lookup(KEYS[:1])
        until(lambda: flush.calls > 0)


@pytest.mark.parametrize("options", [{"memory_budget": 1 << 19}, {"journal_bytes_max": LIMIT}])
def test_write_back_does_not_wait_for_its_interval_when_memory_or_the_journal_fills(
    open_storage: OpenStorage, options: dict[str, Any]
) -> None:
    storage = open_storage(still=False, **options)
    rows = wide(storage)
    for _ in range(3):
        rows.apply_gradients(KEYS[:900], ones(900, 64))
    until(lambda: storage.stats()["flushed_lsn"] == storage.stats()["last_lsn"])
    assert storage.stats()["rows_written_back"] >= 900
    until(lambda: storage.stats()["journal_bytes"] < 1_000)


@pytest.mark.parametrize("given_up", [False, True])
def test_write_back_lets_compaction_catch_up_for_a_while(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, given_up: bool
) -> None:
    files = [1_000]
    monkeypatch.setattr(RowFiles, "uncompacted_files", property(lambda _: files[0]))
    monkeypatch.setattr(background, "_CATCH_UP_S", 0.5 if given_up else 60.0)
    storage = open_storage(still=False, journal_bytes_max=LIMIT)
    began = time.monotonic()
    rows = wide(storage)
    for _ in range(3):
        rows.apply_gradients(KEYS[:900], ones(900, 64))  # enough to press
    if not given_up:
        time.sleep(0.3)
        assert storage.stats()["rows_written_back"] == 0
        files[0] = 0
    until(lambda: storage.stats()["rows_written_back"] >= 900)
    assert not given_up or time.monotonic() - began >= 0.4


def test_files_are_merged_when_those_of_two_write_backs_are_there_or_nothing_changes_any_more(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    pace = RowFiles.pace_compaction

    def noted(self: RowFiles, most: int) -> None:
        told.append((most, self.uncompacted_files))
        pace(self, most)

    monkeypatch.setattr(RowFiles, "pace_compaction", noted)
    storage = open_storage(still=False, write_back_interval=0.3)
    tables = [wide(storage, group) for group in range(5)]

    def pushed_on() -> bool:
        before = int(storage.stats()["flushed_lsn"])
        for rows in tables:
            rows.apply_gradients(KEYS, ones(KEYS.size, 64))
        until(lambda: storage.stats()["flushed_lsn"] == storage.stats()["last_lsn"] > before)
        return (10, 5) in told  # five files wait for as many more

    until(pushed_on)
    until(lambda: told[-1][0] == 4 and told[-1][1] < 4)


@pytest.mark.parametrize(("fsync", "synced"), [("interval", True), ("never", False)])
def test_the_journal_is_synced_as_the_policy_says(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, fsync: str, synced: bool
) -> None:
    storage = open_storage(still=False, fsync=fsync, fsync_interval=0.05)
    times: list[float] = []
    sync = engine_of(storage).journal.sync

    def noted() -> None:
        times.append(time.monotonic())
        sync()

    monkeypatch.setattr(engine_of(storage).journal, "sync", noted)
    time.sleep(0.5)
    monkeypatch.undo()
    assert (len(times) > 2) == synced
    assert all(b - a > 0.04 for a, b in itertools.pairwise(times))


def test_the_sweeper_is_given_the_time_that_passes_whatever_wakes_the_thread(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(still=False)
    thread = engine_of(storage)._background
    given: list[float] = []
    monkeypatch.setattr(thread._sweeper, "turn", given.append)
    begun = time.monotonic()
    while time.monotonic() < begun + 0.5:
        thread._wake.set()
        time.sleep(0.0005)
    until(lambda: len(given) > 30)
    assert 0.3 < sum(given) < time.monotonic() - begun + 0.1


def test_expired_rows_go_and_memory_is_shared_without_being_asked_for(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(still=False, ttl=100, sweep_rows_s=1 << 20, memory_budget=SMALL, clock=clock)
    embedding(storage, group=1).lookup(np.arange(5_000))
    clock.now += 50
    other = embedding(storage, group=2)
    other.lookup(np.arange(2_000))
    begun = engine_of(storage).groups[2].table.high
    until(lambda: other.lookup(np.arange(2_000)).size and engine_of(storage).groups[2].table.high > 1.5 * begun)
    clock.now += 50
    until(lambda: storage.stats()["rows"] == 2_000)
    assert_sound(storage)


# --- when it fails ---


def test_what_fails_is_told_logged_once_and_tried_again_until_it_works(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(still=False, write_back_interval=0.01)
    rows = embedding(storage)
    for turn in (1, 2):  # a second failure after it worked is news
        flush = Broken(FULL)
        with monkeypatch.context() as patch:
            patch.setattr(engine_of(storage), "flush", flush)
            rows.apply_gradients(KEYS, ones(KEYS.size))  # goes on
            until(lambda: flush.calls >= 3)  # noqa: B023
            assert storage.stats()["background_error"] == str(FULL)
            assert len(errors_of(caplog)) == turn
            assert str(FULL) in errors_of(caplog)[-1]
            assert str(storage.path) in errors_of(caplog)[-1]
        until(lambda: storage.stats()["background_error"] is None)
        until(lambda: storage.stats()["flushed_lsn"] == storage.stats()["last_lsn"])
        assert "works again" in caplog.records[-1].getMessage()
    np.testing.assert_array_equal(rows.lookup(KEYS), np.full((KEYS.size, 4), -1.0))
    assert_sound(storage)


def test_what_keeps_failing_is_tried_ever_less_often(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_PAUSE_MAX_S", 5.0)
    storage = open_storage(still=False, write_back_interval=0.01)
    flush = Broken(FULL)
    with monkeypatch.context() as patch:
        patch.setattr(engine_of(storage), "flush", flush)
        embedding(storage).apply_gradients(KEYS, ones(KEYS.size))
        until(lambda: flush.calls >= 2)
        pauses = [engine_of(storage)._background._write_back.pause_s]
        while pauses[-1] < 5.0:
            engine_of(storage)._background._write_back.again_at = 0.0
            calls = flush.calls
            until(lambda: flush.calls > calls)  # noqa: B023
            until(lambda: engine_of(storage)._background._write_back.pause_s > pauses[-1])
            pauses.append(engine_of(storage)._background._write_back.pause_s)
        assert all(b == min(2 * a, 5.0) for a, b in itertools.pairwise(pauses))


def test_a_job_that_fails_does_not_stop_the_others(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(
        still=False, write_back_interval=0.01, ttl=1_000, sweep_rows_s=10_000, journal_bytes_max=LIMIT
    )
    rows = wide(storage)
    rows.apply_gradients(KEYS[:1], ones(1, 64))
    scan = Broken(StorageCorrupt("a test says so"))
    with monkeypatch.context() as patch:
        patch.setattr(engine_of(storage).files, "scan", scan)
        until(lambda: storage.stats()["background_error"] == "a test says so")
        for _ in range(12):  # three times what the journal may hold: it is written back, so no push is refused
            fill(rows)
        until(lambda: storage.stats()["dirty_rows"] == 0)
        calls = scan.calls
        until(lambda: scan.calls > calls + 2)
        # turns in which rows in memory leave it no time for the disk: that it did not fail there means nothing
        engine_of(storage)._background._sweeper._allowance = -1e9
        time.sleep(0.2)
        assert storage.stats()["background_error"] == "a test says so"
        assert len(errors_of(caplog)) == 1
        engine_of(storage)._background._sweeper._allowance = 0.0
    until(lambda: storage.stats()["background_error"] is None)
    np.testing.assert_array_equal(rows.lookup(KEYS[1:])[:, 0], np.full(KEYS.size - 1, -6.0))
    assert_sound(storage)


def test_a_journal_that_cannot_be_synced_is_told(open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(still=False, fsync_interval=0.01)
    rows = embedding(storage)
    with monkeypatch.context() as patch:
        patch.setattr(engine_of(storage).journal, "sync", Broken(StorageFailed("a test says so")))
        until(lambda: storage.stats()["background_error"] == "a test says so")
        rows.apply_gradients(KEYS, ones(KEYS.size))
    until(lambda: storage.stats()["background_error"] is None)


def test_an_error_that_nobody_foresaw_does_not_end_the_thread(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(still=False, write_back_interval=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(engine_of(storage), "flush", Broken(ValueError("a bug")))
        embedding(storage).apply_gradients(KEYS, ones(KEYS.size))
        until(lambda: storage.stats()["background_error"] == "a bug")
    until(lambda: storage.stats()["background_error"] is None)
    assert len(errors_of(caplog)) == 1
    assert next(record for record in caplog.records if record.levelno >= logging.ERROR).exc_info is not None


# --- when pushes have to wait ---


def test_pushes_are_refused_only_when_the_journal_is_full_and_cannot_be_written_back(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    storage = open_storage(still=False, journal_bytes_max=LIMIT)
    rows, other = wide(storage), wide(storage, 1)
    with monkeypatch.context() as patch:
        patch.setattr(engine_of(storage).write_back, "write", Broken(FULL))
        pushed = fill_up(storage, rows)
        until(lambda: storage.stats()["background_error"] == str(FULL))
        for refused in (rows, other):
            with pytest.raises(StorageFull, match=f"journal_bytes_max={LIMIT}.*a test says so"):
                fill(refused)
        with pytest.raises(StorageFull, match="journal_bytes_max"):
            storage.apply_gradients([(rows, KEYS, ones(KEYS.size, 64)), (other, KEYS, ones(KEYS.size, 64))])
        np.testing.assert_array_equal(rows.lookup(KEYS)[:, 0], np.full(KEYS.size, -0.5 * pushed))  # reading goes on
        assert storage.stats()["groups"][1]["rows"] == 0
        killed = as_after_kill(storage, tmp_path / "killed")
    until(lambda: storage.stats()["background_error"] is None)
    for _ in range(20):  # the journal is written back and trimmed again and again
        fill(rows)
    np.testing.assert_array_equal(rows.lookup(KEYS)[:, 0], np.full(KEYS.size, -0.5 * (pushed + 20)))
    assert_sound(storage)
    again = open_storage(str(killed))
    np.testing.assert_array_equal(wide(again).lookup(KEYS)[:, 0], np.full(KEYS.size, -0.5 * pushed))


def test_pushes_wait_while_write_back_is_at_work_and_go_on_when_it_is_done(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(still=False, journal_bytes_max=LIMIT)
    rows = wide(storage)
    at_work, may_end = threading.Event(), threading.Event()
    flush = engine_of(storage).flush

    def slow() -> int:
        at_work.set()
        assert may_end.wait(20)
        return flush()

    with monkeypatch.context() as patch:
        patch.setattr(engine_of(storage), "flush", slow)
        pushed = fill_up(storage, rows)
        assert at_work.wait(20)
        waiting = threading.Thread(target=fill, args=(rows,))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert storage.stats()["last_lsn"] == 1 + pushed  # the group, and the pushes before
        rows.lookup(KEYS)  # only pushes wait
        may_end.set()
        waiting.join(20)
        assert not waiting.is_alive()
    assert storage.stats()["journal_stalls"] == 1
    assert storage.stats()["journal_stall_s"] > 0
    until(lambda: storage.stats()["journal_bytes"] < LIMIT)
    np.testing.assert_array_equal(rows.lookup(KEYS)[:, 0], np.full(KEYS.size, -0.5 * (pushed + 1)))
    assert_sound(storage)


def test_closing_ends_the_wait_of_a_push(open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(still=False, journal_bytes_max=LIMIT)
    rows = wide(storage)
    may_end = threading.Event()
    monkeypatch.setattr(engine_of(storage)._background._write_back, "do", lambda now: may_end.wait(20))
    pushed = fill_up(storage, rows)
    outcome: list[object] = []

    def push() -> None:
        try:
            fill(rows)
        except Exception as error:
            outcome.append(error)
        else:
            outcome.append("done")

    waiting = threading.Thread(target=push)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    threading.Timer(0.1, may_end.set).start()
    storage.close()
    waiting.join(20)
    assert not waiting.is_alive()
    again = open_storage()
    # done or refused, never half of it
    expected = -0.5 * (pushed + (outcome == ["done"]))
    np.testing.assert_array_equal(wide(again).lookup(KEYS), np.full((KEYS.size, 64), expected))
    assert_sound(again)


def test_a_full_journal_is_written_back_at_closing_and_opening(open_storage: OpenStorage) -> None:
    storage = open_storage(journal_bytes_max=LIMIT)  # its thread has ended, so nobody makes room
    rows = wide(storage)
    for _ in range(6):
        fill(rows)
    assert storage.stats()["journal_bytes"] > LIMIT
    storage.close()
    again = open_storage(still=False, journal_bytes_max=LIMIT)
    assert again.stats()["journal_bytes"] < 1_000
    rows = wide(again)
    fill(rows)
    np.testing.assert_array_equal(rows.lookup(KEYS)[:, 0], np.full(KEYS.size, -3.5))
