"""A signal whose handler raises, Ctrl-C above all, at the worst moments: a change is whole or not there at all."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import PyInitializer
from rockbed.errors import StorageClosed, StorageFailed
from rockbed.guarded_lock import GuardedLock
from rockbed.interrupts import Uninterrupted
from rockbed.server import updates
from rockbed.storage import hot_kernels, index
from tests.api.helpers import OpenStorage, as_after_kill, assert_sound, embedding, engine_of, keys_of, ones

pytestmark = pytest.mark.embedded  # signals are the own process' business


class Stopped(Exception):
    """What a program's own handler raises."""


@pytest.fixture
def alarm() -> Iterator[Callable[[], None]]:
    """Send this process SIGALRM, whose handler raises Stopped."""

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    yield lambda: os.kill(os.getpid(), signal.SIGALRM)
    signal.signal(signal.SIGALRM, before)


def and_then(call: Callable[..., Any], after: Callable[[], None]) -> Callable[..., Any]:
    """`call`, and `after` once, when it has done its work for the first time."""
    todo = [after]

    def both(*args: Any, **rest: Any) -> Any:
        result = call(*args, **rest)
        if todo:
            todo.pop()()
        return result

    return both


def test_a_block_that_is_guarded_ends_before_the_handler_runs(alarm: Callable[[], None]) -> None:
    done = []

    def work(within: Any) -> None:
        with within, GuardedLock():
            alarm()
            done.append("inside")
        time.sleep(1)
        done.append("after")  # not reached: the handler runs when the outermost block ends

    for number in (1, 2):  # and is as it was after
        with pytest.raises(Stopped):
            work(Uninterrupted() if number == 1 else GuardedLock().shared)
        assert done == ["inside"] * number
    with pytest.raises(Stopped):
        work(nullcontext())


def test_other_threads_are_guarded_without_touching_the_handlers(alarm: Callable[[], None]) -> None:
    before = signal.getsignal(signal.SIGALRM)
    inside: list[Any] = []

    def work() -> None:
        with GuardedLock():
            inside.append(signal.getsignal(signal.SIGALRM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later: there are other threads
def test_a_child_that_a_thread_forked_is_guarded_in_that_thread() -> None:
    def guarded() -> bool:
        with Uninterrupted():
            return signal.getsignal(signal.SIGINT) is not signal.default_int_handler

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(int(guarded()))  # by now the thread is the main one
        ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    ended: list[int] = []
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join(30)
    assert ended == [1]


def test_a_lookup_that_is_interrupted_gives_each_key_a_row_of_its_own(
    open_storage: OpenStorage, alarm: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage()
    rows = embedding(storage, initializer=PyInitializer(name="constant", value=7.0))
    early, late = np.arange(1_000), np.arange(5_000, 6_000)
    with monkeypatch.context() as patch:
        patch.setattr(index, "insert_absent", and_then(index.insert_absent, alarm))
        with pytest.raises(Stopped):
            rows.lookup(early)
    rows.lookup(late)
    for keys in (early, late):
        rows.apply_gradients(keys, ones(1_000))
    assert (rows.lookup(np.concatenate([early, late])) == 6.5).all()
    assert_sound(storage)


@pytest.mark.parametrize("moment", ["copied", "written"])
def test_a_write_back_that_is_interrupted_loses_no_row(
    open_storage: OpenStorage, alarm: Callable[[], None], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    storage = open_storage()
    rows, keys = embedding(storage), np.arange(5_000)
    rows.apply_gradients(keys, ones(5_000))
    with monkeypatch.context() as patch:
        if moment == "copied":
            patch.setattr(hot_kernels, "take_dirty", and_then(hot_kernels.take_dirty, alarm))
        else:
            patch.setattr(engine_of(storage).files, "put_run", and_then(engine_of(storage).files.put_run, alarm))
        with pytest.raises(Stopped):
            storage.flush()
    flags = engine_of(storage).groups[0].table.flags
    assert not (flags & hot_kernels.WRITING).any()
    storage.close()
    again = open_storage()
    assert (embedding(again).lookup(keys, train=False) == -0.5).all()
    assert_sound(again)


@pytest.mark.parametrize("moment", ["copied", "written"])
def test_rows_of_a_write_back_that_fails_half_way_stay_dirty(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    storage = open_storage()
    rows, keys = embedding(storage), np.arange(5_000)
    rows.apply_gradients(keys, ones(5_000))

    calls, change_flags = [0], hot_kernels.change_flags

    def fail(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise MemoryError
        change_flags(*args)

    with monkeypatch.context() as patch:
        if moment == "copied":
            patch.setattr(hot_kernels, "take_dirty", and_then(hot_kernels.take_dirty, fail))
        else:
            patch.setattr(hot_kernels, "change_flags", fail)
        with pytest.raises(MemoryError):
            storage.flush()
    assert storage.stats()["dirty_rows"] == 5_000
    group = engine_of(storage).groups[0]
    assert not (group.table.flags & hot_kernels.WRITING).any()
    assert not group.lock.is_brief
    assert not group.lock.favours_sharing
    storage.close()
    assert (embedding(open_storage()).lookup(keys, train=False) == -0.5).all()


@pytest.mark.parametrize("moment", ["journal", "kernel"])
def test_a_push_that_is_interrupted_is_applied_whole_and_once(
    open_storage: OpenStorage, tmp_path: Path, alarm: Callable[[], None], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    storage = open_storage()
    rows, keys = embedding(storage), np.arange(2_000)
    where, name = (engine_of(storage).journal, "append") if moment == "journal" else (updates, "apply")
    with monkeypatch.context() as patch:
        patch.setattr(where, name, and_then(getattr(where, name), alarm))
        with pytest.raises(Stopped):
            storage.apply_gradients([(rows, keys, ones(2_000))], request=("trainer", 1))
    assert storage.last_request("trainer") == 1
    assert not storage.apply_gradients([(rows, keys, ones(2_000))], request=("trainer", 1))
    killed = open_storage(as_after_kill(storage, tmp_path / "killed").name)
    for each in (storage, killed):
        assert (embedding(each).lookup(keys, train=False) == -0.5).all()
        assert_sound(each)


def test_an_interrupted_sync_has_synced_nothing(open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(fsync="never")
    embedding(storage).apply_gradients(keys_of(1), ones(1))
    engine_of(storage).journal.rotate()
    synced: list[int] = []

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine_of(storage).journal.sync()
    monkeypatch.setattr(os, "fdatasync", synced.append)
    engine_of(storage).journal.sync()
    assert len(synced) == 2  # the full segment and the new one


# --- what cannot fail, fails ---


def broken_push(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push that is in the journal and then meets an error in memory."""

    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(updates, "apply", fails)
        with pytest.raises(StorageFailed, match="durable, but could not be applied"):
            embedding(storage).apply_gradients(keys_of(1, 2), ones(2), request=("trainer", 1))


def test_a_push_that_fails_after_the_journal_stops_the_store_and_is_there_when_it_is_opened_again(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage()
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1), ones(1))
    broken_push(storage, monkeypatch)
    for call in (storage.flush, storage.stats, lambda: rows.lookup(keys_of(1)), storage.check):
        with pytest.raises(StorageFailed, match="close the storage and open it again"):
            call()
    storage.close()
    with pytest.raises(StorageClosed):
        rows.lookup(keys_of(1))
    again = open_storage()
    assert embedding(again).lookup(keys_of(1, 2), train=False)[:, 0].tolist() == [-1.0, -0.5]
    assert again.last_request("trainer") == 1
    assert_sound(again)


def test_a_removal_that_fails_after_the_journal_stops_the_store_and_is_done_when_it_is_opened_again(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(keys_of(1), ones(1))
    storage.flush()

    def fails(_: object) -> None:
        raise StorageFailed("EIO")

    with monkeypatch.context() as patch:
        patch.setattr(engine_of(storage).files, "delete", fails)
        with pytest.raises(StorageFailed, match="durable"):
            storage.shrink(min_count=100)
    with pytest.raises(StorageFailed):
        embedding(storage)
    storage.close()
    again = open_storage()
    assert again.stats()["rows"] == 0
    assert (embedding(again, miss_value=9.0).lookup(keys_of(1), train=False) == 9.0).all()
    assert_sound(again)


def test_a_flush_that_waits_for_a_push_which_fails_writes_nothing_of_it(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage()
    rows, keys = embedding(storage), np.arange(100)
    rows.apply_gradients(keys, ones(100))
    refused: list[Exception] = []

    def flush() -> None:
        try:
            storage.flush()
        except StorageFailed as error:
            refused.append(error)

    waiting = threading.Thread(target=flush)

    def fails(group: Any, at: Any, _: Any, __: int, now_ms: int, lsn: int) -> None:
        # the rows say that they have seen the entry, and have not
        hot_kernels.stamp(group.table.header, group.table.flags, at, now_ms, lsn, np.empty(at.size, np.int64))
        waiting.start()
        waiting.join(0.2)  # it wants the group's lock
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(updates, "_update", fails)
        with pytest.raises(StorageFailed, match="durable"):
            rows.apply_gradients(keys, ones(100))
    waiting.join()
    assert len(refused) == 1
    storage.close()
    again = open_storage()
    assert (embedding(again).lookup(keys, train=False) == -1.0).all()
    assert_sound(again)
