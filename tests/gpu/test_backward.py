"""Gradients of a fused batch, summed to one per row on the device, against their specification in float64."""

from typing import Any

import numpy as np
import pytest

from rockbed.errors import WrongShape
from rockbed.storage import hot_kernels as k
from rockbed.storage.gpu.fused import Absent
from rockbed.storage.gpu.launcher import Launcher
from rockbed.storage.gpu.table import DeviceTable
from rockbed.types import F32
from tests.gpu.batches import batch_of, random_grads, shape_of, table_of
from tests.gpu.fused_spec import Rows, Spec, random_feature, row_gradients
from tests.gpu.tables import EXTREMES, make_table, records_of

# float32 sums of some tens of numbers of size 1, and of several hundreds for the rows that are used most
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 3e-5}
Feature = tuple[DeviceTable, Rows, Spec]


def gradients(launcher: Launcher, features: list[Feature], seed: int = 0) -> tuple[list[dict[int, F32]], list[Absent]]:
    """For each table, in the order of their first features, the gradient of each key; and what was absent."""
    plain = [(table, spec) for table, _, spec in features]
    pooled, sequences, _ = random_grads(launcher, plain, seed)
    batch = batch_of(launcher, plain)
    found, absent = batch.gradients(pooled, sequences)
    by_table = {id(each.table): each for each in found}
    result: list[dict[int, F32]] = []
    for table in dict.fromkeys(table for table, _, _ in features):
        own = by_table.get(id(table))
        if own is None:
            result.append({})
            continue
        rows = launcher.to_host(own.rows)
        assert (np.diff(rows) > 0).all()
        keys = table.headers(own.rows)[0]
        result.append(dict(zip(keys.tolist(), launcher.to_host(own.grads), strict=True)))
    return result, absent


def expected(launcher: Launcher, features: list[Feature], seed: int = 0) -> list[Rows]:
    _, _, each = random_grads(launcher, [(table, spec) for table, _, spec in features], seed)
    sums: dict[int, Rows] = {id(table): {} for table, _, _ in features}
    for (table, rows, spec), grads in zip(features, each, strict=True):
        for key, gradient in row_gradients(spec, rows, grads).items():
            sums[id(table)][key] = sums[id(table)].get(key, np.zeros(table.dim)) + gradient
    return list(sums.values())


def assert_close(found: list[dict[int, F32]], wanted: list[Rows]) -> None:
    assert [sorted(each) for each in found] == [sorted(each) for each in wanted]
    for own, other in zip(found, wanted, strict=True):
        for key, gradient in other.items():
            np.testing.assert_allclose(own[key], gradient, **CLOSE)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("max_norm", [None, 1.5], ids=["free", "max_norm"])
@pytest.mark.parametrize("default_key", [None, 5], ids=["zeros", "default"])
def test_the_gradient_of_a_feature_is_as_specified(
    launcher: Launcher, combiner: str, weighted: bool, max_norm: float | None, default_key: int | None
) -> None:
    keys, rng = np.arange(-5, 40), np.random.default_rng(7)
    settings: dict[str, Any] = {"combiner": combiner, "max_norm": max_norm, "default_key": default_key}
    features: list[Feature] = []
    for dim in (1, 8, 64):
        table, rows = table_of(launcher, dim, keys)
        features.append((table, rows, random_feature(rng, 24, keys, weighted=weighted, **settings)))
    found, absent = gradients(launcher, features)
    assert absent == [Absent(0, 0)] * 3
    assert_close(found, expected(launcher, features))


@pytest.mark.parametrize("dim", [2, 3, 5, 12, 16, 20, 33, 48, 128, 130, 300])
@pytest.mark.parametrize("max_norm", [None, 2.0], ids=["free", "max_norm"])
def test_every_width_of_rows_and_bags_longer_than_a_warp(launcher: Launcher, dim: int, max_norm: float | None) -> None:
    keys, rng = np.arange(50), np.random.default_rng(dim)
    table, rows = table_of(launcher, dim, keys, rows=64)
    sequence = random_feature(rng, 6, keys, max_norm=max_norm, combiner=None)
    features = [(table, rows, random_feature(rng, 6, keys, longest=40, max_norm=max_norm)), (table, rows, sequence)]
    assert_close(gradients(launcher, features)[0], expected(launcher, features))


def test_gradients_of_features_that_share_a_table_meet_in_one_row(launcher: Launcher) -> None:
    keys, rng = np.arange(30), np.random.default_rng(3)
    tables = [table_of(launcher, dim, keys, seed=dim) for dim in (4, 10, 64)]
    features: list[Feature] = []
    for i in range(11):
        combiner = ("mean", "sum", None, "sqrtn")[i % 4]
        spec = random_feature(rng, 40, keys, weighted=i % 3 == 0 and combiner is not None, combiner=combiner)
        features.append((*tables[i % 3], spec))
    assert_close(gradients(launcher, features)[0], expected(launcher, features))


def test_a_row_that_is_used_thousands_of_times(launcher: Launcher) -> None:
    # 512 uses are added in one go: rows with 1, 511, 512, 513, 1024, 1025 and 2500 of them
    uses = np.repeat(np.arange(7), [1, 511, 512, 513, 1024, 1025, 2500])
    rng = np.random.default_rng(1)
    features: list[Feature] = []
    for dim in (8, 20):
        table, rows = table_of(launcher, dim, np.arange(9))
        keys = rng.permutation(uses)
        features.append((table, rows, Spec(keys, np.arange(0, keys.size + 1, 2), combiner="sum")))
    found, wanted = gradients(launcher, features)[0], expected(launcher, features)
    for own, other in zip(found, wanted, strict=True):
        for key, gradient in other.items():
            np.testing.assert_allclose(own[key], gradient, rtol=1e-4, atol=2e-4)


def test_sums_are_float32_in_ascending_position_by_pieces(launcher: Launcher) -> None:
    table, rows = table_of(launcher, 4, np.arange(3))
    keys = np.random.default_rng(2).choice(2, 1500)
    features = [(table, rows, Spec(keys, np.arange(keys.size + 1), combiner="sum"))]
    _, _, (grads,) = random_grads(launcher, [(table, features[0][2])])
    (found,), _ = gradients(launcher, features)
    for key in (0, 1):
        own = grads[keys == key].astype(np.float32)
        pieces = [
            np.cumsum(own[start : start + 512], axis=0, dtype=np.float32)[-1] for start in range(0, len(own), 512)
        ]
        np.testing.assert_array_equal(found[key], np.cumsum(pieces, axis=0, dtype=np.float32)[-1])


@pytest.mark.parametrize("seed", range(3))
def test_the_result_is_the_same_bits_whatever_the_order_of_threads_and_rows(launcher: Launcher, seed: int) -> None:
    keys, rng = np.arange(40), np.random.default_rng(5)
    spec = random_feature(rng, 200, keys, weighted=True, combiner="sqrtn", max_norm=1.0, default_key=3)
    rows = np.random.default_rng(1).normal(size=(40, 20)).astype(np.float32)
    results = []
    for order in (keys, np.random.default_rng(seed).permutation(keys)):
        table = make_table(launcher, 20)
        table.load(order, records_of(order, rows[order]))
        (found,), _ = gradients(launcher, [(table, {}, spec)])
        results.append([found[key].tobytes() for key in sorted(found)])
    assert results[0] == results[1]


def test_keys_without_a_row_get_no_gradient_and_are_counted(launcher: Launcher) -> None:
    table, rows = table_of(launcher, 8, np.arange(10))
    keys, offsets = np.array([1, 77, 78, 77, -5, 2]), np.array([0, 2, 4, 4, 6])
    features = [(table, rows, Spec(keys, offsets, combiner=c, default_key=d)) for c, d in [("mean", 99), ("sum", 3)]]
    features.append((table, rows, Spec(keys, offsets, combiner=None)))
    found, absent = gradients(launcher, features)
    assert absent == [Absent(3, 1), Absent(3, 0), Absent(3, 0)]
    assert_close(found, expected(launcher, features))


def test_reserved_keys_unsigned_keys_and_the_padding_key(launcher: Launcher) -> None:
    table, rows = table_of(launcher, 8, EXTREMES)
    offsets = np.arange(EXTREMES.size + 1)
    for settings in ({"negative": True}, {"negative": False}, {"negative": True, "padding_key": -1}):
        features = [(table, rows, Spec(EXTREMES, offsets, **settings))]
        assert_close(gradients(launcher, features)[0], expected(launcher, features))


def test_rows_found_are_pinned_until_the_batch_lets_go(launcher: Launcher) -> None:
    table, _ = table_of(launcher, 4, np.arange(20))
    features = [(table, Spec(np.array([3, 4, -1]), np.array([0, 2, 2, 3]), default_key=9))]
    pooled, sequences, _ = random_grads(launcher, features)
    batch = batch_of(launcher, features)
    (found,), _ = batch.gradients(pooled, sequences)
    flags = launcher.to_host(table.flags)
    assert np.flatnonzero(flags & k.PINNED).tolist() == launcher.to_host(found.rows).tolist()
    batch.unpin()
    assert not (launcher.to_host(table.flags) & k.PINNED).any()


def test_batches_without_uses(launcher: Launcher) -> None:
    table, rows = table_of(launcher, 4, np.arange(3))
    none, empty = np.empty(0, np.int64), np.zeros(4, np.int64)
    for spec in (
        Spec(none, empty),
        Spec(np.array([-1, -2]), np.array([0, 1, 2])),
        Spec(np.array([50]), np.array([0, 1])),
    ):
        assert gradients(launcher, [(table, rows, spec)])[0] == [{}]
    features = [(table, rows, Spec(none, empty)), (table, rows, Spec(none, empty, default_key=1))]
    assert_close(gradients(launcher, features)[0], expected(launcher, features))
    assert batch_of(launcher, []).gradients(launcher.empty((0, 0), np.float32), []) == ([], [])


def test_offsets_that_lead_nowhere_are_refused(launcher: Launcher) -> None:
    table, rows = table_of(launcher, 4, np.arange(3))
    for offsets in ([1, 2, 3], [0, 2, 4], [0, 3, 2], [-4, 2, 3]):
        for default_key in (None, 1):
            features = [(table, rows, Spec(np.arange(3), np.array(offsets), default_key=default_key))]
            with pytest.raises(WrongShape, match="feature '0': offsets"):
                gradients(launcher, features)


def test_a_gradient_taken_from_columns_that_are_not_aligned(launcher: Launcher) -> None:
    narrow, rows = table_of(launcher, 3, np.arange(5))
    wide, more = table_of(launcher, 8, np.arange(5))
    spec = Spec(np.arange(5), np.arange(6))
    features: list[Feature] = [(narrow, rows, spec), (wide, more, spec)]
    assert shape_of([(table, own) for table, _, own in features]) == (5, 11)
    assert_close(gradients(launcher, features)[0], expected(launcher, features))
