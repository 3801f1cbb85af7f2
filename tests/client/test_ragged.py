"""Bags of keys: what each constructor makes of the same batch, and what none of them takes."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed import BatchTooLarge, InvalidConfig, Ragged, WrongDtype, WrongShape
from rockbed.types import F32, I64

LISTS = [[7, 8], [], [9], [], [], [5, 5, 7]]
WEIGHTS = [[0.5, 1.0], [], [2.0], [], [], [0.0, -1.0, 3.0]]
OFFSETS = [0, 2, 2, 3, 3, 3, 6]


def keys_of(*keys: int) -> I64:
    return np.array(keys, np.int64)


def floats_of(*values: float) -> F32:
    return np.array(values, np.float32)


def bags_of(ragged: Ragged) -> list[list[int]]:
    ends = ragged.offsets.tolist()
    return [ragged.keys[a:b].tolist() for a, b in pairwise(ends)]


def weights_of(ragged: Ragged) -> list[list[float]]:
    assert ragged.weights is not None
    ends = ragged.offsets.tolist()
    return [ragged.weights[a:b].tolist() for a, b in pairwise(ends)]


def from_csr() -> Ragged:
    return Ragged(keys_of(7, 8, 9, 5, 5, 7), keys_of(*OFFSETS), floats_of(0.5, 1, 2, 0, -1, 3))


def from_lengths() -> Ragged:
    lengths: Any = np.diff(OFFSETS).astype(np.int32)
    return Ragged.from_lengths(keys_of(7, 8, 9, 5, 5, 7), lengths, floats_of(0.5, 1, 2, 0, -1, 3))


def from_coo() -> Ragged:
    rows = [(0, 0), (0, 1), (2, 0), (5, 0), (5, 1), (5, 4)]
    return Ragged.from_coo(np.array(rows), keys_of(7, 8, 9, 5, 5, 7), (6, 5), weights=floats_of(0.5, 1, 2, 0, -1, 3))


def from_padded() -> Ragged:
    array, weights = np.full((6, 4), -1), np.full((6, 4), np.nan, np.float32)
    array[0, [1, 3]], array[2, 0], array[5, :3] = (7, 8), 9, (5, 5, 7)
    weights[0, [1, 3]], weights[2, 0], weights[5, :3] = (0.5, 1), 2, (0, -1, 3)
    return Ragged.from_padded(array, weights=weights)


def from_lists() -> Ragged:
    return Ragged.from_lists(LISTS, WEIGHTS)


@pytest.mark.parametrize("make", [from_csr, from_lengths, from_coo, from_padded, from_lists])
def test_every_constructor_makes_the_same_bags(make: Callable[[], Ragged]) -> None:
    ragged = make()
    assert (bags_of(ragged), weights_of(ragged)) == (LISTS, WEIGHTS)
    assert (len(ragged), ragged.nnz, ragged.unsigned) == (6, 6, False)
    assert ragged.keys.dtype == ragged.offsets.dtype == np.int64
    assert repr(ragged) == "Ragged(6 bags, 6 int64 keys, weighted)"


def test_the_callers_arrays_are_kept_where_their_layout_allows_it_and_cannot_be_replaced() -> None:
    keys, offsets, weights = keys_of(1, 2), keys_of(0, 2), floats_of(1, 1)
    ragged = Ragged(keys, offsets, weights)
    assert np.shares_memory(ragged.keys, keys)
    assert ragged.offsets is offsets
    assert ragged.weights is weights
    with pytest.raises(FrozenInstanceError):
        ragged.keys = keys  # type: ignore[misc]


def test_arrays_of_any_layout_are_taken() -> None:
    keys, weights = np.arange(20)[::-2], np.arange(20, dtype=np.float32)[::-2]
    offsets: Any = np.array([0, 9, 4, 9, 10, 9], np.int32)[::2]
    keys.flags.writeable = False
    ragged = Ragged(keys, offsets, weights)
    assert bags_of(ragged) == [[19, 17, 15, 13], [11, 9, 7, 5, 3, 1]]
    for array in (ragged.keys, ragged.offsets, ragged.weights):
        assert array is not None
        assert array.flags.c_contiguous
        assert array.flags.writeable


@pytest.mark.parametrize("key", [0, 2**63, 2**64 - 1])
def test_unsigned_keys_stay_unsigned(key: int) -> None:
    array = np.array([[key, 3]], np.uint64)
    for ragged in (
        Ragged(array[0], keys_of(0, 2)),
        Ragged.from_lengths(array[0], keys_of(2)),
        Ragged.from_coo(np.array([[0, 0], [0, 1]]), array[0], [1, 2]),
        Ragged.from_padded(array, padding_key=1),
    ):
        assert ragged.unsigned
        assert bags_of(ragged) == [[key, 3]]
        assert repr(ragged) == "Ragged(1 bags, 2 uint64 keys)"
    assert Ragged.from_lists([[key]]).unsigned == (key >= 2**63)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
@pytest.mark.parametrize("padding", [-1, 2**64 - 1])
def test_a_padding_key_is_told_by_its_bits(dtype: Any, padding: int) -> None:
    array = np.array([[1, -1], [-1, -1]]).view(dtype)
    assert bags_of(Ragged.from_padded(array, padding)) == [[1], []]


@pytest.mark.parametrize(
    "empty",
    [
        Ragged(keys_of(), keys_of(0)),
        Ragged.from_lengths(keys_of(), keys_of()),
        Ragged.from_coo(np.empty((0, 2), np.int64), keys_of(), [0, 5]),
        Ragged.from_padded(np.empty((0, 3), np.int64)),
        Ragged.from_lists([]),
    ],
)
def test_a_batch_may_have_no_bags(empty: Ragged) -> None:
    assert (len(empty), empty.nnz) == (0, 0)


def test_bags_may_have_no_keys() -> None:
    for ragged in (
        Ragged.from_coo(np.empty((0, 3), np.int64), keys_of(), [2, 2, 0]),
        Ragged.from_padded(np.empty((4, 0), np.int64)),
        Ragged.from_lists([[]] * 4, [[]] * 4),
    ):
        assert bags_of(ragged) == [[]] * 4


@given(st.data(), st.lists(st.integers(0, 4), min_size=2, max_size=4))
def test_all_axes_but_the_last_are_flattened(data: st.DataObject, shape: list[int]) -> None:
    dense = np.array(data.draw(st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))))
    dense = dense.reshape(shape).astype(bool)
    indices = np.argwhere(dense)
    keys = np.arange(len(indices)) * 10
    ragged = Ragged.from_coo(indices, keys, shape)
    counts = dense.reshape(int(np.prod(shape[:-1])), shape[-1]).sum(axis=1)
    assert np.diff(ragged.offsets).tolist() == counts.tolist()
    assert ragged.keys.tolist() == keys.tolist()


def test_a_cell_that_occurs_twice_is_two_keys_and_the_last_size_may_be_huge() -> None:
    indices = np.array([[0, 3], [0, 3], [1, 2**62]], np.int64)
    assert bags_of(Ragged.from_coo(indices, keys_of(1, 2, 3), [2, 2**63 - 1])) == [[1, 2], [3]]
    assert bags_of(Ragged.from_coo(indices[:2].astype(np.int32), keys_of(1, 2), np.array([2, 4]))) == [[1, 2], []]


# --- what is refused ---

K, O = keys_of(1, 2, 3), keys_of(0, 1, 3)  # noqa: E741
HUGE = np.broadcast_to(np.int64(1), 2**31)  # of one number in memory
CSR: list[tuple[Any, Any, Any, type[Exception], str]] = [
    ([1, 2, 3], O, None, WrongDtype, r"keys must be a numpy array of int64 or uint64, not a list"),
    (K.astype(np.int32), O, None, WrongDtype, r"not int32\[3\]"),
    (K.astype(np.float64), O, None, WrongDtype, "read them as integers"),
    (K[:, None], O, None, WrongShape, r"keys must have one axis, not int64\[3, 1\]"),
    (K, [0, 1, 3], None, WrongDtype, "offsets must be a numpy array of int64 or int32, not a list"),
    (K, O.astype(np.uint64), None, WrongDtype, r"offsets .* not uint64\[3\]"),
    (K, O.astype(np.float32), None, WrongDtype, r"offsets .* not float32\[3\]"),
    (K, O[None], None, WrongShape, r"offsets must have one axis, not int64\[1, 3\]"),
    (K, O[:0], None, WrongShape, r"offsets are empty: B bags have B \+ 1"),
    (K, keys_of(0, 1), None, WrongShape, "offsets run from 0 to 1, with 3 keys they run from 0 to 3"),
    (K, keys_of(0, 1, 4), None, WrongShape, "offsets run from 0 to 4"),
    (K, keys_of(1, 3), None, WrongShape, "offsets run from 1 to 3"),
    (K, keys_of(0, 2, 1, 3), None, WrongShape, r"offsets\[2\] = 1 after 2: offsets never fall"),
    (K, keys_of(0, -1, 3), None, WrongShape, r"offsets\[1\] = -1 after 0"),
    (K, O, [1.0, 1.0, 1.0], WrongDtype, "weights must be a numpy array of float32, not a list"),
    (K, O, np.ones(3), WrongDtype, r"weights .* not float64\[3\]"),
    (K, O, floats_of(1, 1), WrongShape, "2 weights for 3 keys: each key has one"),
    (K, O, floats_of(1, 1, 1)[:, None], WrongShape, r"weights must be float32\[3\], not float32\[3, 1\]"),
    (K, O, floats_of(1, np.nan, 1), InvalidConfig, r"weights\[1\] is nan: weights are finite"),
    (K, O, floats_of(1, 1, -np.inf), InvalidConfig, r"weights\[2\] is -inf"),
    (HUGE, O, None, BatchTooLarge, "2147483648 keys, 2147483647 are the most"),
]


@pytest.mark.parametrize(("keys", "offsets", "weights", "error", "message"), CSR)
def test_arrays_that_are_no_bags_are_refused(
    keys: Any, offsets: Any, weights: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Ragged(keys, offsets, weights)


I = np.array([[0, 0], [1, 0], [1, 1]])  # noqa: E741
COO: list[tuple[Any, Any, Any, type[Exception], str]] = [
    (I.tolist(), K, [2, 2], WrongDtype, "indices must be a numpy array of int64 or int32, not a list"),
    (I[:, 0], K, [2, 2], WrongShape, r"indices must have 2 axes, not int64\[3\]"),
    (I[:, :1], K, [2], WrongShape, r"of rank 2 or more, not int64\[3, 1\]"),
    (I[:2], K, [2, 2], WrongShape, r"a row for each of the 3 values, not int64\[2, 2\]"),
    (I, K.tolist(), [2, 2], WrongDtype, "keys must be"),
    (I, K, [2, 2, 2], WrongShape, "dense_shape has 3 sizes, indices have 2 columns"),
    (I, K, [2, -2], WrongShape, r"dense_shape is \[2, -2\], not a list of sizes"),
    (I, K, [2, 2.0], WrongShape, "not a list of sizes"),
    (I, K, None, WrongShape, "dense_shape is None"),
    (I, K, [2**31, 2], BatchTooLarge, "2147483648 bags, 2147483646 are the most"),
    (I, K, [2, 1], WrongShape, r"indices\[2\] = \[1, 1\] lies outside of dense_shape \[2, 1\]"),
    (I, K, [1, 2], WrongShape, r"indices\[1\] = \[1, 0\] lies outside"),
    (I - 1, K, [2, 2], WrongShape, r"indices\[0\] = \[-1, -1\] lies outside"),
    (I[[1, 0, 2]], K, [2, 2], WrongShape, r"indices\[1\] = \[0, 0\] after \[1, 0\]: indices go in row-major order"),
    (I[[0, 2, 1]], K, [2, 2], WrongShape, r"indices\[2\] = \[1, 0\] after \[1, 1\]"),
]


@pytest.mark.parametrize(("indices", "values", "shape", "error", "message"), COO)
def test_triples_that_are_no_sparse_tensor_are_refused(
    indices: Any, values: Any, shape: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Ragged.from_coo(indices, values, shape)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Ragged.from_padded([[1]]), WrongDtype, "keys must be a numpy array"),  # type: ignore[arg-type]
        (lambda: Ragged.from_padded(K), WrongShape, r"two axes, \[B, L\], not int64\[3\]"),
        (lambda: Ragged.from_padded(np.ones((1, 2), np.float32)), WrongDtype, "keys must be"),  # type: ignore[arg-type]
        (lambda: Ragged.from_padded(I, 2**64), InvalidConfig, "padding_key is 18446744073709551616, outside"),
        (lambda: Ragged.from_padded(I, 0.0), InvalidConfig, "padding_key is 0.0, not an int"),  # type: ignore[arg-type]
        (
            lambda: Ragged.from_padded(I, weights=np.ones(6, np.float32)),
            WrongShape,
            r"float32\[3, 2\], not float32\[6\]",
        ),
        (lambda: Ragged.from_lists([[1], [2.0]]), WrongDtype, "whole numbers, not 2.0"),  # type: ignore[list-item]
        (lambda: Ragged.from_lists([[1], [True]]), WrongDtype, "whole numbers, not True"),
        (lambda: Ragged.from_lists([[-1, 2**63]]), WrongDtype, "fit neither int64 nor uint64"),
        (lambda: Ragged.from_lists([[2**64]]), WrongDtype, "fit neither"),
        (lambda: Ragged.from_lists([[1, 2], [3]], [[1.0], [1.0, 1.0]]), WrongShape, "lists of the same lengths"),
        (lambda: Ragged.from_lists([[1]], [[float("nan")]]), InvalidConfig, r"weights\[0\] is nan"),
        (lambda: Ragged.from_lists([[1]], [["x"]]), WrongDtype, "weights must be numbers, not 'x'"),  # type: ignore[list-item]
        (lambda: Ragged.from_lists([1, 2]), WrongDtype, "lists must be a list of lists, .* not of 1"),  # type: ignore[list-item]
        (lambda: Ragged.from_lists(["ab"]), WrongDtype, "a list of lists, .* not of 'ab'"),  # type: ignore[list-item]
        (lambda: Ragged.from_lists(7), WrongDtype, "a list of lists, not a int"),  # type: ignore[arg-type]
        (lambda: Ragged.from_lists([[1]], [1.0]), WrongDtype, "weights must be a list of lists, .* not of 1.0"),  # type: ignore[list-item]
        (lambda: Ragged.from_lengths(K, [1, 2]), WrongDtype, "lengths must be a numpy array of int64"),  # type: ignore[arg-type]
        (lambda: Ragged.from_lengths(K, keys_of(1, 1)), WrongShape, "offsets run from 0 to 2, with 3 keys"),
        (lambda: Ragged.from_lengths(K, keys_of(4, -1)), WrongShape, "lengths has -1: no bag has fewer than 0 keys"),
    ],
)
def test_rectangles_and_lists_that_are_no_bags_are_refused(
    make: Callable[[], Ragged], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", ["keys", "offsets", "weights"])
def test_a_masked_array_is_refused_as_its_mask_would_be_lost(name: str) -> None:
    arrays: dict[str, Any] = {"keys": keys_of(1, 2), "offsets": keys_of(0, 2), "weights": floats_of(1, 1)}
    arrays[name] = np.ma.array(arrays[name], mask=[False, True])
    with pytest.raises(WrongDtype, match=rf"{name} must be a plain numpy array, not a masked one: .*compressed\(\)"):
        Ragged(**arrays)
