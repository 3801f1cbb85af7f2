"""The journal: every change of a store, in order, on disk before it is answered. `segment` has the layout.

Files that are not needed any more are used again: their pages are in memory and their blocks allocated, so writing
there costs a copy, where a new file also waits for memory and for the file system (`python -m benchmarks.journal`). Why
plain files and not a column family of RocksDB: docs/architecture.md, "The journal".
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rockbed.errors import StorageClosed, StorageFailed
from rockbed.guarded_lock import GuardedLock
from rockbed.interrupts import Uninterrupted
from rockbed.parallel import core_to_spare, side_by_side
from rockbed.storage.digest import digest
from rockbed.storage.files import os_errors, sync_path
from rockbed.storage.segment import (
    FILE_BYTES,
    HEAD_BYTES,
    SEAL_BYTES,
    entry_head,
    file_header,
    seal,
    segment_files,
)

_IOV_MAX = 512
_LARGE_BYTES = 1 << 20  # of a payload whose digest is worth a thread of its own
_SMALL_BYTES = 1 << 17  # of a payload that is copied together in less time than its parts take one by one
SEGMENT_BYTES = 64 << 20
BYTES_MAX = 2 << 30


class Journal:
    """Append-only, one writer. `append` is thread-safe; what was appended before it returns survives the process.

    fsync: "always" makes each append wait for the disk, "interval" leaves that to whoever calls `sync` now and then,
    "never" to the operating system. A killed process loses nothing under any of them; a power cut loses what was not
    synced. bytes_max: how much of segments that nobody needs is kept to be used again, those in use included.
    """

    def __init__(
        self, directory: Path, *, fsync: str, bytes_max: int = BYTES_MAX, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._fsync_always = fsync == "always"
        self._segment_bytes = segment_bytes
        self._lock = GuardedLock()
        self._sync_lock = threading.Lock()
        self._handle = -1
        self._offset = 0
        self._broken: str | None = None
        self._synced = True
        self._synced_lsn = 0  # up to here all is on the disk itself
        self._retired: dict[Path, int] = {}  # handles of full segments that were not synced yet
        self._bytes: dict[Path, int] = {}  # what of a segment is in use; a newest one's is _offset
        self._spares: list[tuple[int, Path]] = []  # (bytes, file) of what nobody needs, the one used last at the end
        self.last_lsn = 0
        self.segments: list[tuple[int, Path]] = []  # (first LSN, file), oldest first
        self.total_bytes = 0

    # --- opening ---

    def sync_files(self) -> None:
        """Wait until what an earlier process wrote is on the disk itself: rows that a replay makes go there."""
        with os_errors(f"syncing the journal in {self._directory}"):
            for path in (*(path for _, path in segment_files(self._directory)), self._directory):
                sync_path(path)

    def open_for_append(self, last_lsn: int) -> None:
        """Begin a new segment after `last_lsn`, the highest number in use. What is there stays until `trim`."""
        self.last_lsn = self._synced_lsn = last_lsn
        with os_errors(f"opening the journal in {self._directory}"):
            self.segments = segment_files(self._directory)
            if self.segments and self.segments[-1][0] == last_lsn + 1:
                self.segments.pop()[1].unlink()  # begun, and nothing whole in it
            self._bytes = {path: path.stat().st_size for _, path in self.segments}
            self.total_bytes = sum(self._bytes.values())
            for spare in self._directory.glob("*.spare"):
                spare.unlink()
        self._new_segment()

    def _new_segment(self) -> None:
        path = self._directory / f"{self.last_lsn + 1:020d}.log"
        with os_errors(f"creating {path}"):
            if self._spares:
                os.rename(self._spares[-1][1], path)  # what it holds are entries with lower numbers, which nobody reads
                self._spares.pop()
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(handle, file_header(), 0)
                if self._fsync_always:
                    os.fsync(handle)
                    sync_path(self._directory)
            except OSError:
                os.close(handle)
                path.unlink(missing_ok=True)
                raise
        if self._handle >= 0:
            full = self.segments[-1][1]
            self._retired[full] = self._handle  # synced by `sync`: here it would hold up a push
            self._bytes[full] = self._offset
        self._synced &= self._fsync_always  # its name is not on the disk yet
        self._handle, self._offset = handle, FILE_BYTES
        self.total_bytes += FILE_BYTES
        self.segments.append((self.last_lsn + 1, path))

    # --- writing ---

    def append(self, kind: int, time_ms: int, parts: Sequence[Any]) -> int:
        """Write one entry and return its LSN.

        parts: bytes or C-contiguous arrays, each a whole number of 8-byte words.
        Raises StorageFull, StorePermission, StorageFailed: then the entry is not in the journal and nothing changed.
        """
        size = sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)
        if size < _SMALL_BYTES:
            parts = [b"".join(parts)]
        beside = size >= _LARGE_BYTES and core_to_spare()
        payload_digest = 0 if beside else digest(parts)
        with self._lock:
            if self._broken:
                raise StorageFailed(self._broken)
            if self._handle < 0:
                raise StorageClosed(f"the journal in {self._directory} was closed meanwhile: open another PyStorage")
            if self._offset >= self._segment_bytes:
                self._new_segment()
            lsn = self.last_lsn + 1
            written = HEAD_BYTES + size + SEAL_BYTES
            try:
                with os_errors(f"appending {size} bytes to the journal in {self._directory}"):
                    if beside:
                        payload_digest = self._write_payload(parts)
                    head = entry_head(kind, lsn, time_ms, size, payload_digest, self._synced_lsn)
                    self._write([head] if beside else [head, *parts, seal(lsn)], self._offset)
                    if beside:  # the seal says that the entry was written whole
                        self._write([seal(lsn)], self._offset + written - SEAL_BYTES)
                    if self._fsync_always:
                        os.fdatasync(self._handle)
            except BaseException:  # the rest of a longer entry must not stay behind a shorter one
                self._take_back()
                raise
            self._offset += written
            self.total_bytes += written
            self._synced = self._fsync_always
            self.last_lsn = lsn
            if self._fsync_always:
                self._synced_lsn = lsn
            return lsn

    def _write_payload(self, parts: Sequence[Any]) -> int:
        """Write what comes between head and seal; its digest, which another thread makes meanwhile."""
        digests: list[int] = []
        at = self._offset + HEAD_BYTES
        side_by_side([lambda: self._write(parts, at), lambda: digests.append(digest(parts))])
        return digests[0]

    def _write(self, buffers: Sequence[Any], at: int) -> None:
        pending = [memoryview(b).cast("B") for b in buffers if len(b)]
        while pending:
            done = os.pwritev(self._handle, pending[:_IOV_MAX], at)
            at += done
            while pending and done >= len(pending[0]):
                done -= len(pending.pop(0))
            if done:
                pending[0] = pending[0][done:]

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
                current, reached = os.dup(self._handle), self.last_lsn
                self._synced = True
            try:
                with os_errors(f"syncing the journal in {self._directory}"):
                    for handle in (*retired.values(), current):  # outside the lock: pushes go on meanwhile
                        os.fdatasync(handle)
                    sync_path(self._directory)
                with self._lock:
                    self._synced_lsn = max(self._synced_lsn, reached)
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
        """Give up the segments whose entries are all at or below `flushed_lsn`."""
        with Uninterrupted():
            with self._lock:
                if self.last_lsn <= flushed_lsn and self._offset > FILE_BYTES:
                    self._new_segment()
                old = []
                while len(self.segments) > 1 and self.segments[1][0] <= flushed_lsn + 1:
                    old.append(self.segments.pop(0)[1])
                # nobody needs these synced any more, and an open handle holds its file's space
                handles = [self._retired.pop(path) for path in old if path in self._retired]
            for handle in handles:
                os.close(handle)
            with os_errors(f"trimming the journal in {self._directory}"):
                for path in old:
                    if not self._kept(path):
                        path.unlink()  # outside the lock: to delete a large file takes milliseconds

    def _kept(self, path: Path) -> bool:
        """Make a segment that nobody needs a spare one, if there is room for it."""
        size = path.stat().st_size
        with self._lock:
            self.total_bytes -= self._bytes.pop(path)
            spare_bytes = sum(kept for kept, _ in self._spares)
            if self.total_bytes + spare_bytes + size > self._bytes_max:
                return False
            spare = path.with_suffix(".spare")
            path.rename(spare)
            self._spares.append((size, spare))
            return True

    def copy_to(self, directory: Path) -> None:
        """Copy everything appended so far, whole entries only, into an empty directory, durably."""
        with self._lock:
            parts = [(path, self._bytes[path]) for _, path in self.segments[:-1]]
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
            if self._offset > FILE_BYTES:
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
                while self._spares:
                    self._spares.pop()[1].unlink(missing_ok=True)
