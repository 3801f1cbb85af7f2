"""Loops over the features of a batch: one call, where a call for each would take longer than what it is for."""

import numpy as np

from rockbed.addresses import bytes_at, float_rows_at, floats_at, integer_rows_at, integers_at
from rockbed.kernels import kernel, prefetch
from rockbed.storage.bag_kernels import pool, pool_rows
from rockbed.storage.index import find
from rockbed.types import F32, I64, AnyArray

TABLE = [(name, np.int64) for name in ("index", "entries", "header", "flags", "data", "capacity", "width", "dim")]
"""A HotTable, as its `addresses` gives it: where its arrays are, and their sizes."""

PIECE = np.dtype(
    [
        *TABLE,
        ("oldest_ms", np.int64),  # rows written then or before have expired
        ("keys", np.int64),  # the feature's arrays, all of its bags
        ("offsets", np.int64),
        ("weights", np.int64),
        ("scale", np.int64),
        ("count", np.int64),  # keys
        ("bags", np.int64),
        ("weighted", np.int64),  # how many weights and scales there are
        ("scaled", np.int64),
        ("out", np.int64),
        ("stride", np.int64),
        ("column", np.int64),
        ("first", np.int64),  # where the feature's keys begin among those of the batch
        ("low", np.int64),  # its bags from low to high - 1
        ("high", np.int64),
        ("limit", np.float32),
    ]
)
"""Some bags of a feature, of which every key counts. Names as of bag_kernels.pool."""

_AHEAD = 64  # as in hot_kernels
_HEADER_BYTES = 32


@kernel
def find_and_pool(pieces: AnyArray, start: int, end: int, touch: int, none: F32, rows: I64, absent: I64) -> None:
    """Find the rows of the pieces start..end - 1, and combine them where none is missing.

    pieces: PIECE[n]. none: float32[0, 0]. rows: int64[keys of the batch], filled with the row of each key, -1 where
    it is not in memory or has expired. absent: int64[n, 2], filled with how many of either kind a piece has.
    """
    for p in range(start, end):
        piece = pieces[p]
        offsets = integers_at(piece.offsets, piece.bags + 1)
        header = integer_rows_at(piece.header, piece.capacity, 4)
        own = rows[piece.first : piece.first + piece.count]
        low, high = offsets[piece.low], offsets[piece.high]
        absent[p, 0] = find(
            integer_rows_at(piece.index, piece.entries, 2),
            integers_at(piece.keys, piece.count)[low:high],
            bytes_at(piece.flags, piece.capacity),
            touch,
            own[low:high],
        )
        absent[p, 1] = _hide_expired(header, own[low:high], piece.oldest_ms) if piece.oldest_ms >= 0 else 0
        if absent[p, 0] or absent[p, 1]:
            continue
        data = float_rows_at(piece.data, piece.capacity, piece.width)
        out = float_rows_at(piece.out, piece.bags, piece.stride)
        scale = floats_at(piece.scale, piece.scaled)
        if piece.weighted or piece.limit > 0:
            weights = floats_at(piece.weights, piece.weighted)
            to = piece.dim, out, piece.column, piece.low, piece.high
            pool(data, none, own, offsets, weights, scale, piece.limit, *to)
        else:
            pool_rows(data, own, offsets, scale, piece.dim, out, piece.column, piece.low, piece.high)


@kernel
def _hide_expired(header: I64, rows: I64, oldest_ms: int) -> int:
    """rows[i] = -1 where the row was last written at or before `oldest_ms`. Returns at how many positions."""
    n = rows.shape[0]
    hidden = 0
    for i in range(n):
        if i + _AHEAD < n and rows[i + _AHEAD] >= 0:
            prefetch(header, rows[i + _AHEAD] * _HEADER_BYTES)
        if rows[i] >= 0 and header[rows[i], 1] <= oldest_ms:
            rows[i] = -1
            hidden += 1
    return hidden
