"""One file of the journal: its layout, and reading it.

`journal/<first LSN, 20 digits>.log`: magic "ROCKBED-JRNL", u32 version, 16 bytes that name the boot of the machine it
was begun in; then entries, numbered without a gap:
    u32 magic | u32 kind | u64 LSN | i64 time (ms) | u64 payload bytes | u64 digest of the payload
    u64 LSN up to which the journal was known to be on the disk itself
    u64 digest of these fields,
then the payload, a whole number of 8-byte words (`digest` says how they are hashed), then the seal, a u64 that depends
on the LSN alone. What follows the last entry means nothing: a file is used again, and its old content stays until it is
written over.

Three things can be behind bytes that are not the entry which should be there:
- It was never written whole, and so never acknowledged: neither its seal nor any later entry is there. The end.
- A power cut took it: the machine was started anew since, and no later entry says that it was on the disk (`cut_off`).
- Damage, an error.
"""

import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rockbed.errors import FormatTooNew, JournalCorrupt
from rockbed.storage.digest import digest
from rockbed.storage.files import os_errors, sync_path
from rockbed.types import U64

FORMAT = 1
_FILE = struct.Struct("<12sI16s")
_MAGIC = b"ROCKBED-JRNL"
_FIELDS = struct.Struct("<IIQqQQQ")
_WORDS = _FIELDS.size // 8
_ENTRY_MAGIC = 0x314A4252  # "RBJ1"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

FILE_BYTES = _FILE.size
HEAD_BYTES = _FIELDS.size + 8
SEAL_BYTES = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as read. payload: a view into the file's bytes."""

    lsn: int
    kind: int
    time_ms: int
    payload: memoryview


# --- layout ---


def boot_id() -> bytes:
    """16 bytes that differ each time the machine is started; zeros where the system does not tell."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


def file_header() -> bytes:
    """What a segment begins with."""
    return _FILE.pack(_MAGIC, FORMAT, boot_id())


def entry_head(kind: int, lsn: int, time_ms: int, size: int, payload_digest: int, synced: int) -> bytes:
    """What an entry begins with. size: bytes of the payload; synced: LSN up to which all is on the disk itself."""
    fields = _FIELDS.pack(_ENTRY_MAGIC, kind, lsn, time_ms, size, payload_digest, synced)
    return fields + digest([fields]).to_bytes(8, "little")


def seal(lsn: int) -> bytes:
    """What an entry ends with: unlike the seal of any other entry, and hardly to be found in a payload."""
    return ((lsn * 0x9E3779B97F4A7C15 ^ 0x5EA1ED5EA1ED5EA1) & (2**64 - 1)).to_bytes(8, "little")


# --- reading ---


def segment_files(directory: Path) -> list[tuple[int, Path]]:
    """(first LSN, path) of the segments in `journal/`, oldest first."""
    return sorted((int(path.stem), path) for path in directory.glob("*.log"))


def read_segment(first: int, path: Path, until: int | None) -> Iterator[tuple[int, Entry]]:
    """(offset of the entry's end, entry) for each entry of a file.

    first: LSN of the first one; until: the one that the next file begins with, None in the newest, where a torn end is
    allowed. Raises JournalCorrupt, FormatTooNew.
    """
    data = _bytes_of(path)
    if len(data) < FILE_BYTES:
        if until is None:
            return
        raise _damage(path, 0, "the file is shorter than its header")
    magic, version, _ = _FILE.unpack_from(data)
    if magic != _MAGIC:
        raise _damage(path, 0, "it does not begin as a journal does")
    if version > FORMAT:
        raise FormatTooNew(
            f"{path} has journal format {version}, this Rockbed reads up to {FORMAT}: open it with a newer Rockbed"
        )
    at, lsn = FILE_BYTES, first
    while until is None or lsn < until:
        entry = _entry(data, at, lsn)
        if isinstance(entry, str):
            if until is not None:
                raise _damage(path, at, f"{entry}, and the journal lacks the entries {lsn} to {until - 1}")
            if _was_written(data[at:], lsn):
                raise _damage(path, at, entry)
            return
        at += HEAD_BYTES + len(entry.payload) + SEAL_BYTES
        lsn += 1
        yield at, entry


def cut_off(segments: Sequence[tuple[int, Path]], lsn: int) -> bool:
    """Whether a power cut explains that entry `lsn` is missing.

    segments: the file that should hold it, and those after it. True if the machine was started anew since they were
    begun and no later entry says that `lsn` was on the disk itself.
    """
    data = [_bytes_of(path) for _, path in segments]
    # all of them: the first may be what is damaged
    if any(bytes(part[FILE_BYTES - 16 : FILE_BYTES]) == boot_id() for part in data):
        return False
    return all(_newest_synced(part, lsn) < lsn for part in data)


def _bytes_of(path: Path) -> memoryview:
    with os_errors(f"reading {path}"):
        return np.fromfile(path, np.uint8).data if path.stat().st_size else memoryview(b"")


def _entry(data: memoryview, at: int, lsn: int) -> Entry | str:
    """The entry that begins at byte `at`, or why there is none."""
    start = at + HEAD_BYTES
    if start > len(data):
        return f"entry {lsn} is cut short"
    fields = data[at : at + _FIELDS.size]
    if int.from_bytes(data[at + _FIELDS.size : start], "little") != digest([fields]):
        return "no entry begins there"
    _, kind, found, time_ms, size, payload_digest, _ = _FIELDS.unpack(fields)
    if found != lsn:
        return f"entry {found} is there and not entry {lsn}"
    if start + size > len(data):
        return f"entry {lsn} is cut short"
    payload = data[start : start + size]
    if digest([payload]) != payload_digest:
        return f"entry {lsn} does not match its digest"
    return Entry(lsn, kind, time_ms, payload)


def _was_written(data: memoryview, lsn: int) -> bool:
    """Whether these bytes show that the entry was once written whole: by its seal, or by a later entry."""
    return bool((_words(data) == int.from_bytes(seal(lsn), "little")).any()) or _newest_synced(data, lsn) >= 0


def _newest_synced(data: memoryview, lsn: int) -> int:
    """What the newest head of an entry after `lsn` says was on the disk; -1 if there is none."""
    words = _words(data)
    heads = np.flatnonzero((words[: max(0, words.size - _WORDS)] & np.uint64(0xFFFFFFFF)) == _ENTRY_MAGIC)
    for i in heads[words[heads + 1] > lsn][::-1]:
        if digest([words[i : i + _WORDS]]) == words[i + _WORDS]:
            return int(words[i + _WORDS - 1])
    return -1


def _words(data: memoryview) -> U64:
    return np.asarray(data[: len(data) // 8 * 8], np.uint8).view(np.uint64)


def _damage(path: Path, offset: int, what: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"{path} is damaged at byte {offset}: {what}. Nothing was changed. Restore a checkpoint with "
        "PyStorage.restore, or open with repair=True to keep everything before the damage (what follows it is set "
        "aside in journal/damaged)"
    )


# --- mending, when a store is opened ---


def truncate(path: Path, end: int) -> None:
    """Cut off what follows the last whole entry: it was never acknowledged."""
    if path.stat().st_size > max(end, FILE_BYTES):
        with os_errors(f"cutting {path} back to its last whole entry"):
            os.truncate(path, max(end, FILE_BYTES))


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
