"""XXH64 over arrays, and the unaligned loads that it and the table writer read memory with.

Source: the xxHash specification (Collet, "XXH64 algorithm description", v0.2.0). Loads are little-endian, as
the specification asks and as every machine that numba compiles this for is.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from rockbed.kernels import inlined

PRIME_1 = np.uint64(0x9E3779B185EBCA87)
PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
PRIME_3 = np.uint64(0x165667B19E3779F9)
PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
PRIME_5 = np.uint64(0x27D4EB2F165667C5)
STRIPE_BYTES = 32


def _load(bits: int, result: Any) -> Any:
    def load(typing_context: Any, array: Any, offset: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            base = context.make_array(signature.args[0])(context, builder, args[0]).data
            address = builder.gep(builder.bitcast(base, ir.IntType(8).as_pointer()), [args[1]])
            # Alignment 1: an array may start, and a part of it lie, anywhere.
            return builder.load(builder.bitcast(address, ir.IntType(bits).as_pointer()), align=1)

        return result(array, types.int64), generate

    return intrinsic(load)


_load_u32 = _load(32, types.uint32)
_load_u64 = _load(64, types.uint64)


@inlined
def load_u32(data: Any, offset: int) -> Any:
    """The 4 bytes at byte `offset` of a C-contiguous array as uint32; not bounds-checked. Inside kernels only."""
    return _load_u32(data, offset)


@inlined
def load_u64(data: Any, offset: int) -> Any:
    """The 8 bytes at byte `offset` of a C-contiguous array as uint64; not bounds-checked. Inside kernels only."""
    return _load_u64(data, offset)


@inlined
def _rotated(x: Any, bits: int) -> Any:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@inlined
def _round(lane: Any, word: Any) -> Any:
    return _rotated(lane + word * PRIME_2, 31) * PRIME_1


@inlined
def _merged(digest: Any, lane: Any) -> Any:
    return (digest ^ _round(np.uint64(0), lane)) * PRIME_1 + PRIME_4


@inlined
def xxh64_of(data: Any, start: int, stop: int, seed: Any) -> Any:
    """XXH64 of the bytes [start, stop) of a C-contiguous array, for callers inside kernels. -> uint64."""
    seed = np.uint64(seed)
    at = start
    if stop - start >= STRIPE_BYTES:
        lane_1 = seed + PRIME_1 + PRIME_2
        lane_2 = seed + PRIME_2
        lane_3 = seed
        lane_4 = seed - PRIME_1
        while at + STRIPE_BYTES <= stop:
            lane_1 = _round(lane_1, load_u64(data, at))
            lane_2 = _round(lane_2, load_u64(data, at + 8))
            lane_3 = _round(lane_3, load_u64(data, at + 16))
            lane_4 = _round(lane_4, load_u64(data, at + 24))
            at += STRIPE_BYTES
        digest = _rotated(lane_1, 1) + _rotated(lane_2, 7) + _rotated(lane_3, 12) + _rotated(lane_4, 18)
        digest = _merged(_merged(_merged(_merged(digest, lane_1), lane_2), lane_3), lane_4)
    else:
        digest = seed + PRIME_5
    digest += np.uint64(stop - start)
    while at + 8 <= stop:
        digest = _rotated(digest ^ _round(np.uint64(0), load_u64(data, at)), 27) * PRIME_1 + PRIME_4
        at += 8
    if at + 4 <= stop:
        digest = _rotated(digest ^ np.uint64(load_u32(data, at)) * PRIME_1, 23) * PRIME_2 + PRIME_3
        at += 4
    while at < stop:
        digest = _rotated(digest ^ np.uint64(data[at]) * PRIME_5, 11) * PRIME_1
        at += 1
    digest = (digest ^ (digest >> np.uint64(33))) * PRIME_2
    digest = (digest ^ (digest >> np.uint64(29))) * PRIME_3
    return digest ^ (digest >> np.uint64(32))
