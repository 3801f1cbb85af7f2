"""`SparseTensor`: ids of any number for each row, as TensorFlow's sparse tensors have them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rockbed.bags import BAGS_MAX
from rockbed.client.arrays import checked_integers, described
from rockbed.config import whole_problems
from rockbed.errors import BatchTooLarge, WrongDtype, WrongShape
from rockbed.types import I64, AnyArray


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SparseTensor:
    """The values that there are of a large, mostly empty array, and where.

    indices: int64[nnz, rank] (int32 is taken too), in row-major order. values: [nnz], of any dtype; a list of str or
    bytes is taken too. dense_shape: rank sizes, kept as a tuple. Lookups flatten all axes but the last: each of the
    rows that this gives is a bag of ids, and the last index is an id's place in it.

    >>> ids = SparseTensor(np.array([[0, 0], [0, 1], [2, 0]]), np.array([7, 8, 9]), [3, 2])  # [7, 8], [], [9]
    >>> ids.offsets().tolist()
    [0, 2, 2, 3]

    Raises WrongDtype, WrongShape (of another number, out of order, outside of the shape), BatchTooLarge.
    """

    indices: I64
    values: AnyArray
    dense_shape: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", checked_integers("indices", self.indices, 2))
        object.__setattr__(self, "values", _checked_values(self.values))
        object.__setattr__(self, "dense_shape", _checked_sizes(self.dense_shape, self.indices.shape[1]))
        if self.indices.shape[0] != self.values.size:
            raise WrongShape(
                f"indices must have a row for each of the {self.values.size} values, not {described(self.indices)}"
            )
        check_places(self.indices, self.dense_shape)

    @property
    def nnz(self) -> int:
        """How many values there are."""
        return self.values.size

    @property
    def rows(self) -> int:
        """The product of all sizes but the last."""
        return rows_of(self.dense_shape)

    def row_numbers(self) -> I64:
        """int64[nnz]: for each value its row."""
        return row_numbers(self.indices, self.dense_shape)

    def offsets(self) -> I64:
        """int64[rows + 1]: row r has values[offsets[r]:offsets[r + 1]]."""
        offsets = np.zeros(self.rows + 1, np.int64)
        np.cumsum(np.bincount(self.row_numbers(), minlength=self.rows), out=offsets[1:])
        return offsets

    def __repr__(self) -> str:
        return f"SparseTensor({self.nnz} {self.values.dtype} values of {list(self.dense_shape)})"


def rows_of(dense_shape: Sequence[int]) -> int:
    """The product of all sizes but the last. Raises BatchTooLarge."""
    rows = 1
    for size in dense_shape[:-1]:
        rows *= size
    if rows > BAGS_MAX:
        raise BatchTooLarge(f"dense_shape {list(dense_shape)} has {rows} bags, {BAGS_MAX} are the most")
    return rows


def row_numbers(indices: I64, dense_shape: Sequence[int]) -> I64:
    """int64[nnz]: the number of each place's row, all axes but the last flattened."""
    rows = indices[:, 0]
    for axis in range(1, indices.shape[1] - 1):
        rows = rows * dense_shape[axis] + indices[:, axis]
    return rows


def check_places(indices: I64, dense_shape: Sequence[int]) -> None:
    """Raise WrongShape unless indices int64[nnz, rank], rank >= 2, lie inside of the shape and in row-major order."""
    rank = indices.shape[1]
    if rank < 2:
        raise WrongShape(f"indices must be int64[nnz, rank] of rank 2 or more, not {described(indices)}")
    rows_of(dense_shape)
    outside = ((indices < 0) | (indices >= np.array(dense_shape))).any(axis=1)
    if outside.any():
        i = int(outside.argmax())
        raise WrongShape(f"indices[{i}] = {indices[i].tolist()} lies outside of dense_shape {list(dense_shape)}")
    rows, place = row_numbers(indices, dense_shape), indices[:, -1]
    falls = (rows[1:] < rows[:-1]) | ((rows[1:] == rows[:-1]) & (place[1:] < place[:-1]))
    if falls.any():
        i = int(falls.argmax())
        raise WrongShape(
            f"indices[{i + 1}] = {indices[i + 1].tolist()} after {indices[i].tolist()}: indices go in row-major order "
            "(tf.sparse.reorder, or np.lexsort(indices.T[::-1]), puts them there)"
        )


def _checked_values(values: Any) -> AnyArray:
    if isinstance(values, list) and all(isinstance(value, str | bytes) for value in values):
        array: AnyArray = np.empty(len(values), object)
        array[:] = values
        return array
    if not isinstance(values, np.ndarray):
        raise WrongDtype(f"values must be a numpy array, or a list of str or bytes, not {described(values)}")
    if values.ndim != 1:
        raise WrongShape(f"values must have one axis, not {described(values)}")
    return values


def _checked_sizes(dense_shape: Any, rank: int) -> tuple[int, ...]:
    sizes = list(dense_shape) if isinstance(dense_shape, Sequence | np.ndarray) else dense_shape
    if not isinstance(sizes, list) or any(whole_problems("size", size, 0, 2**63 - 1) for size in sizes):
        raise WrongShape(f"dense_shape is {dense_shape!r}, not a list of sizes")
    if len(sizes) != rank:
        raise WrongShape(f"dense_shape has {len(sizes)} sizes, indices have {rank} columns: give a size for each")
    return tuple(int(size) for size in sizes)
