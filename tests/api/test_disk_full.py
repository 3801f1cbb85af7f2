"""A full disk: the call that met it is refused whole, what was acknowledged is there, and with room it goes on."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import PyEmbedding, PyStorage, StorageFull
from tests.api.helpers import QUIET, OpenStorage, as_after_kill, assert_sound, embedding, keys_of, ones, sgd, uniform

DIM = 64


def _rows(storage: PyStorage) -> PyEmbedding:
    return embedding(storage, DIM, optimizer=sgd(1.0))


def _push_until_full(rows: PyEmbedding, keys: Any) -> int:
    """Push ones until there is no room; returns how many pushes were acknowledged."""
    for turn in range(1_000):
        try:
            rows.apply_gradients(keys, ones(keys.size, DIM), request=("trainer", turn + 1))
        except StorageFull as error:
            assert "no room left" in str(error)  # noqa: PT017 - when it happens depends on the file system
            assert "repeat it" in str(error)  # noqa: PT017
            return turn
    raise AssertionError("the disk never was full")


def test_a_journal_that_meets_a_full_disk_refuses_the_push_and_keeps_every_other(small_disk: Path) -> None:
    storage = PyStorage(small_disk / "store", **QUIET)
    rows, keys = _rows(storage), np.arange(2_000)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(12 << 20))
    acknowledged = _push_until_full(rows, keys)
    assert acknowledged > 5
    np.testing.assert_array_equal(rows.lookup(keys), np.full((2_000, DIM), -float(acknowledged)))
    assert storage.last_request("trainer") == acknowledged
    with pytest.raises(StorageFull):
        storage.flush()
    with pytest.raises(StorageFull):
        storage.checkpoint(small_disk / "checkpoint")
    assert sorted(p.name for p in small_disk.iterdir()) == ["ballast", "store"]
    ballast.unlink()
    rows.apply_gradients(keys, ones(2_000, DIM), request=("trainer", acknowledged + 1))  # the refused one, repeated
    storage.flush()
    assert_sound(storage)
    storage.close()
    with PyStorage(small_disk / "store", **QUIET) as storage:
        got = _rows(storage).lookup(keys, train=False)
        np.testing.assert_array_equal(got, np.full((2_000, DIM), -float(acknowledged + 1)))
        assert storage.stats()["rows"] == 2_000
        assert_sound(storage)


def test_a_store_closed_on_a_full_disk_says_so_and_opens_with_every_push_when_there_is_room(small_disk: Path) -> None:
    storage = PyStorage(small_disk / "store", **QUIET)
    rows, keys = _rows(storage), np.arange(2_000)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(12 << 20))
    acknowledged = _push_until_full(rows, keys)
    with pytest.raises(StorageFull):
        storage.close()
    storage.close()
    ballast.unlink()
    with PyStorage(small_disk / "store", **QUIET) as storage:
        got = _rows(storage).lookup(keys, train=False)
        np.testing.assert_array_equal(got, np.full((2_000, DIM), -float(acknowledged)))
        assert storage.last_request("trainer") == acknowledged
        assert_sound(storage)


def test_removals_and_lookups_on_a_full_disk_lose_nothing(small_disk: Path) -> None:
    storage = PyStorage(small_disk / "store", **{**QUIET, "memory_budget": 1 << 20})
    rows, keys = embedding(storage, DIM, optimizer=sgd(1.0), initializer=uniform()), np.arange(3_000)
    for part in np.array_split(keys, 10):
        rows.apply_gradients(part, ones(part.size, DIM))
    storage.flush()
    expected = rows.lookup(keys, train=False)
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(1 << 12))
    np.testing.assert_array_equal(rows.lookup(keys, train=False), expected)
    with pytest.raises(StorageFull):
        rows.lookup(np.arange(10_000, 20_000))  # new rows that would have to be written back
    with pytest.raises(StorageFull):
        storage.shrink(min_count=2)
    (small_disk / "ballast").unlink()
    left = storage.check().rows[0]
    got = rows.lookup(keys, train=False)
    alive = got.any(axis=1)
    np.testing.assert_array_equal(got[alive], expected[alive])
    storage.shrink(min_count=2)
    assert left >= alive.sum()
    assert storage.stats()["rows"] == 0
    storage.close()
    with PyStorage(small_disk / "store", **QUIET) as storage:
        assert storage.check().rows == {0: 0}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("written", [0, 60, 400])
def test_a_simulated_full_disk_takes_a_half_written_entry_back(
    open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, written: int
) -> None:
    storage = open_storage()
    rows, keys = _rows(storage), np.arange(100)
    rows.apply_gradients(keys, ones(100, DIM))
    real = os.pwritev
    room = [written]

    def pwritev(handle: int, buffers: Any, offset: int) -> int:
        if room[0] == 0:
            raise OSError(code, os.strerror(code))
        joined = b"".join(bytes(buffer) for buffer in buffers)[: room[0]]
        room[0] = 0
        return real(handle, [joined], offset)

    before = storage.stats()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", pwritev)
        with pytest.raises(StorageFull):
            rows.apply_gradients(keys_of(5, 1_000), ones(2, DIM), request=("a", 1))
    after = storage.stats()
    assert {name: after[name] for name in ("rows", "last_lsn", "journal_bytes")} == {
        name: before[name] for name in ("rows", "last_lsn", "journal_bytes")
    }
    assert storage.last_request("a") == 0
    np.testing.assert_array_equal(rows.lookup(keys_of(5, 1_000), train=False)[:, 0], [-1, 0])
    rows.apply_gradients(keys_of(5), ones(1, DIM), request=("a", 1))
    killed = open_storage(str(as_after_kill(storage, tmp_path / "killed")))
    np.testing.assert_array_equal(_rows(killed).lookup(keys_of(5, 1_000), train=False)[:, 0], [-2, 0])
    assert killed.last_request("a") == 1
    assert_sound(storage)
    assert_sound(killed)
