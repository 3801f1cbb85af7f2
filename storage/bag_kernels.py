"""Loops over bags of keys: the rows of each bag combined to one, and the gradient's way back.

A batch's bags lie one after another: bag b has the positions offsets[b]..offsets[b + 1] - 1. An array that may be
absent is empty then; numba would compile every combination of arrays and None.
"""

import math

import numpy as np

from rockbed.kernels import inlined, kernel
from rockbed.storage.distinct_kernels import cleared, find_slot
from rockbed.storage.hot_kernels import prefetch_floats, prefetch_weights, rows_ahead
from rockbed.types import F32, I32, I64, U32

SUM, MEAN, SQRTN = 0, 1, 2
_CACHED = 1 << 18  # gradients that are likely in the cache: to ask for those ahead would only cost time


@kernel
def scales(offsets: I64, combiner: int, scale: F32) -> None:
    """scale[b] = what the sum over bag b is multiplied by where weights are 1: 1 / n, or 1 / sqrt(n); 0 if n = 0."""
    for b in range(scale.shape[0]):
        total = float(offsets[b + 1] - offsets[b])
        if combiner == SQRTN:
            total = math.sqrt(total)
        scale[b] = np.float32(1.0 / total) if total > 0.0 else np.float32(0.0)


@kernel
def pool_rows(
    data: F32, rows: I64, offsets: I64, scale: F32, dim: int, out: F32, column: int, low: int, high: int
) -> None:
    """As `pool`, where nothing is absent, weighted or limited: four fifths of its time."""
    last = offsets[high]
    d = np.uint64(dim)
    start = np.uint64(column)
    ahead = rows_ahead(dim)
    for b in range(low, high):
        if b + ahead < high:
            prefetch_floats(out, (b + ahead) * out.shape[1] + column, dim)
        for j in range(d):
            out[b, start + j] = 0
        for i in range(offsets[b], offsets[b + 1]):
            if i + ahead < last and rows[i + ahead] >= 0:
                prefetch_weights(data, rows[i + ahead], dim)
            if rows[i] >= 0:
                r = np.uint64(rows[i])
                for j in range(d):
                    out[b, start + j] += data[r, j]
        if scale.shape[0]:
            for j in range(d):
                out[b, start + j] *= scale[b]


@kernel
def shares(offsets: I64, weights: F32, combiner: int, share: F32) -> None:
    """share[i] = weights[i] / sum(w), or weights[i] / sqrt(sum(w^2)), over the bag of position i. Weights are above 0.

    In float64: w e or 1 / sum(w) alone may be beyond float32, where their product, of the size of a row, is not.
    """
    for b in range(offsets.shape[0] - 1):
        total = 0.0
        for i in range(offsets[b], offsets[b + 1]):
            w = np.float64(weights[i])
            total += w if combiner == MEAN else w * w
        if combiner == SQRTN:
            total = math.sqrt(total)
        for i in range(offsets[b], offsets[b + 1]):
            share[i] = np.float32(np.float64(weights[i]) / total)


@kernel
def pool(
    data: F32,
    absent: F32,
    rows: I64,
    offsets: I64,
    weights: F32,
    scale: F32,
    limit: np.float32,
    dim: int,
    out: F32,
    column: int,
    low: int,
    high: int,
) -> None:
    """out[b, column : column + dim] = scale[b] * sum(weights[i] * row i) over the positions of bag b, low <= b < high.

    The row of position i is data[rows[i], :dim]; absent[-2 - rows[i]] where rows[i] < -1; zeros where it is -1.
    limit: rows of a larger L2 norm are scaled down to it; 0 = none. weights, scale: empty = 1. Sums in float32, in
    order.
    """
    last = offsets[high]
    d = np.uint64(dim)
    start = np.uint64(column)
    ahead = rows_ahead(dim)
    for b in range(low, high):
        for j in range(d):
            out[b, start + j] = 0
        for i in range(offsets[b], offsets[b + 1]):
            if i + ahead < last and rows[i + ahead] >= 0:
                prefetch_weights(data, rows[i + ahead], dim)
            r = rows[i]
            if r == -1:
                continue
            weight = weights[i] if weights.shape[0] else np.float32(1)
            if limit > 0:
                square = 0.0
                for j in range(d):
                    value = data[np.uint64(r), j] if r >= 0 else absent[np.uint64(-2 - r), j]
                    square += np.float64(value) * np.float64(value)
                norm = math.sqrt(square)
                if norm > limit:
                    weight = np.float32(weight * (limit / norm))
            if r < 0:
                s = np.uint64(-2 - r)
                for j in range(d):
                    out[b, start + j] += weight * absent[s, j]
            else:
                s = np.uint64(r)
                for j in range(d):
                    out[b, start + j] += weight * data[s, j]
        if scale.shape[0]:
            for j in range(d):
                out[b, start + j] *= scale[b]


@kernel
def take_gradients(source: F32, at: I64, scale: F32, grads: F32) -> None:
    """grads[b] = scale[b] * source[at[b] : at[b] + dim], float32[bags, dim]. source: one axis; scale: empty = 1."""
    for b in range(grads.shape[0]):
        s = scale[b] if scale.shape[0] else np.float32(1)
        start = np.uint64(at[b])
        for j in range(np.uint64(grads.shape[1])):
            grads[b, j] = source[start + j] * s


@kernel
def place_bags(offsets: I64, first: int, start: int, stride: int, bag: I32, sizes: U32, at: I64) -> bool:
    """Number a feature's bags from `first` on, in the arrays of all: bag[i] = the number of the bag that has position
    i; sizes[number] = how many positions it has; at[number] = where its gradient begins: `start` for the feature's
    first bag, `stride` further for each. Returns whether every bag has one position.

    bag is the feature's own part of its array, sizes and at are whole.
    """
    alone = True
    for b in range(offsets.shape[0] - 1):
        size = offsets[b + 1] - offsets[b]
        alone &= size == 1
        sizes[first + b] = size
        at[first + b] = start + b * stride
        for i in range(offsets[b], offsets[b + 1]):
            bag[i] = first + b
    return alone


@kernel
def largest(values: F32) -> float:
    """The largest magnitude of float32[n]: infinity where one is infinite or NaN."""
    most = np.float32(0)
    for i in range(values.shape[0]):
        value = abs(values[i])
        most = max(most, value if value <= np.float32(np.inf) else np.float32(np.inf))
    return float(most)


@kernel
def by_number(inverse: I32, starts: I64, order: I32) -> None:
    """The positions of each number, ascending: those of u are order[starts[u]..starts[u + 1] - 1].

    inverse: int32[n], 0..m-1, or -1 for none. starts: int64[m + 1], zero before.
    """
    m = starts.shape[0] - 1
    for i in range(inverse.shape[0]):
        if inverse[i] >= 0:
            starts[inverse[i]] += 1
    total = 0
    for u in range(m + 1):
        count = starts[u]
        starts[u] = total
        total += count
    for i in range(inverse.shape[0]):
        u = inverse[i]
        if u >= 0:
            order[starts[u]] = i
            starts[u] += 1
    for u in range(m, 0, -1):
        starts[u] = starts[u - 1]
    starts[0] = 0


@inlined
def through_limit(limit: np.float32, data: F32, row: int, gradient: F32) -> None:
    """Make the gradient of a scaled row, float32[dim], that of the row.

    With n = |e| above the limit c the scaled row is c e / n, and a gradient g of that is c / n (g - e (e . g) / n^2)
    of e.
    """
    square = 0.0
    along = 0.0
    for j in range(gradient.shape[0]):
        value = np.float64(data[row, j])
        square += value * value
        along += value * np.float64(gradient[j])
    norm = math.sqrt(square)
    if norm > limit:
        for j in range(gradient.shape[0]):
            value = np.float64(gradient[j]) - np.float64(data[row, j]) * along / square
            gradient[j] = np.float32(limit / norm * value)


@kernel
def sum_by_row(
    source: F32, at: I64, given: I64, given_keys: I64, slots: I32, rows: I64, keys: I64, sums: F32
) -> tuple[int, bool]:
    """Number the distinct rows in order of appearance, and sum the gradients of each, in order. Where every bag has one
    position.

    The gradient of position i is source[at[i] : at[i] + dim]; an empty `at` is for one after another. given,
    given_keys: the row of each position, or below 0, and its key; slots: as of distinct_kernels.distinct. rows, keys,
    sums: of each distinct row, room for as many as there are positions. Returns how many there are, and whether the
    gradients of positions that have no row are finite.
    """
    n, d = given.shape[0], sums.shape[1]
    dim = np.uint64(d)
    far = at.shape[0] > 0 and source.shape[0] > _CACHED  # what lies one after another is asked for by the processor
    ahead = rows_ahead(d)
    shift = cleared(slots)
    count, finite = 0, True
    for i in range(n):
        if far and i + ahead < n:
            prefetch_floats(source, at[i + ahead], d)
        start = np.uint64(at[i] if at.shape[0] else i * d)
        row = given[i]
        if row < 0:
            for j in range(dim):
                finite &= np.isfinite(source[start + j])
            continue
        slot = find_slot(slots, shift, rows, row)
        if slots[slot] == 0:
            rows[count], keys[count] = row, given_keys[i]
            u = np.uint64(count)
            for j in range(dim):
                sums[u, j] = source[start + j]
            count += 1
            slots[slot] = count
        else:
            u = np.uint64(slots[slot] - 1)
            for j in range(dim):
                sums[u, j] += source[start + j]
    return count, finite


@kernel
def sum_bags(
    order: I32,
    starts: I64,
    bag: I32,
    weights: F32,
    source: F32,
    at: I64,
    scale: F32,
    limits: F32,
    data: F32,
    rows: I64,
    low: int,
    high: int,
    sums: F32,
) -> None:
    """sums[u - low] = the gradient of row u from all of its positions, in order, for low <= u < high.

    Position i sends weights[i] times the gradient of its bag, see `take_gradients`. order, starts: as of `by_number`;
    every number has a position. weights: empty = 1. limits: float32[bags], the max_norm that the row was scaled down to
    in that bag, 0 = none; empty = none at all. Then data[rows[u]] is the row as it was looked up.
    """
    dim = np.uint64(sums.shape[1])
    plain = weights.shape[0] == 0 and scale.shape[0] == 0
    part = np.empty(sums.shape[1], np.float32)
    far = source.shape[0] > _CACHED
    ahead = rows_ahead(sums.shape[1])
    for u in range(low, high):
        if far and u + ahead < high:
            prefetch_floats(source, at[bag[order[starts[u + ahead]]]], sums.shape[1])
        to = np.uint64(u - low)
        if limits.shape[0] == 0 and plain:
            start = np.uint64(at[bag[order[starts[u]]]])
            for j in range(dim):
                sums[to, j] = source[start + j]
            for p in range(starts[u] + 1, starts[u + 1]):
                start = np.uint64(at[bag[order[p]]])
                for j in range(dim):
                    sums[to, j] += source[start + j]
            continue
        for j in range(dim):
            sums[to, j] = 0
        p = starts[u]
        while p < starts[u + 1]:
            # a run of positions under one limit, whose gradients go through it as one
            limit = limits[bag[order[p]]] if limits.shape[0] else np.float32(0)
            for j in range(dim):
                part[j] = 0
            while p < starts[u + 1] and (limits.shape[0] == 0 or limits[bag[order[p]]] == limit):
                i = order[p]
                b = bag[i]
                weight = weights[i] if weights.shape[0] else np.float32(1)
                s = scale[b] if scale.shape[0] else np.float32(1)
                start = np.uint64(at[b])
                for j in range(dim):
                    part[j] += weight * (source[start + j] * s)
                p += 1
            if limit > 0:
                through_limit(limit, data, rows[u], part)
            for j in range(dim):
                sums[to, j] += part[j]


@kernel
def repeat_bags(
    bag: I32, weights: F32, source: F32, at: I64, scale: F32, limits: F32, data: F32, rows: I64, out: F32
) -> None:
    """out[i] = the gradient that position i sends to its row rows[i], see `sum_bags`; nothing is summed."""
    dim = np.uint64(out.shape[1])
    for i in range(bag.shape[0]):
        b = bag[i]
        weight = weights[i] if weights.shape[0] else np.float32(1)
        s = scale[b] if scale.shape[0] else np.float32(1)
        for j in range(dim):
            out[i, j] = weight * (source[np.uint64(at[b]) + j] * s)
        if limits.shape[0] and limits[b] > 0 and rows[i] >= 0:
            through_limit(limits[b], data, rows[i], out[i])
