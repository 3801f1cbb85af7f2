"""The loops over bags, against plain numpy in float64."""

import numpy as np
import pytest

from rockbed.storage import bag_kernels as k
from rockbed.storage.distinct_kernels import slots_for
from rockbed.types import F32, F64, I32, I64

NO_KEYS = np.empty(0, np.int64)
NO_FLOATS = np.empty(0, np.float32)


def offsets_of(sizes: list[int]) -> I64:
    return np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))])


def limited(row: F64, limit: float) -> F64:
    norm = np.sqrt((row * row).sum())
    return row * (limit / norm) if 0 < limit < norm else row


def gradient_of(row: F64, limit: float, gradient: F64) -> F64:
    """By differences: the derivative of gradient . limited(row) for row."""
    step, out = 1e-6, np.empty_like(row)
    for j in range(row.size):
        away = np.zeros_like(row)
        away[j] = step
        out[j] = gradient @ (limited(row + away, limit) - limited(row - away, limit)) / (2 * step)
    return out


def test_scales() -> None:
    for combiner, wanted in ((k.MEAN, [0, 1 / 2, 1 / 3]), (k.SQRTN, [0, 2**-0.5, 3**-0.5])):
        scale: F32 = np.empty(3, np.float32)
        k.scales(offsets_of([0, 2, 3]), combiner, scale)
        np.testing.assert_allclose(scale, wanted, rtol=1e-7)


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1, 1e38])
def test_shares(size: float) -> None:
    offsets, weights = offsets_of([0, 2, 3, 1]), (np.array([1, 3, 1, 2, 1, 3]) * size).astype(np.float32)
    by = weights.astype(np.float64)
    for combiner, norm in ((k.MEAN, np.sum), (k.SQRTN, np.linalg.norm)):
        share: F32 = np.empty(6, np.float32)
        k.shares(offsets, weights, combiner, share)
        wanted = [*by[:2] / norm(by[:2]), *by[2:5] / norm(by[2:5]), 1]
        np.testing.assert_allclose(share, wanted, rtol=1e-7)


@pytest.mark.parametrize("dim", [1, 3, 16, 17])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("limit", [0.0, 0.8])
def test_pooling(dim: int, weighted: bool, limit: float) -> None:
    rng = np.random.default_rng(dim)
    data = rng.standard_normal((50, dim + 2)).astype(np.float32)
    absent = rng.standard_normal((4, dim)).astype(np.float32)
    offsets = offsets_of([0, 3, 40, 1, 0])
    rows = rng.integers(-5, 50, offsets[-1])
    weights = rng.standard_normal(rows.size).astype(np.float32) if weighted else NO_FLOATS
    scale = rng.random(5).astype(np.float32)
    out = np.full((5, dim + 5), 7, np.float32)
    k.pool(data, absent, rows, offsets, weights, scale, np.float32(limit), dim, out, 2, 0, 3)
    assert (out[3:] == 7).all()  # bags that were not asked for
    k.pool(data, absent, rows, offsets, weights, scale, np.float32(limit), dim, out, 2, 3, 5)
    assert (out[:, :2] == 7).all()
    assert (out[:, 2 + dim :] == 7).all()
    for b in range(5):
        total = np.zeros(dim)
        for i in range(offsets[b], offsets[b + 1]):
            row = data[rows[i], :dim] if rows[i] >= 0 else absent[-2 - rows[i]] if rows[i] < -1 else np.zeros(dim)
            weight = float(weights[i]) if weighted else 1.0
            total += weight * limited(np.asarray(row, np.float64), limit)
        # float32 sums of up to 40 values of about 1
        np.testing.assert_allclose(out[b, 2 : 2 + dim], total * scale[b], rtol=1e-5, atol=4e-6)
    if not weighted and not limit:
        rows = np.maximum(rows, -1)
        k.pool(data, absent, rows, offsets, weights, scale, np.float32(0), dim, out, 2, 0, 5)
        short: F32 = np.full((5, dim + 5), 7, np.float32)
        k.pool_rows(data, rows, offsets, scale, dim, short, 2, 0, 5)
        np.testing.assert_array_equal(short, out)


def test_a_bag_of_one_row_is_its_bits() -> None:
    data = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
    rows, out = np.array([3, 0, 8]), np.empty((3, 4), np.float32)
    none = np.empty((0, 4), np.float32)
    k.pool(data, none, rows, np.arange(4), NO_FLOATS, NO_FLOATS, np.float32(0), 4, out, 0, 0, 3)
    np.testing.assert_array_equal(out, data[rows, :4])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("limit", [None, 0.7])
@pytest.mark.parametrize(("bags", "positions", "count", "floats"), [(6, 40, 8, 100), (60, 300, 80, 300_000)])
def test_gradients_go_back_to_the_rows(
    weighted: bool, scaled: bool, limit: float | None, bags: int, positions: int, count: int, floats: int
) -> None:
    rng, dim = np.random.default_rng(3), 5
    data = rng.standard_normal((count + 12, dim + 1)).astype(np.float32)
    rows = rng.permutation(count + 12)[:count]
    bag = np.sort(rng.integers(0, bags, positions)).astype(np.int32)
    inverse = rng.integers(-1, count, positions).astype(np.int32)
    inverse[:count] = np.arange(count)  # every number has a position
    weights = rng.standard_normal(positions).astype(np.float32) if weighted else NO_FLOATS
    values, at = rng.standard_normal(floats).astype(np.float32), rng.integers(0, floats - dim, bags)
    scale = rng.random(bags).astype(np.float32) if scaled else NO_FLOATS
    source = values, at, scale
    grads: F32 = np.empty((bags, dim), np.float32)
    k.take_gradients(*source, grads)
    by = scale if scaled else np.ones(bags, np.float32)
    for b in range(bags):
        np.testing.assert_array_equal(grads[b], values[at[b] : at[b] + dim] * by[b])
    limits = np.where(np.arange(bags) < 3, limit, 0).astype(np.float32) if limit else NO_FLOATS
    starts, order = np.zeros(count + 1, np.int64), np.empty(positions, np.int32)
    k.by_number(inverse, starts, order)
    for u in range(count):
        assert order[starts[u] : starts[u + 1]].tolist() == np.flatnonzero(inverse == u).tolist()
    wanted, apart = np.zeros((count, dim)), np.zeros((positions, dim))
    for i in range(positions):
        gradient = grads[bag[i]].astype(np.float64) * (float(weights[i]) if weighted else 1.0)
        row = data[rows[inverse[i]], :dim].astype(np.float64)
        apart[i] = gradient_of(row, float(limits[bag[i]]), gradient) if limit and inverse[i] >= 0 else gradient
        if inverse[i] >= 0:
            wanted[inverse[i]] += apart[i]
    sums: F32 = np.empty((count, dim), np.float32)
    for low, high in ((0, 3), (3, count)):
        k.sum_bags(order, starts, bag, weights, *source, limits, data, rows, low, high, sums[low:high])
    np.testing.assert_allclose(sums, wanted, rtol=1e-5, atol=1e-5)  # float32 sums, and differences of 1e-6
    one_by_one: F32 = np.empty((positions, dim), np.float32)
    of_position = np.where(inverse >= 0, rows[inverse], -1)
    k.repeat_bags(bag, weights, *source, limits, data, of_position, one_by_one)
    np.testing.assert_allclose(one_by_one, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize(("positions", "floats"), [(40, 400), (300, 300_000)])
def test_gradients_of_bags_of_one_position_go_back_to_the_rows(placed: bool, positions: int, floats: int) -> None:
    rng, dim = np.random.default_rng(4), 5
    given = rng.integers(-1, 30, positions)  # the row of each position
    given[3] = -1
    values = rng.standard_normal(floats).astype(np.float32)
    at = rng.integers(0, floats - dim, positions) if placed else np.arange(positions) * dim
    slots: I32 = np.full(slots_for(positions), 7, np.int32)  # what they hold is of no account
    rows, keys = np.empty(positions, np.int64), np.empty(positions, np.int64)
    sums: F32 = np.empty((positions, dim), np.float32)
    args = at if placed else NO_KEYS, given, given + 1000, slots, rows, keys, sums
    count, finite = k.sum_by_row(values, *args)
    distinct, first = np.unique(given, return_index=True)
    distinct = distinct[np.argsort(first)]  # in order of appearance
    distinct = distinct[distinct >= 0]
    assert (rows[:count].tolist(), keys[:count].tolist()) == (distinct.tolist(), (distinct + 1000).tolist())
    assert finite
    for u, row in enumerate(distinct):
        gradients = [values[at[i] : at[i] + dim].astype(np.float64) for i in np.flatnonzero(given == row)]
        np.testing.assert_allclose(sums[u], sum(gradients), rtol=1e-5, atol=1e-5)  # float32 sums
    values[at[3] + dim - 1] = np.nan
    assert not k.sum_by_row(values, *args)[1]


@pytest.mark.parametrize("sizes", [[1, 1, 1], [], [0, 2, 1], [1, 3]])
def test_bags_are_placed_and_said_to_have_one_position_each(sizes: list[int]) -> None:
    n, first = len(sizes), 2
    bag, counts, at = np.zeros(sum(sizes), np.int32), np.zeros(first + n, np.uint32), np.zeros(first + n, np.int64)
    assert k.place_bags(offsets_of(sizes), first, 7, 10, bag, counts, at) == all(size == 1 for size in sizes)
    assert bag.tolist() == [first + b for b, size in enumerate(sizes) for _ in range(size)]
    assert counts[first:].tolist() == sizes
    assert at[first:].tolist() == [7 + 10 * b for b in range(n)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_largest_magnitude(bad: float) -> None:
    assert k.largest(np.array([-3, 1], np.float32)) == 3
    assert k.largest(np.array([-3, bad, 1], np.float32)) == np.inf
    assert k.largest(NO_FLOATS) == 0
