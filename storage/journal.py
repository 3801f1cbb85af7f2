"""The journal: every change of a store, in order, on disk before it is answered.

Files `journal/<first LSN, 20 digits>.log`: 16 bytes (magic "ROCKBED-JRNL", u32 version), then entries:
    u32 magic | u32 kind | u64 LSN | i64 time (ms) | u64 payload bytes | u64 digest of the payload
    u64 digest of these fields,
then the payload, a whole number of 8-byte words (`digest` says how they are hashed).

An entry cut short at the very end was never acknowledged: it is dropped when the journal is opened. An entry whose
head or payload is there and does not match its digest is damage, and an error. Why plain files and not a column
family of RocksDB: docs/architecture.md, "The journal".
"""

import os
import shutil
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rockbed.errors import FormatTooNew, JournalCorrupt, StorageClosed, StorageFailed
from rockbed.interrupts import GuardedLock, Uninterrupted
from rockbed.storage.digest import digest
from rockbed.storage.files import os_errors, sync_path

FORMAT = 1
_FILE = struct.Struct("<12sI")
_MAGIC = b"ROCKBED-JRNL"
_FIELDS = struct.Struct("<IIQqQQ")
_HEAD_BYTES = _FIELDS.size + 8
_ENTRY_MAGIC = 0x314A4252  # "RBJ1"
_IOV_MAX = 512
SEGMENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as read. payload: a view into the file's bytes."""

    lsn: int
    kind: int
    time_ms: int
    payload: memoryview


class Journal:
    """Append-only, one writer. `append` is thread-safe; what was appended before it returns survives the process.

    fsync: "always" makes each append wait for the disk, "interval" leaves that to whoever calls `sync` now and then,
    "never" to the operating system. A killed process loses nothing under any of them; a power cut loses what was not
    synced.
    """

    def __init__(self, directory: Path, *, fsync: str, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory = directory
        self._fsync_always = fsync == "always"
        self._segment_bytes = segment_bytes
        self._lock = GuardedLock()
        self._sync_lock = threading.Lock()
        self._handle = -1
        self._offset = 0
        self._broken: str | None = None
        self._synced = True
        self._retired: dict[Path, int] = {}  # handles of full segments that were not synced yet
        self.last_lsn = 0
        self.segments: list[tuple[int, Path]] = []  # (first LSN, file), oldest first
        self.total_bytes = 0

    # --- opening ---

    @staticmethod
    def files(directory: Path) -> list[tuple[int, Path]]:
        """(first LSN, path) of the segments, oldest first."""
        return sorted((int(path.stem), path) for path in directory.glob("*.log"))

    def sync_files(self) -> None:
        """Wait until what an earlier process wrote is on the disk itself: rows that a replay makes go there."""
        with os_errors(f"syncing the journal in {self._directory}"):
            for _, path in self.files(self._directory):
                sync_path(path)

    def open_for_append(self, last_lsn: int) -> None:
        """Begin a new segment after `last_lsn`, the highest number in use. What is there stays until `trim`."""
        self.last_lsn = last_lsn
        with os_errors(f"opening the journal in {self._directory}"):
            self.segments = self.files(self._directory)
            if self.segments and self.segments[-1][0] == last_lsn + 1:
                self.segments.pop()[1].unlink()  # begun, and nothing whole in it
            self.total_bytes = sum(path.stat().st_size for _, path in self.segments)
        self._new_segment()

    def _new_segment(self) -> None:
        path = self._directory / f"{self.last_lsn + 1:020d}.log"
        with os_errors(f"creating {path}"):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                os.pwrite(handle, _FILE.pack(_MAGIC, FORMAT), 0)
                if self._fsync_always:
                    os.fsync(handle)
                    sync_path(self._directory)
            except OSError:
                os.close(handle)
                path.unlink(missing_ok=True)
                raise
        if self._handle >= 0:
            self._retired[self.segments[-1][1]] = self._handle  # synced by `sync`: here it would hold up a push
        self._handle, self._offset = handle, _FILE.size
        self.total_bytes += _FILE.size
        self.segments.append((self.last_lsn + 1, path))

    # --- writing ---

    def append(self, kind: int, time_ms: int, parts: Sequence[Any]) -> int:
        """Write one entry and return its LSN.

        parts: bytes or C-contiguous arrays, each a whole number of 8-byte words, written without a copy.
        Raises StorageFull, StorePermission, StorageFailed: then the entry is not in the journal and nothing changed.
        """
        size = sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)
        payload_digest = digest(parts)
        with self._lock:
            if self._broken:
                raise StorageFailed(self._broken)
            if self._handle < 0:
                raise StorageClosed(f"the journal in {self._directory} was closed meanwhile: open another PyStorage")
            if self._offset >= self._segment_bytes:
                self._new_segment()
            lsn = self.last_lsn + 1
            fields = _FIELDS.pack(_ENTRY_MAGIC, kind, lsn, time_ms, size, payload_digest)
            buffers = [fields, digest([fields]).to_bytes(8, "little"), *parts]
            try:
                with os_errors(f"appending {size} bytes to the journal in {self._directory}"):
                    written = self._write(buffers)
                    if self._fsync_always:
                        os.fdatasync(self._handle)
            except BaseException:  # the rest of a longer entry must not stay behind a shorter one
                self._take_back()
                raise
            self._offset += written
            self.total_bytes += written
            self._synced = self._fsync_always
            self.last_lsn = lsn
            return lsn

    def _write(self, buffers: list[Any]) -> int:
        total = 0
        pending = [memoryview(b).cast("B") for b in buffers if len(b)]
        while pending:
            done = os.pwritev(self._handle, pending[:_IOV_MAX], self._offset + total)
            total += done
            while pending and done >= len(pending[0]):
                done -= len(pending.pop(0))
            if done:
                pending[0] = pending[0][done:]
        return total

    def _take_back(self) -> None:
        # a half-written entry must not precede the next one
        try:
            os.ftruncate(self._handle, self._offset)
        except OSError as error:
            self._broken = f"{self._directory} could not be cut back after a failed write ({error}): reopen the store"

    def sync(self) -> None:
        """Wait until everything appended so far is on the disk itself."""
        # whoever comes second waits for the first, whose sync is not done when it has begun
        with self._sync_lock, Uninterrupted():
            with self._lock:
                if self._synced or self._handle < 0:
                    return
                retired, self._retired = self._retired, {}
                current = os.dup(self._handle)
                self._synced = True
            try:
                with os_errors(f"syncing the journal in {self._directory}"):
                    for handle in (*retired.values(), current):  # outside the lock: pushes go on meanwhile
                        os.fdatasync(handle)
                    sync_path(self._directory)
            except BaseException:
                with self._lock:
                    self._synced = False
                    self._retired = retired | self._retired
                retired = {}
                raise
            finally:
                for handle in (*retired.values(), current):
                    os.close(handle)

    def trim(self, flushed_lsn: int) -> None:
        """Delete the segments whose entries are all at or below `flushed_lsn`."""
        with Uninterrupted():
            with self._lock:
                if self.last_lsn <= flushed_lsn and self._offset > _FILE.size:
                    self._new_segment()
                old = []
                while len(self.segments) > 1 and self.segments[1][0] <= flushed_lsn + 1:
                    old.append(self.segments.pop(0)[1])
                # nobody needs these synced any more, and an open handle holds its file's space
                handles = [self._retired.pop(path) for path in old if path in self._retired]
            for handle in handles:
                os.close(handle)
            with os_errors(f"trimming the journal in {self._directory}"):
                for path in old:  # outside the lock: to delete a large file takes milliseconds
                    size = path.stat().st_size
                    path.unlink()
                    with self._lock:
                        self.total_bytes -= size

    def copy_to(self, directory: Path) -> None:
        """Copy everything appended so far, whole entries only, into an empty directory, durably."""
        with self._lock:
            parts = [(path, path.stat().st_size) for _, path in self.segments[:-1]]
            parts.append((self.segments[-1][1], self._offset))
        for path, size in parts:
            with path.open("rb") as source, (directory / path.name).open("wb") as target:
                while size > 0 and (piece := source.read(min(size, 1 << 20))):
                    size -= target.write(piece)
                target.flush()
                os.fsync(target.fileno())

    def rotate(self) -> None:
        """Begin a new segment, so that what is there can be trimmed once it is flushed."""
        with self._lock:
            if self._offset > _FILE.size:
                self._new_segment()

    def close(self) -> None:
        """Sync and close the file. May be called twice."""
        try:
            self.sync()
        finally:
            with self._lock:
                while self._retired:  # with fsync="always", where there was nothing left to sync
                    os.close(self._retired.popitem()[1])
                if self._handle >= 0:
                    os.close(self._handle)
                    self._handle = -1


# --- reading ---


def _damage(path: Path, offset: int, what: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"{path} is damaged at byte {offset}: {what}. Nothing was changed. Restore a checkpoint with "
        "PyStorage.restore, or open with repair=True to keep everything before the damage (what follows it is set "
        "aside in journal/damaged)"
    )


def read_segment(path: Path, *, last: bool) -> Iterator[tuple[int, Entry]]:
    """(offset of the entry's end, entry) for each whole entry of a file. `last`: a cut-off end is allowed there only.

    Raises JournalCorrupt, FormatTooNew.
    """
    with os_errors(f"reading {path}"):
        data = np.fromfile(path, np.uint8).data if path.stat().st_size else memoryview(b"")
    if len(data) < _FILE.size:
        if last:
            return
        raise _damage(path, 0, "the file is shorter than its header")
    magic, version = _FILE.unpack_from(data)
    if magic != _MAGIC:
        raise _damage(path, 0, "it does not begin as a journal does")
    if version > FORMAT:
        raise FormatTooNew(
            f"{path} has journal format {version}, this Rockbed reads up to {FORMAT}: open it with a newer Rockbed"
        )
    at = _FILE.size
    while at < len(data):
        start = at + _HEAD_BYTES
        if start > len(data):
            if last:
                return
            raise _damage(path, at, "an entry is cut short")
        fields = data[at : at + _FIELDS.size]
        if int.from_bytes(data[at + _FIELDS.size : start], "little") != digest([fields]):
            # after a power cut a file may be longer than what reached it: zeros to its end were never synced
            if last and not np.frombuffer(data[at:], np.uint8).any():
                return
            raise _damage(path, at, "no entry begins there")
        _, kind, lsn, time_ms, size, payload_digest = _FIELDS.unpack(fields)
        end = start + size
        if end > len(data):
            if last:
                return
            raise _damage(path, at, f"entry {lsn} is cut short")
        payload = data[start:end]
        if digest([payload]) != payload_digest:
            raise _damage(path, at, f"entry {lsn} does not match its digest")
        yield end, Entry(lsn, kind, time_ms, payload)
        at = end


# --- mending, when a store is opened ---


def truncate(path: Path, end: int) -> None:
    """Cut off what follows the last whole entry: it was never acknowledged."""
    if path.stat().st_size > max(end, _FILE.size):
        with os_errors(f"cutting {path} back to its last whole entry"):
            os.truncate(path, max(end, _FILE.size))


def set_aside(directory: Path, path: Path, end: int, later: Sequence[Path]) -> None:
    """Keep a damaged segment up to `end`; copy it whole, and move the segments after it, to `damaged/`."""
    aside = directory / "damaged"
    with os_errors(f"setting damaged journal files aside in {aside}"):
        aside.mkdir(exist_ok=True)
        shutil.copyfile(path, aside / path.name)
        if end:
            os.truncate(path, end)
        else:
            path.unlink()
        for other in later:
            os.replace(other, aside / other.name)
        sync_path(directory)
