"""The operating system's side: errors by name, atomic replacement of files, the lock of a store directory."""

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rockbed.errors import (
    RockbedError,
    StorageCorrupt,
    StorageFailed,
    StorageFull,
    StoreLocked,
    StorePathInvalid,
    StorePermission,
)
from rockbed.storage.forking import forget_in_child

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def error_of(error: OSError, doing: str) -> RockbedError:
    """The Rockbed error for an OSError; `doing` says what was attempted, with the path."""
    if error.errno in _FULL:
        return StorageFull(
            f"no room left while {doing}: {error}. Nothing of this call was applied; free some space and repeat it"
        )
    if error.errno in _DENIED:
        return StorePermission(
            f"not allowed while {doing}: {error}. Check owner, mode and mount of the store's directory"
        )
    if error.errno == errno.ENOTDIR:
        return StorePathInvalid(f"not a directory while {doing}: {error}. A store is a directory")
    return StorageFailed(f"the disk failed while {doing}: {error}")


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Raise OSErrors of the block as Rockbed's."""
    try:
        yield
    except RockbedError:
        raise
    except OSError as error:
        raise error_of(error, doing) from error


def rocksdb_error(error: Exception, doing: str) -> RockbedError:
    """The Rockbed error for an exception of rocksdict, told apart by RocksDB's status text."""
    text = " ".join(str(error).split())  # RocksDB breaks lines
    lower = text.lower()
    if "no space left" in lower or "quota" in lower or "file too large" in lower:
        return StorageFull(f"no room left while {doing}: {text}. Free some space and repeat the call")
    if "lock" in lower and ("hold" in lower or "resource temporarily unavailable" in lower):
        return StoreLocked(f"rows/ is open elsewhere while {doing}: {text}")
    if "permission denied" in lower or "read-only file system" in lower:
        return StorePermission(
            f"not allowed while {doing}: {text}. Check owner, mode and mount of the store's directory"
        )
    if "corruption" in lower or "no such file" in lower or "checksum" in lower or "truncat" in lower:
        return StorageCorrupt(
            f"rows/ is damaged ({doing}): {text}. The other files were left as they are; restore a checkpoint with "
            "PyStorage.restore"
        )
    return StorageFailed(f"RocksDB failed while {doing}: {text}")


def sync_path(path: Path) -> None:
    """Make a file's content, or the names in a directory, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file: after a crash or a full disk there is the old content or the new, never a mixture."""
    part = path.with_name(path.name + ".new")
    with os_errors(f"writing {path}"):
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(part, path)
        sync_path(path.parent)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def exchange(one: Path, other: Path) -> None:
    """Let two directories of one file system change names, in one step; durable once their parent is synced.

    Raises StorageFailed; then they have not.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    hint = "Close the store, and restore it by hand: PyStorage.restore, or `rockbed restore`"
    if rename is None:
        raise StorageFailed(f"this system cannot exchange two directories (renameat2). {hint}")
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        said = "it is a mount point" if number == errno.EBUSY else os.strerror(number)
        raise StorageFailed(f"{one} and {other} cannot change places: {said}. {hint}")


class DirectoryLock:
    """flock on `<directory>/LOCK`: one writer, or any number of readers. The system drops it when the process dies."""

    def __init__(self, directory: Path, *, shared: bool) -> None:
        self._path = directory / "LOCK"
        with os_errors(f"opening {self._path}"):
            # a reader of a read-only directory may lock what is there, or go without where nothing is
            flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
            if shared and not self._path.exists():
                self._handle = -1
                return
            self._handle = os.open(self._path, flags, 0o644)
        try:
            fcntl.flock(self._handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._handle, 64).decode(errors="replace").strip() or "unknown"
            os.close(self._handle)
            where = "in this process" if holder == str(os.getpid()) else f"(process {holder})"
            raise StoreLocked(
                f"{directory} is open in another PyStorage {where}: close that one first; if it is a server, "
                "connect to it (grpc://HOST:PORT, --server); within a process, share one storage"
            ) from None
        if not shared:
            os.ftruncate(self._handle, 0)
            os.write(self._handle, f"{os.getpid()}\n".encode())
        forget_in_child(self)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others open the directory. May be called twice."""
        if self._handle >= 0:
            # closing alone leaves the lock with a process that inherited the handle
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)
            self._handle = -1

    def forget(self) -> None:
        """In a forked child: close the inherited handle, which would hold the lock after the parent's death."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
