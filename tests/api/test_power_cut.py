"""A power cut loses what was not synced, and nothing that comes after it: simulated by cutting the journal back."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rockbed import JournalCorrupt, PyStorage
from rockbed.storage.segment import read_segment, segment_files
from tests.api.helpers import (
    OpenStorage,
    as_after_kill,
    assert_sound,
    embedding,
    engine_of,
    keys_of,
    ones,
    push_in_pieces,
    sgd,
)


class _Disk:
    """Knows how much of each journal file was synced; table files and the catalog are synced by their writers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._synced: dict[str, int] = {}
        for name in ("fsync", "fdatasync"):
            real = getattr(os, name)

            def spy(handle: int, real: Callable[[int], None] = real) -> None:
                real(handle)
                self._synced[os.readlink(f"/proc/self/fd/{handle}")] = os.fstat(handle).st_size

            monkeypatch.setattr(os, name, spy)

    def after_power_cut(self, storage: PyStorage, to: Path) -> Path:
        """What the disk itself holds at this moment."""
        shutil.copytree(storage.path, to, ignore=shutil.ignore_patterns("LOCK"))
        lost = False
        for path in sorted((to / "journal").glob("*.log")):
            size = 0 if lost else self._synced.get(str(storage.path / "journal" / path.name), 0)
            lost |= size < path.stat().st_size
            os.truncate(path, size)
            if size == 0:
                path.unlink()
        return to


@pytest.mark.parametrize("fsync", ["never", "interval", "always"])
@pytest.mark.parametrize("how", ["write-back", "flush"])
def test_pushes_after_a_power_cut_survive_a_kill(
    open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: str, how: str
) -> None:
    disk = _Disk(monkeypatch)
    storage = open_storage("before", fsync=fsync, fsync_interval=3600, memory_budget=1 << 16)
    rows = embedding(storage, optimizer=sgd(1.0))
    for _ in range(20):
        rows.apply_gradients(keys_of(1), ones(1))
    if how == "flush":
        storage.flush()
        rows.apply_gradients(keys_of(1), ones(1))
    push_in_pieces(rows, np.arange(100, 1_500))  # key 1 is written back, ahead of the catalog, and evicted
    cut = open_storage(str(disk.after_power_cut(storage, tmp_path / "cut")), fsync=fsync, memory_budget=1 << 16)
    rows = embedding(cut, optimizer=sgd(1.0))
    keys = np.append(np.arange(100, 1_500), 1)
    before = rows.lookup(keys, train=False)
    if fsync == "always":
        np.testing.assert_array_equal(before[[0, -1]], [[-1.0] * 4, [-20.0 - (how == "flush")] * 4])
    push_in_pieces(rows, keys)
    again = open_storage(str(as_after_kill(cut, tmp_path / "killed")), memory_budget=1 << 16)
    got = embedding(again, optimizer=sgd(1.0)).lookup(keys, train=False)
    np.testing.assert_array_equal(got, before - 1)
    assert_sound(again)


@pytest.mark.parametrize("fsync", ["never", "interval"])
def test_the_last_request_after_a_power_cut_is_one_whose_push_is_there(
    open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: str
) -> None:
    disk = _Disk(monkeypatch)
    storage = open_storage("before", fsync=fsync, fsync_interval=3600)
    rows = embedding(storage, optimizer=sgd(1.0))
    for number in range(1, 6):
        rows.apply_gradients(keys_of(1), ones(1), request=("trainer", number))
    real = engine_of(storage).files.flush

    def push_meanwhile() -> None:
        rows.apply_gradients(keys_of(1), ones(1), request=("trainer", 6))
        real()

    monkeypatch.setattr(engine_of(storage).files, "flush", push_meanwhile)
    storage.flush()
    monkeypatch.undo()
    cut = open_storage(str(disk.after_power_cut(storage, tmp_path / "cut")))
    weight = float(embedding(cut, optimizer=sgd(1.0)).lookup(keys_of(1), train=False)[0, 0])
    assert -weight == cut.last_request("trainer")


def _without_entry_of(storage: PyStorage, key: int, to: Path) -> Path:
    """The store as the disk may hold it if the page with the entry of the push to `key` was never written to it."""
    copy = as_after_kill(storage, to)
    (first, path), *_ = segment_files(copy / "journal")
    ends = [end for end, _ in read_segment(first, path, None)]
    raw = bytearray(path.read_bytes())
    raw[ends[key] : ends[key + 1]] = bytes(ends[key + 1] - ends[key])  # the first entry of all created the group
    path.write_bytes(raw)
    return copy


def _pushed(storage: PyStorage) -> list[int]:
    got = embedding(storage, optimizer=sgd(1.0)).lookup(np.arange(10), train=False)[:, 0]
    return [int(key) for key in np.flatnonzero(got == -1)]


@pytest.fixture
def half_synced(open_storage: OpenStorage) -> PyStorage:
    """A store whose keys 0 to 9 were pushed one after another, the journal synced after key 4."""
    storage = open_storage("before", fsync="never")
    rows = embedding(storage, optimizer=sgd(1.0))
    for key in range(10):
        rows.apply_gradients(keys_of(key), ones(1))
        if key == 4:
            engine_of(storage).journal.sync()
    return storage


def test_a_power_cut_that_takes_an_entry_but_not_the_next_cuts_the_journal_there(
    half_synced: PyStorage,
    open_storage: OpenStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cut = _without_entry_of(half_synced, 7, tmp_path / "cut")
    with pytest.raises(JournalCorrupt, match="no entry begins there"):
        open_storage("cut")  # the machine runs on: no power cut has done this
    monkeypatch.setattr("rockbed.storage.segment.boot_id", lambda: b"the boot after..")
    before = {path.name: path.read_bytes() for path in (cut / "journal").iterdir()}
    reader = open_storage("cut", read_only=True)
    assert _pushed(reader) == list(range(7))
    reader.close()
    assert {path.name: path.read_bytes() for path in (cut / "journal").iterdir()} == before
    caplog.clear()
    storage = open_storage("cut")
    assert "goes on without it and those after it" in caplog.text
    assert _pushed(storage) == list(range(7))
    embedding(storage, optimizer=sgd(1.0)).apply_gradients(keys_of(8), ones(1))
    again = open_storage(str(as_after_kill(storage, tmp_path / "again")))
    assert _pushed(again) == [*range(7), 8]
    assert_sound(again)


def test_an_entry_that_was_synced_is_never_taken_for_lost(
    half_synced: PyStorage, open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_entry_of(half_synced, 4, tmp_path / "cut")
    monkeypatch.setattr("rockbed.storage.segment.boot_id", lambda: b"the boot after..")
    with pytest.raises(JournalCorrupt, match="no entry begins there"):
        open_storage("cut")
