"""Removed rows stay removed: beside lookups in flight, after a kill in the middle of a shrink, and for readers."""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import PyStorage
from rockbed.server import shrinking
from rockbed.storage.rows import RowFiles
from tests.api.helpers import Clock, OpenStorage, as_after_kill, assert_sound, embedding, keys_of, ones


class _PausedReads:
    """Lets the next read of rows/ by another thread finish, but holds its answer back until `go_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_read, self.go_on = threading.Event(), threading.Event()
        real, main = RowFiles.get, threading.current_thread()

        def get(files: RowFiles, *args: Any) -> Any:
            answer = real(files, *args)
            if threading.current_thread() is not main and not self.has_read.is_set():
                self.has_read.set()
                assert self.go_on.wait(30)
            return answer

        monkeypatch.setattr(RowFiles, "get", get)

    def around(self, call: Callable[[], object], meanwhile: Callable[[], object]) -> None:
        """Run `call` in a thread, and `meanwhile` between its read of rows/ and what it makes of that."""
        thread = threading.Thread(target=call)
        thread.start()
        assert self.has_read.wait(30)
        meanwhile()
        self.go_on.set()
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("call", ["lookup", "evaluate", "push"])
def test_a_row_read_from_disk_just_before_it_was_removed_does_not_come_back(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(keys_of(1, 2), ones(2))
    storage.close()
    storage = open_storage()
    rows = embedding(storage)
    calls = {
        "lookup": lambda: rows.lookup(keys_of(1)),
        "evaluate": lambda: rows.lookup(keys_of(1), train=False),
        "push": lambda: rows.apply_gradients(keys_of(1), ones(1)),
    }
    _PausedReads(monkeypatch).around(calls[call], lambda: storage.shrink(min_count=2))
    expected = -0.5 if call == "push" else 0.0  # a push to a removed row begins it anew: one step, not two
    np.testing.assert_array_equal(rows.lookup(keys_of(1), train=False), np.full((1, 4), expected))
    assert storage.stats()["rows"] == (0 if call == "evaluate" else 1)
    assert_sound(storage)
    storage.close()
    np.testing.assert_array_equal(embedding(open_storage()).lookup(keys_of(1), train=False), np.full((1, 4), expected))


def test_a_row_read_from_disk_just_before_it_was_updated_and_evicted_is_read_again(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(np.arange(3_000), ones(3_000))
    storage.close()
    storage = open_storage(memory_budget=1 << 16)
    rows = embedding(storage)
    got: list[Any] = []

    def update_and_evict() -> None:
        rows.apply_gradients(keys_of(1), ones(1))
        rows.lookup(np.arange(1_000, 3_000))
        rows.lookup(np.arange(1_000, 3_000))

    _PausedReads(monkeypatch).around(lambda: got.append(rows.lookup(keys_of(1))), update_and_evict)
    assert storage.stats()["groups"][0]["evictions"] > 1_000
    np.testing.assert_array_equal(got[0], [[-1.0] * 4])
    rows.apply_gradients(keys_of(1), ones(1))
    np.testing.assert_array_equal(rows.lookup(keys_of(1)), [[-1.5] * 4])
    assert_sound(storage)


class _Stop(Exception):
    pass


def _half_shrunk(open_storage: OpenStorage, clock: Clock, to: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A killed store in which a shrink had removed some of 10,000 rows."""
    storage = open_storage("original", clock=clock)
    rows = embedding(storage)
    rows.apply_gradients(np.arange(10_000), ones(10_000))
    storage.flush()

    stopping, remove = threading.Event(), shrinking._remove
    calls = itertools.count()

    def after_the_first(*args: Any) -> Any:
        if next(calls):
            stopping.wait(60)
            time.sleep(0.3)  # a client's word that it has had enough takes its time
        return remove(*args)

    def stop(done: int, total: int) -> None:
        stopping.set()
        raise _Stop

    with monkeypatch.context() as patched:
        patched.setattr(shrinking, "_remove", after_the_first)
        with pytest.raises(_Stop):
            storage.shrink(min_count=2, progress=stop)
    assert 0 < storage.stats()["rows"] < 10_000
    killed = as_after_kill(storage, to)
    storage.close()
    return killed


def test_an_error_in_the_progress_callback_ends_shrink_between_two_steps_and_leaves_the_store_sound(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(_half_shrunk(open_storage, clock, tmp_path / "killed", monkeypatch)), clock=clock)
    rows = embedding(storage)
    left = rows.lookup(np.arange(10_000), train=False)[:, 0]
    assert 0 < (left == -0.5).sum() < 10_000
    assert storage.check().rows[0] == (left == -0.5).sum() == storage.stats()["rows"]
    rows.apply_gradients(np.arange(10_000), ones(10_000))
    np.testing.assert_array_equal(rows.lookup(np.arange(10_000))[:, 0], left - 0.5)


def test_a_reader_does_not_see_rows_whose_removal_only_the_journal_knows(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = _half_shrunk(open_storage, clock, tmp_path / "killed", monkeypatch)
    reader: PyStorage = open_storage(str(killed), clock=clock, read_only=True)
    seen = embedding(reader).lookup(np.arange(10_000), train=False)
    dumped = reader.dump(tmp_path / "dump")
    checked = reader.check()
    reader.close()
    writer = open_storage(str(killed), clock=clock)
    expected = embedding(writer).lookup(np.arange(10_000), train=False)
    np.testing.assert_array_equal(seen, expected)
    assert 0 < dumped == expected.any(axis=1).sum() < 10_000
    assert checked.ok
    assert checked.rows == {0: dumped}
