"""Checkpoint and restore share table files by hard links, or copy them; either way each store lives on its own."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rockbed import PyEmbedding, PyStorage
from rockbed.types import F32
from tests.api.helpers import OpenStorage, adagrad, assert_sound, embedding, ones, uniform

KEYS = np.arange(600)
OWN = ("catalog.json", "CURRENT", "MANIFEST-", ".log", ".npz")
"""Beginnings and endings of files that a store writes to, or replaces: each store needs its own."""


def _rows(storage: PyStorage) -> PyEmbedding:
    return embedding(
        storage, optimizer=adagrad(), initializer=uniform(), admission={"name": "min_count", "count": 2}, absent="skip"
    )


@pytest.fixture
def original(open_storage: OpenStorage) -> PyStorage:
    """A store of 500 rows in two table files, and of 100 keys that were seen once and have no row yet."""
    storage = open_storage("original")
    rows = _rows(storage)
    for part in (KEYS[:250], KEYS[250:500]):
        for _ in range(2):
            rows.lookup(part)
        rows.apply_gradients(part, ones(250))
        storage.flush()
    rows.lookup(KEYS[500:])
    return storage


def _inodes(store: Path) -> dict[str, int]:
    """Where each file of a store lies: name within the store -> inode."""
    return {str(p.relative_to(store)): p.stat().st_ino for p in store.rglob("*") if p.is_file()}


def _tables(store: Path) -> dict[str, int]:
    return {name: inode for name, inode in _inodes(store).items() if name.endswith(".sst")}


def _bytes(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def _weights(storage: PyStorage) -> F32:
    """Every row, and what a second step makes of it, which tells whether its slots are right."""
    rows = _rows(storage)
    before = rows.lookup(KEYS, train=False)
    rows.apply_gradients(KEYS, ones(KEYS.size))
    return np.concatenate([before, rows.lookup(KEYS, train=False)])


def _change(storage: PyStorage) -> None:
    """Write every row anew, remove some, and have RocksDB rewrite all its files."""
    rows = _rows(storage)
    tables = set(_tables(storage.path))
    for _ in range(2):
        rows.lookup(KEYS)
    rows.apply_gradients(KEYS, ones(KEYS.size, value=9.0))
    storage.shrink(min_count=2)
    storage.compact()
    assert not tables & set(_tables(storage.path))


# --- linked ---


def test_a_checkpoint_shares_its_table_files_and_nothing_that_is_written_to(
    original: PyStorage, tmp_path: Path
) -> None:
    original.checkpoint(tmp_path / "checkpoint")
    tables = _tables(tmp_path / "checkpoint")
    assert len(tables) == 2
    assert tables == _tables(original.path)
    assert {(tmp_path / "checkpoint" / name).stat().st_nlink for name in tables} == {2}
    of_the_original = set(_inodes(original.path).values())
    shared = {name for name, inode in _inodes(tmp_path / "checkpoint").items() if inode in of_the_original}
    # RocksDB links its OPTIONS file too, which is written once as well
    assert {name for name in shared if not name.startswith("rows/OPTIONS-")} == set(tables)


def test_a_restored_store_shares_its_table_files_and_nothing_else(original: PyStorage, tmp_path: Path) -> None:
    original.checkpoint(tmp_path / "checkpoint")
    PyStorage.restore(tmp_path / "checkpoint", tmp_path / "store")
    restored, checkpoint = _inodes(tmp_path / "store"), _inodes(tmp_path / "checkpoint")
    assert set(restored) == set(checkpoint)
    assert {name for name, inode in restored.items() if inode == checkpoint[name]} == set(_tables(original.path))
    assert {(tmp_path / "store" / name).stat().st_nlink for name in _tables(original.path)} == {3}
    for own in OWN:  # there is one of each, so that the line above has spoken of it
        assert any(Path(name).name.startswith(own) or name.endswith(own) for name in restored)


# --- copied ---


def _refuse_links(source: object, target: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def test_a_restored_store_is_the_same_where_links_cannot_be_made(
    original: PyStorage, open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original.checkpoint(tmp_path / "checkpoint")
    PyStorage.restore(tmp_path / "checkpoint", tmp_path / "linked")
    before = _bytes(tmp_path / "checkpoint")
    monkeypatch.setattr(os, "link", _refuse_links)
    PyStorage.restore(tmp_path / "checkpoint", tmp_path / "copied")
    assert _bytes(tmp_path / "copied") == _bytes(tmp_path / "linked") == before
    assert not set(_inodes(tmp_path / "copied").values()) & set(_inodes(tmp_path / "checkpoint").values())
    linked, copied = open_storage("linked"), open_storage("copied")
    for storage in (linked, copied):
        assert_sound(storage)
    np.testing.assert_array_equal(_weights(linked), _weights(copied))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than tmp_path."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory, prefix="rockbed-test-") as directory:
        yield Path(directory)


@pytest.mark.embedded  # the server chooses the directory
def test_a_checkpoint_on_another_file_system_is_a_copy_and_can_be_brought_back(
    original: PyStorage, open_storage: OpenStorage, tmp_path: Path, elsewhere: Path
) -> None:
    original.checkpoint(elsewhere / "checkpoint")
    tables = _tables(elsewhere / "checkpoint")
    assert set(tables) == set(_tables(original.path))
    assert {(elsewhere / "checkpoint" / name).stat().st_nlink for name in tables} == {1}
    PyStorage.restore(elsewhere / "checkpoint", tmp_path / "store")
    restored = open_storage()
    assert_sound(restored)
    np.testing.assert_array_equal(_weights(restored), _weights(original))


# --- each lives on its own ---


def _delete(storage: PyStorage) -> None:
    storage.close()
    shutil.rmtree(storage.path)


@pytest.mark.parametrize("fate", [_change, _delete])
def test_a_checkpoint_survives_whatever_becomes_of_the_store_it_was_taken_from(
    original: PyStorage, open_storage: OpenStorage, tmp_path: Path, fate: Callable[[PyStorage], None]
) -> None:
    original.checkpoint(tmp_path / "checkpoint")
    PyStorage.restore(tmp_path / "checkpoint", tmp_path / "wanted")
    before, wanted = _bytes(tmp_path / "checkpoint"), _weights(open_storage("wanted"))
    fate(original)
    assert _bytes(tmp_path / "checkpoint") == before
    PyStorage.restore(tmp_path / "checkpoint", tmp_path / "store")
    restored = open_storage()
    assert_sound(restored)
    np.testing.assert_array_equal(_weights(restored), wanted)


@pytest.mark.parametrize("fate", [_change, _delete])
def test_checkpoint_and_original_survive_whatever_becomes_of_a_store_restored_from_it(
    original: PyStorage, open_storage: OpenStorage, tmp_path: Path, fate: Callable[[PyStorage], None]
) -> None:
    original.checkpoint(tmp_path / "checkpoint")
    before = _bytes(tmp_path / "checkpoint")
    PyStorage.restore(tmp_path / "checkpoint", tmp_path / "first")
    fate(open_storage("first"))
    assert _bytes(tmp_path / "checkpoint") == before
    PyStorage.restore(tmp_path / "checkpoint", tmp_path / "second")
    second = open_storage("second")
    for storage in (second, original):
        assert_sound(storage)
    np.testing.assert_array_equal(_weights(second), _weights(original))


def test_original_and_restored_store_survive_the_deletion_of_the_checkpoint(
    original: PyStorage, open_storage: OpenStorage, tmp_path: Path
) -> None:
    original.checkpoint(tmp_path / "checkpoint")
    PyStorage.restore(tmp_path / "checkpoint", tmp_path / "store")
    shutil.rmtree(tmp_path / "checkpoint")
    original.close()  # opened anew, so that nothing is read through a handle that is still open
    original, restored = open_storage("original"), open_storage()
    for storage in (original, restored):
        assert_sound(storage)
    np.testing.assert_array_equal(_weights(original), _weights(restored))
