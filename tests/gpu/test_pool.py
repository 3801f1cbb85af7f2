"""Pooling on the device against its specification in float64 (fused_spec.py)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rockbed.errors import InvalidConfig, WrongShape
from rockbed.storage import hot_kernels as k
from rockbed.storage.gpu.fused import Absent
from rockbed.storage.gpu.launcher import Launcher
from rockbed.storage.gpu.sources import TABLE
from tests.gpu.batches import batch_of, lookup, table_of
from tests.gpu.fused_spec import Spec, pooled, random_feature
from tests.gpu.tables import EXTREMES, make_table, records_of

# float32 sums of up to 40 numbers of size 1: some units in the last place each, and two roundings for a divisor
CLOSE: dict[str, Any] = {"rtol": 3e-6, "atol": 3e-6}
BAGS = 24


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("max_norm", [None, 1.5], ids=["free", "max_norm"])
@pytest.mark.parametrize("default_key", [None, 5], ids=["zeros", "default"])
def test_a_feature_is_pooled_as_specified(
    launcher: Launcher, combiner: str, weighted: bool, max_norm: float | None, default_key: int | None
) -> None:
    keys = np.arange(-5, 40)
    rng = np.random.default_rng(7)
    settings: dict[str, Any] = {"combiner": combiner, "max_norm": max_norm, "default_key": default_key}
    features = []
    for dim in (1, 8, 64):
        table, rows = table_of(launcher, dim, keys)
        features.append((table, rows, random_feature(rng, BAGS, keys, weighted=weighted, **settings)))
    results, absent = lookup(launcher, [(table, spec) for table, _, spec in features])
    assert absent == [Absent(0, 0)] * 3
    for (table, rows, spec), result in zip(features, results, strict=True):
        np.testing.assert_allclose(result, pooled(spec, rows, table.dim), **CLOSE)


@pytest.mark.parametrize("dim", [2, 3, 5, 12, 16, 20, 33, 48, 128, 130, 300])
@pytest.mark.parametrize("max_norm", [None, 2.0], ids=["free", "max_norm"])
def test_every_width_of_rows_and_bags_longer_than_a_warp(launcher: Launcher, dim: int, max_norm: float | None) -> None:
    keys = np.arange(50)
    table, rows = table_of(launcher, dim, keys, rows=64)
    spec = random_feature(np.random.default_rng(dim), 6, keys, longest=40, max_norm=max_norm)
    sequence = replace(random_feature(np.random.default_rng(dim), 6, keys, max_norm=max_norm), combiner=None)
    (result, copied), _ = lookup(launcher, [(table, spec), (table, sequence)])
    np.testing.assert_allclose(result, pooled(spec, rows, dim), **CLOSE)
    if max_norm is None:
        np.testing.assert_array_equal(copied, pooled(sequence, rows, dim).astype(np.float32))  # a copy copies bits
    else:
        np.testing.assert_allclose(copied, pooled(sequence, rows, dim), **CLOSE)


def test_a_bag_of_one_key_is_its_row_to_the_bit(launcher: Launcher) -> None:
    keys = np.arange(100)
    table, rows = table_of(launcher, 16, keys)
    features = [(table, Spec(keys[::-1].copy(), np.arange(101), combiner=c)) for c in ("sum", "mean", "sqrtn")]
    for result in lookup(launcher, features)[0]:
        np.testing.assert_array_equal(result, np.array([rows[key] for key in range(99, -1, -1)], np.float32))


def test_unsigned_keys_are_kept_where_negative_ones_are_keys(launcher: Launcher) -> None:
    table, rows = table_of(launcher, 8, EXTREMES)
    offsets = np.arange(EXTREMES.size + 1)
    for negative in (False, True):
        spec = Spec(EXTREMES, offsets, negative=negative)
        (result,), _ = lookup(launcher, [(table, spec)])
        np.testing.assert_allclose(result, pooled(spec, rows, 8), **CLOSE)
        assert bool(result[1].any()) == negative


@pytest.mark.parametrize("combiner", ["sum", "mean", None])
def test_the_padding_key_stands_for_nothing_even_if_it_has_a_row(launcher: Launcher, combiner: str | None) -> None:
    table, rows = table_of(launcher, 4, np.arange(10))
    spec = Spec(np.array([3, 1, 3, 3]), np.array([0, 2, 3, 4]), combiner=combiner, padding_key=3)
    (result,), absent = lookup(launcher, [(table, spec)])
    np.testing.assert_allclose(result, pooled(spec, rows, 4), **CLOSE)
    assert absent == [Absent(0, 0)]
    assert not result[-1].any()


def test_keys_without_a_row_are_counted_and_count_as_absent_says(launcher: Launcher) -> None:
    table, rows = table_of(launcher, 8, np.arange(10))
    keys, offsets = np.array([1, 77, 78, 77, -5, 2]), np.array([0, 2, 4, 4, 6])
    specs = [
        Spec(keys, offsets, combiner=c, absent=0.5, default_key=d, max_norm=1.0) for c, d in [("mean", 99), ("sum", 3)]
    ]
    specs.append(Spec(keys, offsets, combiner=None, absent=0.5))
    results, absent = lookup(launcher, [(table, spec) for spec in specs])
    assert absent == [Absent(3, 1), Absent(3, 0), Absent(3, 0)]
    for result, spec in zip(results, specs, strict=True):
        np.testing.assert_allclose(result, pooled(spec, rows, 8), **CLOSE)
    batch = batch_of(launcher, [(table, spec) for spec in specs])
    assert [[each.tolist() for each in batch.absent_keys(i, found)] for i, found in enumerate(absent)] == [
        [[77, 78, 99], [2, 1, 1]],
        [[77, 78], [2, 1]],
        [[77, 78], [2, 1]],
    ]


def test_many_features_of_several_tables_in_one_launch(launcher: Launcher) -> None:
    rng, keys = np.random.default_rng(3), np.arange(60)
    tables = [table_of(launcher, dim, keys, seed=dim) for dim in (4, 10, 16, 64)]
    features = []
    for i in range(13):
        table, rows = tables[i % 4]
        combiner = ("mean", "sum", None, "sqrtn", "mean")[i % 5]
        spec = random_feature(rng, 50, keys, weighted=i % 3 == 0 and combiner is not None, combiner=combiner)
        features.append((table, rows, spec))
    results, _ = lookup(launcher, [(table, spec) for table, _, spec in features])
    for (table, rows, spec), result in zip(features, results, strict=True):
        np.testing.assert_allclose(result, pooled(spec, rows, table.dim), **CLOSE)


@pytest.mark.parametrize("pin", [False, True])
def test_rows_found_are_touched_and_pinned_if_asked_for(launcher: Launcher, pin: bool) -> None:
    table, _ = table_of(launcher, 4, np.arange(20))
    launcher.launch(TABLE, "clear_bits", table.high, table.flags, table.high, k.TOUCHED)
    lookup(launcher, [(table, Spec(np.array([3, 4, -1]), np.array([0, 2, 2, 3]), default_key=9))], pin=pin)
    rows, _ = table.find(launcher.to_device(np.arange(20)), touch=0)
    flags = launcher.to_host(table.flags)[launcher.to_host(rows)]
    assert np.flatnonzero(flags & k.TOUCHED).tolist() == [3, 4, 9]
    assert np.flatnonzero(flags & k.PINNED).tolist() == ([3, 4, 9] if pin else [])


def test_a_weight_far_from_1_does_not_overflow_a_norm(launcher: Launcher) -> None:
    table, rows = table_of(launcher, 4, np.arange(3))
    huge = np.full((1, 4), 1e30, np.float32)
    table.load(np.array([50]), records_of(np.array([50]), huge))
    rows[50] = huge[0].astype(np.float64)
    spec = Spec(np.array([50, 1]), np.array([0, 2]), combiner="sum", max_norm=1.0)
    (result,), _ = lookup(launcher, [(table, spec)])
    np.testing.assert_allclose(result, pooled(spec, rows, 4), **CLOSE)


def test_a_batch_without_keys_bags_or_features(launcher: Launcher) -> None:
    table, rows = table_of(launcher, 4, np.arange(3))
    none = np.empty(0, np.int64)
    specs = [
        Spec(none, np.zeros(4, np.int64)),
        Spec(none, np.zeros(4, np.int64), default_key=1),
        Spec(none, none, combiner=None),
    ]
    results, _ = lookup(launcher, [(table, spec) for spec in specs])
    assert not results[0].any()
    np.testing.assert_allclose(results[1], np.tile(rows[1], (3, 1)), **CLOSE)
    assert results[2].shape == (0, 4)
    assert lookup(launcher, [(table, Spec(none, np.zeros(1, np.int64)))])[0][0].shape == (0, 4)
    assert lookup(launcher, []) == ([], [])


@pytest.mark.parametrize(
    ("offsets", "weights", "said"),
    [
        ([1, 2, 3], None, "offsets run from 1 to 3, with 3 keys they run from 0 to 3"),
        ([0, 2, 4], None, "offsets run from 0 to 4"),
        ([0, 2, 2], None, "offsets run from 0 to 2"),
        ([-4, 2, 3], None, "offsets run from -4 to 3"),
        ([0, 1, 3], [1.0, np.nan, 1.0], r"weights\[1\] is nan"),
        ([0, 1, 3], [1.0, 1.0, np.inf], r"weights\[2\] is inf"),
    ],
)
def test_offsets_that_lead_nowhere_and_weights_that_are_not_finite_are_refused(
    launcher: Launcher, offsets: list[int], weights: list[float] | None, said: str
) -> None:
    table, _ = table_of(launcher, 20, np.arange(3))
    sent = None if weights is None else np.array(weights, np.float32)
    spec = Spec(np.arange(3), np.array(offsets), sent)
    with pytest.raises(WrongShape if weights is None else InvalidConfig, match=f"feature '1': {said}"):
        lookup(launcher, [(table, Spec(np.arange(2), np.array([0, 1, 2]))), (table, spec)])


@pytest.mark.parametrize("offsets", [[0, 3, 2], [0, 2**40, 3], [0, -(2**40), 3]])
def test_offsets_that_fall_are_refused_wherever_they_lead(launcher: Launcher, offsets: list[int]) -> None:
    table, _ = table_of(launcher, 4, np.arange(3))
    with pytest.raises(WrongShape, match="feature '0': offsets"):
        lookup(launcher, [(table, Spec(np.arange(3), np.array(offsets)))])


def test_features_with_different_numbers_of_bags_are_refused(launcher: Launcher) -> None:
    table, _ = table_of(launcher, 4, np.arange(3))
    specs = [Spec(np.arange(2), np.arange(3)), Spec(np.arange(3), np.arange(4))]
    with pytest.raises(WrongShape, match="'0': 2, '1': 3"):
        lookup(launcher, [(table, spec) for spec in specs])


@pytest.mark.parametrize("seed", range(3))
def test_the_result_is_the_same_bits_whatever_the_order_of_threads_and_rows(launcher: Launcher, seed: int) -> None:
    keys, rng = np.arange(40), np.random.default_rng(5)
    spec = random_feature(rng, 20, keys, weighted=True, combiner="sqrtn", max_norm=1.0, default_key=3)
    rows = np.random.default_rng(1).normal(size=(40, 20)).astype(np.float32)
    results = []
    for order in (keys, np.random.default_rng(seed).permutation(keys)):
        table = make_table(launcher, 20)
        table.load(order, records_of(order, rows[order]))
        results.append(lookup(launcher, [(table, spec)])[0][0].tobytes())
    assert results[0] == results[1]
