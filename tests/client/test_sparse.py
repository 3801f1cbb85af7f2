"""`SparseTensor`: what it takes, and how its rows are flattened."""

from typing import Any

import numpy as np
import pytest

from rockbed import BatchTooLarge, SparseTensor, WrongDtype, WrongShape

AT = np.array([[0, 0], [0, 1], [2, 0]])
IDS = np.array([7, 8, 9])


def test_rows_are_bags() -> None:
    ids = SparseTensor(AT, IDS, [4, 2])
    assert (ids.nnz, ids.rows, ids.dense_shape) == (3, 4, (4, 2))
    assert ids.offsets().tolist() == [0, 2, 2, 3, 3]
    assert repr(ids) == "SparseTensor(3 int64 values of [4, 2])"


def test_all_axes_but_the_last_are_flattened() -> None:
    dense = np.random.default_rng(1).integers(0, 2, (3, 4, 5))
    indices = np.argwhere(dense)
    ids = SparseTensor(indices.astype(np.int32), indices[:, 0], dense.shape)
    assert np.diff(ids.offsets()).tolist() == dense.reshape(12, 5).sum(axis=1).tolist()
    assert ids.row_numbers().tolist() == (indices[:, 0] * 4 + indices[:, 1]).tolist()


def test_values_may_be_strings_or_floats() -> None:
    words: Any = ["a", b"b", "c"]
    assert SparseTensor(AT, words, [3, 2]).values.tolist() == ["a", b"b", "c"]
    assert SparseTensor(AT, np.array([0.5, 1, 2], np.float32), [3, 2]).values.dtype == np.float32


def test_nothing_is_a_sparse_tensor_too() -> None:
    none = SparseTensor(np.empty((0, 2), np.int64), np.empty(0, np.int64), [3, 2])
    assert none.offsets().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("indices", "values", "shape", "error", "said"),
    [
        (AT[::-1], IDS, [3, 2], WrongShape, r"indices\[1\] = \[0, 1\] after \[2, 0\].*row-major"),
        (AT[[0, 2, 1]], IDS, [3, 2], WrongShape, "row-major"),
        (AT, IDS, [2, 2], WrongShape, r"indices\[2\] = \[2, 0\] lies outside of dense_shape \[2, 2\]"),
        (AT - 1, IDS, [3, 2], WrongShape, "outside"),
        (AT, IDS[:2], [3, 2], WrongShape, "a row for each of the 2 values"),
        (AT, IDS, [3, 2, 1], WrongShape, "3 sizes, indices have 2 columns"),
        (AT, IDS, [3, -2], WrongShape, "not a list of sizes"),
        (AT, IDS, 6, WrongShape, "not a list of sizes"),
        (AT[:, 0], IDS, [3], WrongShape, "indices must have 2 axes"),
        (AT[:, :1], IDS, [3], WrongShape, "rank 2 or more"),
        (AT.astype(float), IDS, [3, 2], WrongDtype, "indices must be"),
        (AT, [7, 8, 9], [3, 2], WrongDtype, "values must be"),
        (AT, IDS[:, None], [3, 2], WrongShape, "values must have one axis"),
        (AT, IDS, [2**40, 2], BatchTooLarge, "bags"),
    ],
)
def test_what_is_no_sparse_tensor_is_refused(indices: Any, values: Any, shape: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        SparseTensor(indices, values, shape)
