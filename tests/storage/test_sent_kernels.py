"""The loops over a feature's arrays as they were sent, against what plain Python keeps of them."""

import itertools

import numpy as np
import pytest

from rockbed.storage import sent_kernels as k
from rockbed.types import I64

NO_KEYS = np.empty(0, np.int64)
NO_FLOATS = np.empty(0, np.float32)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("padding", [NO_KEYS, np.array([5])])
@pytest.mark.parametrize("default", [NO_KEYS, np.array([99])])
def test_pruning_keeps_what_counts_and_fills_what_is_empty(
    weighted: bool, negative: bool, positive: bool, padding: I64, default: I64
) -> None:
    rng = np.random.default_rng(0)
    offsets = np.cumsum([0, 0, 3, 1, 0, 6, 2, 0])
    keys = rng.integers(-3, 7, offsets[-1])
    weights = rng.integers(-1, 3, keys.size).astype(np.float32) if weighted else NO_FLOATS
    wanted: list[list[tuple[int, float]]] = []
    for start, end in itertools.pairwise(offsets):
        bag = [(int(keys[i]), float(weights[i]) if weighted else 1.0) for i in range(start, end)]
        bag = [(key, w) for key, w in bag if (negative or key >= 0) and key not in padding]
        bag = [(key, w) for key, w in bag if w > 0 or not (weighted and positive)]
        wanted.append(bag or [(int(key), 1.0) for key in default])
    kept, ends = np.empty(keys.size + 7, np.int64), np.empty_like(offsets)
    kept_weights = np.empty(keys.size + 7 if weighted else 0, np.float32)
    n = k.prune(keys, offsets, weights, negative, positive, padding, default, kept, ends, kept_weights)
    assert ends.tolist() == np.cumsum([0, *(len(bag) for bag in wanted)]).tolist()
    assert kept[:n].tolist() == [key for bag in wanted for key, _ in bag]
    if weighted:
        assert kept_weights[:n].tolist() == [w for bag in wanted for _, w in bag]
    same = wanted == [
        [(int(keys[i]), float(weights[i]) if weighted else 1.0) for i in range(start, end)]
        for start, end in itertools.pairwise(offsets)
    ]
    padded, key = padding.size > 0, padding.sum()
    found = k.examine(keys, offsets, weights, negative, positive, padded, key, default.size > 0)
    assert found == k.LONG | (0 if same else k.UNCLEAN)


@pytest.mark.parametrize(
    ("offsets", "weights", "found"),
    [
        ([0, 2, 3], [], k.LONG),
        ([0, 1, 1, 3], [], k.LONG | k.UNCLEAN),
        ([0, 1, 2, 3], [], 0),
        ([0, 1, 2, 3], [1, 2, 3e38], 0),
        ([0, 1, 2, 3], [1, 1e-45, 1], 0),
        ([0, 1, 2, 3], [1, 0, 1], k.UNCLEAN),
        ([0, 1, 2, 3], [1, np.nan, 1], k.WRONG),
        ([0, 1, 2, 3], [1, 1, np.inf], k.WRONG),
        ([0, 1, 2, 3], [-np.inf, 1, 1], k.WRONG),
        ([1, 2, 3], [], k.WRONG),
        ([0, 1, 2], [], k.WRONG),
        ([0, 1, 2, 2**40], [], k.WRONG),
        ([0, 2, 1, 3], [], k.WRONG),
        ([0, 2**63 - 1, -(2**63), 3], [], k.WRONG),  # whose difference is 1
    ],
)
def test_what_is_found_in_bags(offsets: list[int], weights: list[float], found: int) -> None:
    keys, given = np.array([1, 2, 3]), np.array(weights, np.float32)
    said = k.examine(keys, np.array(offsets), given, False, True, True, 5, True)
    assert (said & k.WRONG or said) == found
