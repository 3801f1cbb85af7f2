"""One row on disk: its RocksDB key and its record. Format version 1; tests/storage/test_record.py holds golden bytes.

key, 12 bytes, big-endian, so that bytes sort as numbers do:
    group u16 | slot u16 | key u64 with the sign bit flipped         slot = mix64(key) & 0x3FFF
record, little-endian, packed:
    version u8 | flags u8 | group u16 | dim u32 | key i64 | update_time i64 (ms) | update_num i64 | lsn u64
    | data f32[dim + state]      weights, then the optimizer's slots in their order
value, what RocksDB holds: the record, then i32 seconds since 1970, where its TTL compaction looks (DBWithTTL).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rockbed.kernels import inlined, kernel, mix64, prefetch
from rockbed.types import F32, I32, I64, U8

RECORD_VERSION = 1
KEY_BYTES = 12
SLOTS = 1 << 14
TTL_STAMP_BYTES = 4

FLAG_FRESH = 1  # no push since its initial value: a replayed push starts it from the initializer again

HEADER = np.dtype(
    [
        ("version", "u1"),
        ("flags", "u1"),
        ("group", "<u2"),
        ("dim", "<u4"),
        ("key", "<i8"),
        ("update_time", "<i8"),
        ("update_num", "<i8"),
        ("lsn", "<u8"),
    ]
)
HEADER_BYTES = HEADER.itemsize  # 40


def record_bytes(width: int) -> int:
    """Bytes of a record that holds `width` float32 values (dim and slots together)."""
    return HEADER_BYTES + 4 * width


@inlined
def key_word(key: int) -> Any:
    """The key with its sign bit flipped, as uint64: unsigned order is then the order of signed keys."""
    return np.uint64(key) ^ np.uint64(0x8000000000000000)


@inlined
def slot_of(key: int) -> Any:
    """The slot of a key: 0..SLOTS-1."""
    return mix64(key) & np.uint64(SLOTS - 1)


@kernel
def _encode_keys(group: int, keys: I64, out: U8) -> None:
    for i in range(keys.shape[0]):
        slot = slot_of(keys[i])
        word = key_word(keys[i])
        out[i, 0] = group >> 8
        out[i, 1] = group & 0xFF
        out[i, 2] = slot >> np.uint64(8)
        out[i, 3] = slot & np.uint64(0xFF)
        for j in range(8):
            out[i, 4 + j] = (word >> np.uint64(56 - 8 * j)) & np.uint64(0xFF)


def encode_keys(group: int, keys: I64) -> U8:
    """keys: int64[n] -> uint8[n, 12], the rows' keys in RocksDB."""
    out = np.empty((keys.shape[0], KEY_BYTES), np.uint8)
    _encode_keys(group, keys, out)
    return out


@kernel
def _sort_words(keys: I64, out: I64) -> None:
    # (slot, key) squeezed into one word that sorts almost always right: 14 bits of slot, the top 50 of the key
    for i in range(keys.shape[0]):
        slot = slot_of(keys[i])
        out[i] = np.int64(((slot << np.uint64(50)) | (key_word(keys[i]) >> np.uint64(14))) ^ np.uint64(1 << 63))


def disk_order(keys: I64) -> I64:
    """The permutation that sorts distinct keys of one group as RocksDB does. keys: int64[n] -> int64[n]."""
    words = np.empty(keys.shape[0], np.int64)
    _sort_words(keys, words)
    order = np.argsort(words, kind="stable")
    ranked = words[order]
    if ranked.size > 1 and (ranked[1:] == ranked[:-1]).any():  # keys that differ in their low 14 bits only
        slots = (words >> 50).astype(np.int64)
        order = np.lexsort((keys, slots))
    return order


def key_prefix(group: int) -> bytes:
    """The first bytes of every key of the group."""
    return group.to_bytes(2, "big")


def prefix_end(prefix: bytes) -> bytes | None:
    """The least key above every key that begins with `prefix`; None where there is none (a prefix of 0xff only)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def decode_key(raw: bytes) -> tuple[int, int]:
    """(group, key) of a 12-byte RocksDB key."""
    group = int.from_bytes(raw[:2], "big")
    return group, (int.from_bytes(raw[4:], "big") ^ (1 << 63)) - (1 << 64 if raw[4] < 0x80 else 0)


# A value is a whole number of 4-byte words, but not always of 8-byte ones: the kernels below see it as words.


@kernel
def pack_words(
    rows: I64, header: I64, fresh: U8, data: F32, group: int, dim: int, stamp: int, words: I32, floats: F32
) -> None:
    """`pack`, for other kernels: words and floats are both the values' bytes."""
    width = data.shape[1]
    for i in range(rows.shape[0]):
        if i + 8 < rows.shape[0]:
            prefetch(header, rows[i + 8] * 32)
            for offset in range(0, width * 4, 64):
                prefetch(data, rows[i + 8] * width * 4 + offset)
        r = rows[i]
        words[i, 0] = RECORD_VERSION | (np.int64(fresh[i]) << 8) | (group << 16)
        words[i, 1] = dim
        for j in range(4):
            words[i, 2 + 2 * j] = header[r, j]  # keeps the low 32 bits
            words[i, 3 + 2 * j] = header[r, j] >> 32
        for j in range(width):
            floats[i, 10 + j] = data[r, j]
        words[i, 10 + width] = stamp


def pack(rows: I64, header: I64, fresh: U8, data: F32, group: int, dim: int, stamp: int, out: U8) -> None:
    """Write rows of the hot tier as RocksDB values.

    rows: int64[n]; header: int64[capacity, 4] (key, update time, update count, LSN); fresh: uint8[n], record flags;
    data: float32[capacity, width]; out: uint8[n, record_bytes(width) + 4], C-contiguous, filled.
    stamp: seconds since 1970 for RocksDB's TTL; the time of writing, so that a row is dropped late rather than early.
    """
    pack_words(rows, header, fresh, data, group, dim, stamp, out.view(np.int32), out.view(np.float32))


@kernel
def _unpack(words: I32, floats: F32, rows: I64, header: I64, data: F32) -> None:
    width = data.shape[1]
    for i in range(rows.shape[0]):
        r = rows[i]
        for j in range(4):
            low = np.int64(words[i, 2 + 2 * j]) & np.int64(0xFFFFFFFF)
            header[r, j] = (np.int64(words[i, 3 + 2 * j]) << 32) | low
        for j in range(width):
            data[r, j] = floats[i, 10 + j]


def unpack(records: U8, rows: I64, header: I64, data: F32) -> None:
    """The reverse of `pack`. records: as RocksDB returns them (its stamp taken off), uint8[n, record_bytes(width)]."""
    _unpack(records.view(np.int32), records.view(np.float32), rows, header, data)


def headers_of(records: U8) -> NDArray[np.void]:
    """The header of each record, as a structured array [n] (a view, not a copy)."""
    return records[:, :HEADER_BYTES].view(HEADER)[:, 0]
