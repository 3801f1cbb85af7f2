"""Loops over the features or groups of a batch: one call, where a call for each would take longer than its work."""

import numpy as np

from rockbed.addresses import bytes_at, float_rows_at, floats_at, int32_at, integer_rows_at, integers_at
from rockbed.kernels import kernel, prefetch
from rockbed.storage.bag_kernels import by_number, place_bags, pool, pool_rows, sum_bags, sum_by_row
from rockbed.storage.distinct_kernels import distinct
from rockbed.storage.gradient_kernels import all_finite
from rockbed.storage.hot_kernels import fresh_rows, gather
from rockbed.storage.index import find
from rockbed.storage.sent_kernels import examine
from rockbed.types import F32, I32, I64, U8, U32, AnyArray, Bool

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
        ("pooled", np.int64),  # 0: each bag has one key, whose row is copied
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

_SENT = ("keys", "count", "offsets", "bags", "weights", "weighted", "negative", "positive", "padded", "padding", "fill")
SENT = np.dtype([(name, np.int64) for name in _SENT])
"""A feature's bags as they were sent: its arrays and their sizes, and the rest as of sent_kernels.examine."""


@kernel
def examine_all(sent: AnyArray, found: U8) -> None:
    """found[f] = what `examine` says of each feature. sent: SENT[n]."""
    for f in range(sent.shape[0]):
        of = sent[f]
        found[f] = examine(
            integers_at(of.keys, of.count),
            integers_at(of.offsets, of.bags + 1),
            floats_at(of.weights, of.weighted),
            of.negative != 0,
            of.positive != 0,
            of.padded != 0,
            of.padding,
            of.fill != 0,
        )


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
        if not piece.pooled and piece.limit == 0:
            gather(data, own[low:high], piece.dim, out[low:high])
        elif piece.weighted or piece.limit > 0:
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


# --- pushes ---

FEATURE = np.dtype(
    [(name, np.int64) for name in ("offsets", "first", "count", "bags_first", "number", "bags", "start", "stride")]
)
"""A feature of a push: its offsets; where its `count` positions and the bags of its group begin among those of all
groups; the number of its first bag in the group, and how many it has; start and stride as of bag_kernels.place_bags."""

_SHARE = ("rows", "keys", "count", "slots", "slot_count", "flags", "capacity", "first", "fresh")
SHARE = np.dtype([(name, np.int64) for name in _SHARE])
"""A group's share of a push: the row and the key of each of `count` positions, slots for `distinct` and how many, the
table's flags, and where the positions begin among those of all groups, and what is said of its rows."""

GRADIENTS = np.dtype([(name, np.int64) for name in ("values", "size", "at", "placed", "dim", "out", *_SHARE)])
"""The same, with a gradient for each position: source and at as of bag_kernels.sum_by_row, and their sizes; and where
the sums go, room for as many. A record that began as SHARE would be taken for one by numba, with a warning."""

BLOCK = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("bag", "count", "first", "number"),  # positions, and where order and starts begin
            *("weights", "weighted", "values", "size", "at", "bags", "scale", "scaled", "limits", "limited"),
            *("data", "capacity", "width", "dim"),
            *("low", "high", "out"),
        )
    ]
)
"""Some of the distinct rows of a share. Names as of bag_kernels.sum_bags; out: where their sums go."""


@kernel
def place_features(features: AnyArray, bag: I32, sizes: U32, at: I64, alone: Bool) -> None:
    """Number the bags of all features of a push, those of each group from 0 on. features: FEATURE[n]; bag, sizes, at:
    as of bag_kernels.place_bags, of all groups. alone[f] = whether every bag of a feature has one position."""
    for f in range(features.shape[0]):
        feature = features[f]
        alone[f] = place_bags(
            integers_at(feature.offsets, feature.bags + 1),
            feature.number,
            feature.start,
            feature.stride,
            bag[feature.first : feature.first + feature.count],
            sizes[feature.bags_first :],
            at[feature.bags_first :],
        )


@kernel
def number_rows(
    shares: AnyArray,
    start: int,
    end: int,
    first: I64,
    inverse: I32,
    order: I32,
    starts: I64,
    rows: I64,
    keys: I64,
    fresh: U8,
    counts: I64,
) -> None:
    """Number the distinct rows of the shares start..end - 1, and sort their positions by that number.

    shares: SHARE[n]. first, inverse, rows, keys, order: of the positions of all shares. rows, inverse and first as of
    distinct_kernels.distinct; keys: of each distinct row; order and starts as of bag_kernels.by_number, those of share
    s from starts[share.first + s] on; zero before. fresh[share.fresh + u] as of hot_kernels.fresh_rows. counts[s] = how
    many distinct rows a share has.
    """
    for s in range(start, end):
        share = shares[s]
        low, high = share.first, share.first + share.count
        given, given_keys = integers_at(share.rows, share.count), integers_at(share.keys, share.count)
        slots = int32_at(share.slots, share.slot_count)
        count = distinct(given, slots, rows[low:high], first[low:high], inverse[low:high])
        for u in range(low, low + count):
            keys[u] = given_keys[first[u]]
        fresh_rows(bytes_at(share.flags, share.capacity), rows[low : low + count], fresh[share.fresh :])
        by_number(inverse[low:high], starts[low + s : low + s + count + 1], order[low:high])
        counts[s] = count


@kernel
def sum_gradients(
    shares: AnyArray, start: int, end: int, rows: I64, keys: I64, fresh: U8, counts: I64, finite: Bool
) -> None:
    """Sum the gradients of each row of the shares start..end - 1 to where each of them says, float32[counts[s], dim].

    shares: GRADIENTS[n]; the others as of `number_rows`. finite[s] = whether all sums of a share are, and the gradients
    of positions that have no row.
    """
    for s in range(start, end):
        share = shares[s]
        low, high = share.first, share.first + share.count
        count, others = sum_by_row(
            floats_at(share.values, share.size),
            integers_at(share.at, share.placed),
            integers_at(share.rows, share.count),
            integers_at(share.keys, share.count),
            int32_at(share.slots, share.slot_count),
            rows[low:high],
            keys[low:high],
            float_rows_at(share.out, share.count, share.dim),
        )
        fresh_rows(bytes_at(share.flags, share.capacity), rows[low : low + count], fresh[share.fresh :])
        finite[s] = others and all_finite(int32_at(share.out, count * share.dim))
        counts[s] = count


@kernel
def sum_blocks(blocks: AnyArray, start: int, end: int, order: I32, starts: I64, rows: I64, finite: Bool) -> None:
    """Sum the gradients of the rows of the blocks start..end - 1, float32[high - low, dim], to where each of them says.

    blocks: BLOCK[n]; order, starts, rows: as `number_rows` left them. finite[b] = whether all sums of a block are.
    """
    for b in range(start, end):
        block = blocks[b]
        out = float_rows_at(block.out, block.high - block.low, block.dim)
        sum_bags(
            order[block.first : block.first + block.count],
            starts[block.number : block.number + block.high + 1],
            int32_at(block.bag, block.count),
            floats_at(block.weights, block.weighted),
            floats_at(block.values, block.size),
            integers_at(block.at, block.bags),
            floats_at(block.scale, block.scaled),
            floats_at(block.limits, block.limited),
            float_rows_at(block.data, block.capacity, block.width),
            rows[block.first : block.first + block.high],
            block.low,
            block.high,
            out,
        )
        finite[b] = all_finite(int32_at(block.out, (block.high - block.low) * block.dim))
