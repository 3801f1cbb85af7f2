"""Pushes of several groups, which are summed together, beside pushes of each group alone."""

from typing import Any

import numpy as np
import pytest

from rockbed import GradientNotFinite, PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from tests.api.helpers import OpenStorage

KEYS = 60
GROUPS: list[dict[str, Any]] = [
    {"dimension": 8},
    {"dimension": 3},
    {"dimension": 4, "padding_key": 7},
    {"dimension": 5, "not_finite": "skip_row"},
    {"dimension": 4, "absent": "skip"},
    {"dimension": 4, "duplicates": "sequential"},
    {"dimension": 2, "clip_norm": 0.5, "weight_max": 0.1},
    {"dimension": 6, "admission": {"name": "min_count", "count": 3}},
]


def opened(storage: PyStorage) -> list[PyEmbedding]:
    optimizer, initializer = PyOptimizer(name="adagrad", gamma=0.1), PyInitializer(name="random_uniform")
    return [PyEmbedding(storage, optimizer, initializer, group=i, **given) for i, given in enumerate(GROUPS)]


def counted(storage: PyStorage, name: str) -> list[Any]:
    """A statistic of each group."""
    return [storage.stats()["groups"][group][name] for group in range(len(GROUPS))]


def test_groups_pushed_together_are_as_if_each_was_pushed_alone(open_storage: OpenStorage) -> None:
    together, alone = opened(open_storage("together")), opened(open_storage("alone"))
    rng = np.random.default_rng(0)
    for step in range(12):
        items = []
        for given, rows in zip(GROUPS, together, strict=True):
            keys = rng.integers(0, KEYS, rng.integers(0, 100))
            grads = rng.standard_normal((keys.size, given["dimension"])).astype(np.float32)
            if given.get("not_finite") == "skip_row" and keys.size:
                grads[0, 0] = np.nan
            items.append((rows, keys, grads))
        for own, (rows, keys, grads) in zip(alone, items, strict=True):
            if step % 3 == 0:  # rows that pushes find, and some that they make or leave out
                rows.lookup(keys)
                own.lookup(keys)
            own.apply_gradients(keys, grads)
        together[0].storage.apply_gradients(items)
    for rows, own in zip(together, alone, strict=True):
        wanted = own.lookup(np.arange(KEYS), train=False)
        np.testing.assert_array_equal(rows.lookup(np.arange(KEYS), train=False), wanted)
    for name in ("rows", "push_keys", "updates", "skipped_absent", "skipped_unadmitted", "skipped_not_finite"):
        assert counted(together[0].storage, name) == counted(alone[0].storage, name), name
        assert sum(counted(together[0].storage, name)) > 0, name


def test_a_gradient_of_one_group_that_is_not_finite_leaves_all_as_they_were(storage: PyStorage) -> None:
    together = opened(storage)
    keys = np.arange(10)
    before = [rows.lookup(keys) for rows in together]
    items = [(rows, keys, np.ones((10, rows.dim), np.float32)) for rows in together]
    items[1][2][3, 1] = np.inf
    with pytest.raises(GradientNotFinite, match="group 1: 1 of 10 gradients hold NaN or Inf, the first for key 3"):
        storage.apply_gradients(items)
    largest = np.full((2, 8), 3e38, np.float32)  # whose sum is not
    with pytest.raises(GradientNotFinite, match="group 0: 1 of 1 gradients hold"):
        storage.apply_gradients([(together[0], np.array([1, 1]), largest), items[2]])
    for rows, wanted in zip(together, before, strict=True):
        np.testing.assert_array_equal(rows.lookup(keys, train=False), wanted)
    assert counted(storage, "rejected_not_finite")[:2] == [1, 1]
    assert not any(counted(storage, "updates"))
