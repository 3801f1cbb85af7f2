"""The catalog: whole or not at all."""

import errno
import itertools
import json
import os
from pathlib import Path

import pytest

from rockbed.errors import FormatTooNew, StorageCorrupt, StorageFull, StoreLocked
from rockbed.storage.catalog import FILE, Catalog
from rockbed.storage.files import DirectoryLock, write_atomically

CATALOG = Catalog(7, 123, {3: {"rows": 1}}, {"a": {"floor": 2, "above": [4]}})
GOLDEN = """{
 "catalog": {
  "clients": {
   "a": {
    "above": [
     4
    ],
    "floor": 2
   }
  },
  "clock_ms": 123,
  "flushed_lsn": 7,
  "groups": {
   "3": {
    "rows": 1
   }
  }
 },
 "crc32": 1661746002,
 "format": 1
}"""


def test_a_catalog_comes_back_as_it_was(tmp_path: Path) -> None:
    CATALOG.write(tmp_path)
    assert Catalog.read(tmp_path) == CATALOG


def test_golden_text(tmp_path: Path) -> None:
    CATALOG.write(tmp_path)
    assert (tmp_path / FILE).read_text() == GOLDEN


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    whole = GOLDEN.encode()
    for at, bit in itertools.product(range(len(whole)), range(8)):
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        if b'"format": 0' in changed:
            continue  # not under the checksum; what it says is the same
        (tmp_path / FILE).write_bytes(changed)
        with pytest.raises((StorageCorrupt, FormatTooNew), match=r"does not match|not a catalog|has format [1-9]"):
            Catalog.read(tmp_path)
    (tmp_path / FILE).write_text(GOLDEN.replace('"flushed_lsn": 7', '"flushed_lsn": 8'))
    with pytest.raises(StorageCorrupt, match="does not match its checksum"):
        Catalog.read(tmp_path)


def test_a_catalog_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    for kept in range(len(GOLDEN)):
        (tmp_path / FILE).write_text(GOLDEN[:kept])
        with pytest.raises(StorageCorrupt, match="not a catalog"):
            Catalog.read(tmp_path)


def test_a_newer_catalog_says_so(tmp_path: Path) -> None:
    CATALOG.write(tmp_path)
    whole = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**whole, "format": 2}))
    with pytest.raises(FormatTooNew, match="format 2"):
        Catalog.read(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(handle: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageFull):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_one_writer_or_several_readers(tmp_path: Path) -> None:
    writer = DirectoryLock(tmp_path, shared=False)
    with pytest.raises(StoreLocked, match="in this process"):
        DirectoryLock(tmp_path, shared=False)
    with pytest.raises(StoreLocked):
        DirectoryLock(tmp_path, shared=True)
    writer.release()
    writer.release()
    readers = [DirectoryLock(tmp_path, shared=True) for _ in range(2)]
    with pytest.raises(StoreLocked):
        DirectoryLock(tmp_path, shared=False)
    for reader in readers:
        reader.release()
    DirectoryLock(tmp_path, shared=False).release()
