"""A RocksDB table (SST) file written from two arrays, without the GIL, for `Rdict.ingest_external_file`.

rocksdict's WriteBatch and SstFileWriter take one Python call a row and hold the GIL meanwhile. Keys and values of
fixed width make the file simple instead: where entries share no key prefix they all have the same size, so a data
block is a strided copy, and the place of every block is known beforehand.

The format is RocksDB's block-based table, format_version 5 (its table/format.cc, block_builder.cc, meta_blocks.cc,
sst_file_writer.cc; for the filter util/bloom_impl.h and util/xxph3.h). In the order of the file:

    data blocks       entries (sizes of shared key, rest of key, value as varints; key; value), restart offsets, count
    filter block      RocksDB's full filter: a Bloom filter whose probes for one key lie in one cache line
    index block       last user key of each data block -> offset and size of the block
    properties block  name -> value; `rocksdb.external_sst_file.*` mark a file that may be ingested
    metaindex block   name -> offset and size of the filter and of the properties
    footer            checksum kind, places of metaindex and index, format_version, magic number

Each block is followed by a compression byte (0: none; RocksDB compresses when it compacts the file) and the low
32 bits of the XXH64 of the block and that byte. Integers are little-endian.
"""

import contextlib
import os
import secrets
from typing import Any

import numpy as np

from rockbed.errors import WrongDtype, WrongShape
from rockbed.storage.sst_kernels import (
    KEY_BYTES,
    LINE_BYTES,
    ROWS_PER_RESTART,
    TRAILER_BYTES,
    fill_blocks,
    fill_index,
    scan,
    seal,
)
from rockbed.types import I64, U8

BLOCK_BYTES = 16 << 10  # aimed at: a block holds whole entries, and at least one
BUFFER_BYTES = 16 << 20  # data blocks are built and written in pieces of about this size
BLOOM_BITS_PER_KEY = 10  # of the filter; 0: no filter. With 10 about 1% of the absent keys pass the filter
BLOCK_BYTES_MAX = 1 << 30  # offsets inside a block have 32 bits
VALUE_BYTES_MAX = 16 << 20  # far above any row

_INTERNAL_KEY_BYTES = KEY_BYTES + 8
_SEQUENCE_AND_TYPE = b"\x01" + bytes(7)  # sequence number 0 << 8 | a put; ingesting gives the file its real number
_FILTER_BYTES_MAX = 0xFFFFFFC0  # RocksDB keeps the size of a filter in 32 bits
_CHECKSUM_XXH64 = 3
_FORMAT_VERSION = 5
_MAGIC = 0x88E241B785F4CFF7


def write_sst(
    path: str | os.PathLike[str],
    keys: U8,
    values: U8,
    *,
    order: I64 | None = None,
    sync: bool = False,
    bloom_bits_per_key: int = BLOOM_BITS_PER_KEY,
    block_bytes: int = BLOCK_BYTES,
    buffer_bytes: int = BUFFER_BYTES,
) -> int:
    """Write rows to a new table file at path, for `Rdict.ingest_external_file`. -> the file's size in bytes.

    keys: uint8[n, 12]; values: uint8[n, v], 1 <= v <= VALUE_BYTES_MAX; both C-contiguous. order: int64[m], m >= 1,
    the row numbers to write, in the order of their keys (see `disk_order`); None writes rows 0 to n - 1, n >= 1. In
    the order written the keys must ascend strictly, compared as bytes. Nothing is added to a value: for a database
    opened with a TTL each must end with the 4 bytes that DBWithTTL keeps there, the time of writing in seconds since
    1970 as a little-endian int32. The database must have the default (bytewise) comparator, and uses the filter if
    its own table options have a Bloom filter, whatever their bits a key.

    The GIL is held for some microseconds between pieces of buffer_bytes only. Peak memory beside the arguments:
    buffer_bytes (one block if that is more, the data if that is less), bloom_bits_per_key bits a row, about 33 bytes
    a block. sync: return only when the contents are on the disk (the directory entry is the ingestion's affair).

    Raises WrongDtype, WrongShape, ValueError (keys out of order, a row number out of range) before there is a file, and
    the operating system's OSError unchanged; the unfinished file is removed then. FileExistsError if path exists: a
    file left by an interrupted ingestion can be a hard link to a live table, so it may be removed, never overwritten.
    """
    _check(keys, values, order, bloom_bits_per_key, block_bytes, buffer_bytes)
    rows = np.empty(0, np.int64) if order is None else order  # empty: every row, in the order of the arrays
    n = keys.shape[0] if order is None else order.size
    lines, filter_block = _empty_filter(n, bloom_bits_per_key)
    wrong = scan(keys, rows, n, lines, _probes(bloom_bits_per_key))
    if wrong >= 0:
        raise ValueError(_what_is_wrong(keys, rows, wrong))
    layout = _Layout(n, values.shape[1], block_bytes)
    tail = _tail(layout, filter_block, keys, rows)
    # O_EXCL for the reason in the docstring. O_BINARY exists, and is needed, on Windows only.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    fd = os.open(path, flags, 0o644)
    try:
        try:
            size = _write_data(fd, keys, values, rows, layout, buffer_bytes)
            for part in tail:
                size += _write_all(fd, part)
            if sync:
                getattr(os, "fdatasync", os.fsync)(fd)
        finally:
            os.close(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return size


class _Layout:
    """Where everything lies in the data part of a file of n rows: all blocks but the last are alike."""

    def __init__(self, n: int, value_bytes: int, block_bytes: int) -> None:
        self.n = n
        self.value_bytes = value_bytes
        sizes = _varint(0) + _varint(_INTERNAL_KEY_BYTES) + _varint(value_bytes)
        # What an entry starts with; the key is put in its place.
        self.entry_head = np.frombuffer(sizes + bytes(KEY_BYTES) + _SEQUENCE_AND_TYPE, np.uint8).copy()
        self.key_at = len(sizes)
        self.entry_bytes = self.entry_head.size + value_bytes
        self.rows_per_block = min(n, max(1, block_bytes // self.entry_bytes))
        self.blocks = -(-n // self.rows_per_block)
        self.block_bytes = self.size_of_block(self.rows_per_block)
        self.last_block_bytes = self.size_of_block(n - (self.blocks - 1) * self.rows_per_block)
        self.data_bytes = (self.blocks - 1) * (self.block_bytes + TRAILER_BYTES) + self.last_block_bytes + TRAILER_BYTES

    def size_of_block(self, rows: int) -> int:
        """Bytes of a data block of that many rows, without its trailer."""
        return rows * self.entry_bytes + 4 * -(-rows // ROWS_PER_RESTART) + 4


# --- pieces written one after the other ---


def _write_data(fd: int, keys: U8, values: U8, rows: I64, layout: _Layout, buffer_bytes: int) -> int:
    blocks_a_piece = min(layout.blocks, max(1, buffer_bytes // (layout.block_bytes + TRAILER_BYTES)))
    buffer = np.empty(blocks_a_piece * (layout.block_bytes + TRAILER_BYTES), np.uint8)
    size = 0
    for block in range(0, layout.blocks, blocks_a_piece):
        start = block * layout.rows_per_block
        stop = min(layout.n, (block + blocks_a_piece) * layout.rows_per_block)
        used = fill_blocks(
            buffer, keys, values, rows, start, stop, layout.rows_per_block, layout.entry_head, layout.key_at
        )
        size += _write_all(fd, buffer[:used])
    return size


def _write_all(fd: int, data: Any) -> int:
    """os.write until all is written: one call may take less, and takes 2 GiB at most. -> bytes written."""
    rest = memoryview(data)
    size = len(rest)
    while rest:
        rest = rest[os.write(fd, rest) :]
    return size


def _tail(layout: _Layout, filter_block: U8, keys: U8, rows: I64) -> list[U8 | bytes]:
    """What follows the data blocks: filter (unless it is empty), index, properties, metaindex, footer."""
    parts: list[U8 | bytes] = []
    places: dict[bytes, bytes] = {}
    end = layout.data_bytes

    def add(name: bytes, block: U8) -> None:
        nonlocal end
        size = block.size - TRAILER_BYTES
        seal(block, size)
        parts.append(block)
        places[name] = _varint(end) + _varint(size)
        end += block.size

    if filter_block.size:
        add(b"fullfilter.rocksdb.BuiltinBloomFilter", filter_block)
    # At most, for each data block: two sizes, the key, offset and size as varints, the offset of the entry.
    index: U8 = np.empty(layout.blocks * (2 + KEY_BYTES + 10 + 5 + 4) + 4 + TRAILER_BYTES, np.uint8)
    used = fill_index(index, keys, rows, layout.n, layout.rows_per_block, layout.block_bytes, layout.last_block_bytes)
    index = index[: used + TRAILER_BYTES]
    add(b"index", index)
    index_place = places.pop(b"index")
    add(b"rocksdb.properties", _small_block(_properties(layout, max(0, filter_block.size - TRAILER_BYTES), index.size)))
    add(b"metaindex", _small_block(places))
    footer = bytes([_CHECKSUM_XXH64]) + (places[b"metaindex"] + index_place).ljust(40, b"\0")
    parts.append(footer + _fixed(_FORMAT_VERSION, 4) + _fixed(_MAGIC, 8))
    return parts


def _empty_filter(n: int, bits_per_key: int) -> tuple[U8, U8]:
    """A filter for n keys without a key in it yet: (its lines, the whole block, of which they are a view)."""
    if bits_per_key == 0:
        return np.empty(0, np.uint8), np.empty(0, np.uint8)
    line_bytes = min(-(-n * bits_per_key // (8 * LINE_BYTES)) * LINE_BYTES, _FILTER_BYTES_MAX)
    # 0xFF: none of the kinds from before format_version 5; 0: cache-local Bloom with lines of 64 bytes.
    metadata = bytes([0xFF, 0, _probes(bits_per_key), 0, 0])
    block = np.zeros(line_bytes + len(metadata) + TRAILER_BYTES, np.uint8)
    block[line_bytes : line_bytes + len(metadata)] = np.frombuffer(metadata, np.uint8)
    return block[:line_bytes], block


def _probes(bits_per_key: int) -> int:
    """Probes a key. 0.6 a bit of the filter is about best where all of them lie in one line; the file says how many."""
    return max(1, round(0.6 * bits_per_key))


def _properties(layout: _Layout, filter_size: int, index_size: int) -> dict[bytes, bytes]:
    """The properties that SstFileWriter writes, less those that only say how it compressed.

    As RocksDB has it, the size of the index includes the trailer and that of the filter does not.
    """
    # A file's identity in RocksDB's caches and in its manifest is (session, file number): a session of its own for
    # each file makes that unique. 20 digits of base 36, as RocksDB has it.
    session = "".join(secrets.choice("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(20))
    properties = {
        "block.based.table.index.type": _fixed(0, 4),  # binary search
        "block.based.table.prefix.filtering": b"0",
        "block.based.table.whole.key.filtering": b"1",
        "column.family.id": _varint(0x7FFFFFFF),  # unknown: any family may ingest it
        "comparator": b"leveldb.BytewiseComparator",
        "compression": b"NoCompression",
        "creating.db.identity": b"Rockbed",
        "creating.session.identity": session.encode(),
        "data.size": _varint(layout.data_bytes),
        "deleted.keys": _varint(0),
        "external_sst_file.global_seqno": _fixed(0, 8),  # the real one is in the manifest, since version 2
        "external_sst_file.version": _fixed(2, 4),
        "filter.size": _varint(filter_size),
        "fixed.key.length": _varint(0),
        "format.version": _varint(_FORMAT_VERSION),
        "index.key.is.user.key": _varint(1),
        "index.size": _varint(index_size),
        "index.value.is.delta.encoded": _varint(1),
        "key.largest.seqno": _varint(0),
        "merge.operands": _varint(0),
        "merge.operator": b"nullptr",
        "num.data.blocks": _varint(layout.blocks),
        "num.entries": _varint(layout.n),
        "num.filter_entries": _varint(layout.n if filter_size else 0),
        "num.range-deletions": _varint(0),
        "original.file.number": _varint(1),
        "prefix.extractor.name": b"nullptr",
        "property.collectors": b"[]",
        "raw.key.size": _varint(layout.n * _INTERNAL_KEY_BYTES),
        "raw.value.size": _varint(layout.n * layout.value_bytes),
        "tail.start.offset": _varint(layout.data_bytes),  # lets RocksDB read all that follows with one call
    }
    if filter_size:
        properties["filter.policy"] = b"bloomfilter"
    return {b"rocksdb." + name.encode(): value for name, value in properties.items()}


def _small_block(entries: dict[bytes, bytes]) -> U8:
    """A block with its keys sorted and every entry a restart point, with room for the trailer."""
    body = b""
    restarts = []
    for key, value in sorted(entries.items()):
        restarts.append(len(body))
        body += _varint(0) + _varint(len(key)) + _varint(len(value)) + key + value
    body += b"".join(_fixed(number, 4) for number in [*restarts, len(restarts)])
    return np.frombuffer(body + bytes(TRAILER_BYTES), np.uint8).copy()


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def _fixed(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


# --- checks of the arguments ---


def _check(keys: U8, values: U8, order: I64 | None, bloom_bits: int, block_bytes: int, buffer_bytes: int) -> None:
    _check_matrix("keys", keys)
    _check_matrix("values", values)
    if keys.shape[1] != KEY_BYTES or keys.shape[0] != values.shape[0] or not 1 <= values.shape[1] <= VALUE_BYTES_MAX:
        raise WrongShape(
            f"keys are uint8[n, {KEY_BYTES}] and values uint8[n, 1 to {VALUE_BYTES_MAX}], not {list(keys.shape)} and "
            f"{list(values.shape)}"
        )
    if order is not None:
        if order.dtype != np.int64:
            raise WrongDtype(f"order is int64, not {order.dtype}")
        if order.ndim != 1 or not order.flags.c_contiguous:
            raise WrongShape(f"order is a C-contiguous int64[m], not {list(order.shape)}")
    if (keys.shape[0] if order is None else order.size) == 0:
        raise ValueError("a table file holds at least one row")
    if not (0 <= bloom_bits <= 40 and 1 <= block_bytes <= BLOCK_BYTES_MAX and buffer_bytes >= 1):
        raise ValueError(
            f"bloom_bits_per_key {bloom_bits} is to be 0 to 40, block_bytes {block_bytes} 1 to {BLOCK_BYTES_MAX}, "
            f"buffer_bytes {buffer_bytes} at least 1"
        )


def _check_matrix(name: str, array: U8) -> None:
    if array.dtype != np.uint8:
        raise WrongDtype(f"{name} are uint8, not {array.dtype}")
    if array.ndim != 2 or not array.flags.c_contiguous:
        raise WrongShape(f"{name} are a C-contiguous uint8[n, width], not {list(array.shape)}")


def _what_is_wrong(keys: U8, rows: I64, position: int) -> str:
    if rows.size and not 0 <= rows[position] < keys.shape[0]:
        return f"order[{position}] is {rows[position]}, keys has {keys.shape[0]} rows"
    here, before = (keys[rows[i] if rows.size else i].tobytes().hex() for i in (position, position - 1))
    return f"keys must ascend strictly: {here} at {position} follows {before}"
