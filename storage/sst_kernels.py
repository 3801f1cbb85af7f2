"""The compiled loops of the table writer; sst.py describes the file format.

`rows` is int64[n], the row of keys and values for each position of the file; an empty array stands for 0, 1, 2, ...
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from rockbed.kernels import inlined, kernel, prefetch
from rockbed.storage.checksum import PRIME_3, load_u32, load_u64, xxh64_of
from rockbed.types import I64, U8

KEY_BYTES = 12
LINE_BYTES = 64  # of the filter
ROWS_PER_RESTART = 16
TRAILER_BYTES = 5  # compression byte, checksum u32

_PREFETCH_ROWS = 8
_PREFETCH_BYTES = 512  # of a row; the hardware follows a longer one by itself


# --- building blocks ---


def _emit_copy(typing_context: Any, target: Any, target_at: Any, source: Any, source_at: Any, size: Any) -> Any:
    """memcpy between byte offsets of two C-contiguous arrays: (target, target_at, source, source_at, size)."""
    signature = types.void(target, types.int64, source, types.int64, types.int64)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        memcpy: Any = cgutils.raw_memcpy
        byte = ir.IntType(8).as_pointer()
        places = []
        for array, array_type, offset in ((args[0], sig.args[0], args[1]), (args[2], sig.args[2], args[3])):
            base = context.make_array(array_type)(context, builder, array).data
            places.append(builder.gep(builder.bitcast(base, byte), [offset]))
        memcpy(builder, places[0], places[1], args[4], 1)
        return context.get_dummy_value()

    return signature, generate


def _emit_product_high(typing_context: Any, a: Any, b: Any) -> Any:
    """The upper 64 bits of the 128-bit product of two uint64."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


# Any: numba passes the first argument, the typing context, itself, which its own annotations do not say.
_copy: Any = intrinsic(_emit_copy)
_product_high: Any = intrinsic(_emit_product_high)


@inlined
def _row(rows: I64, position: int) -> Any:
    return rows[position] if rows.size else position


@inlined
def _swapped(x: Any) -> Any:
    """A uint64 with its bytes in the opposite order; LLVM knows the pattern as one instruction."""
    x = ((x & np.uint64(0x00FF00FF00FF00FF)) << np.uint64(8)) | ((x >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF))
    x = ((x & np.uint64(0x0000FFFF0000FFFF)) << np.uint64(16)) | ((x >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF))
    return (x << np.uint64(32)) | (x >> np.uint64(32))


@inlined
def _key_high(keys: U8, row: int) -> Any:
    """The first 8 bytes of a key as the uint64 that sorts as they do."""
    return _swapped(load_u64(keys, row * KEY_BYTES))


@inlined
def _key_low(keys: U8, row: int) -> Any:
    """The last 4 bytes of a key, as `_key_high`."""
    return _swapped(np.uint64(load_u32(keys, row * KEY_BYTES + 8)) << np.uint64(32))


@inlined
def _put_u32(out: U8, at: int, value: Any) -> int:
    for byte in range(4):
        out[at + byte] = np.uint8((value >> (8 * byte)) & 0xFF)
    return at + 4


@inlined
def _put_varint(out: U8, at: int, value: int) -> int:
    while value >= 0x80:
        out[at] = np.uint8(value & 0x7F | 0x80)
        value >>= 7
        at += 1
    out[at] = np.uint8(value)
    return at + 1


@inlined
def _sealed_at(out: U8, start: int, stop: int) -> int:
    """Write the trailer of the block [start, stop) behind it. -> where the next block starts."""
    out[stop] = 0
    return _put_u32(out, stop + 1, np.int64(xxh64_of(out, start, stop + 1, 0) & np.uint64(0xFFFFFFFF)))


@kernel
def seal(out: U8, size: int) -> None:
    """Write the trailer of the block out[:size] behind it, where there is room for TRAILER_BYTES."""
    _sealed_at(out, 0, size)


# --- the file ---


@inlined
def _filter_hash(keys: U8, row: int) -> Any:
    # XXPH3_64bits of util/xxph3.h (the XXH3 of late 2019, not the released one) for a length of 9 to 16, seed 0.
    # The two constants are the first 16 bytes of its default secret.
    low = load_u64(keys, row * KEY_BYTES) ^ np.uint64(0xBE4BA423396CFEB8)
    high = load_u64(keys, row * KEY_BYTES + KEY_BYTES - 8) ^ np.uint64(0x1CAD21F72C81017C)
    h = np.uint64(KEY_BYTES) + (low + high) + (low * high ^ _product_high(low, high))
    h = (h ^ (h >> np.uint64(37))) * PRIME_3
    return h ^ (h >> np.uint64(32))


@inlined
def _add_to_filter(lines: U8, probes: int, h: Any) -> None:
    # util/bloom_impl.h: the low half picks the line, the high half the bits in it.
    line = ((h & np.uint64(0xFFFFFFFF)) * np.uint64(lines.size // LINE_BYTES)) >> np.uint64(32)
    base = np.int64(line) * LINE_BYTES
    probe = h >> np.uint64(32)
    for _ in range(probes):
        bit = np.int64(probe >> np.uint64(32 - 9))
        lines[base + (bit >> 3)] |= np.uint8(1 << (bit & 7))
        probe = (probe * np.uint64(0x9E3779B9)) & np.uint64(0xFFFFFFFF)


@kernel
def scan(keys: U8, rows: I64, n: int, lines: U8, probes: int) -> int:
    """Check that the n keys ascend strictly and rows exist, and add them to the filter's lines (if there are any).

    -> the first position that is wrong, -1 if none is. Runs before there is a file, and before `rows` is trusted.
    """
    last_high = np.uint64(0)
    last_low = np.uint64(0)
    for i in range(n):
        row = _row(rows, i)
        if row < 0 or row >= keys.shape[0]:
            return i
        if rows.size and i + _PREFETCH_ROWS < n:
            prefetch(keys, rows[i + _PREFETCH_ROWS] * KEY_BYTES)
        high = _key_high(keys, row)
        low = _key_low(keys, row)
        if i > 0 and (high < last_high or (high == last_high and low <= last_low)):
            return i
        last_high = high
        last_low = low
        if lines.size:
            _add_to_filter(lines, probes, _filter_hash(keys, row))
    return -1


@kernel
def fill_blocks(
    out: U8, keys: U8, values: U8, rows: I64, start: int, stop: int, rows_per_block: int, head: U8, key_at: int
) -> int:
    """Write the data blocks of positions start to stop, with their trailers, to the front of out. -> bytes written.

    head: uint8[h], what precedes the value in an entry, with room for the key at key_at.
    """
    value_bytes = values.shape[1]
    at = 0
    first = start
    while first < stop:
        block = at
        last = min(stop, first + rows_per_block)
        for i in range(first, last):
            row = _row(rows, i)
            # Rows in the order of the arrays are fetched ahead by the hardware; others would cost a cache miss each.
            if rows.size and i + _PREFETCH_ROWS < stop:
                ahead = rows[i + _PREFETCH_ROWS]
                prefetch(keys, ahead * KEY_BYTES)
                for offset in range(0, min(value_bytes, _PREFETCH_BYTES), 64):
                    prefetch(values, ahead * value_bytes + offset)
            _copy(out, at, head, 0, head.size)
            _copy(out, at + key_at, keys, row * KEY_BYTES, KEY_BYTES)
            _copy(out, at + head.size, values, row * value_bytes, value_bytes)
            at += head.size + value_bytes
        restarts = 0
        for _ in range(first, last, ROWS_PER_RESTART):
            at = _put_u32(out, at, restarts * ROWS_PER_RESTART * (head.size + value_bytes))
            restarts += 1
        at = _put_u32(out, at, restarts)
        at = _sealed_at(out, block, at)
        first = last
    return at


@kernel
def fill_index(
    out: U8, keys: U8, rows: I64, n: int, rows_per_block: int, block_bytes: int, last_block_bytes: int
) -> int:
    """Write the index block of n rows, without its trailer, to the front of out. -> bytes written.

    Every entry is a restart point and so holds its key and its place whole.
    """
    blocks = (n + rows_per_block - 1) // rows_per_block
    offsets = np.empty(blocks, np.int64)
    at = 0
    for block in range(blocks):
        offsets[block] = at
        final = block == blocks - 1
        out[at] = 0
        out[at + 1] = KEY_BYTES
        row = _row(rows, n - 1 if final else (block + 1) * rows_per_block - 1)
        _copy(out, at + 2, keys, row * KEY_BYTES, KEY_BYTES)
        at = _put_varint(out, at + 2 + KEY_BYTES, block * (block_bytes + TRAILER_BYTES))
        at = _put_varint(out, at, last_block_bytes if final else block_bytes)
    for block in range(blocks):
        at = _put_u32(out, at, offsets[block])
    return _put_u32(out, at, blocks)
