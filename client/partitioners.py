"""Partitioners: into how many parts a variable's rows are divided, by the names that TensorFlow gives them.

TensorFlow cuts a table of known height. Here rows come as their keys do, so the two that go by size want to be told how
many rows to expect.
"""

from collections.abc import Callable

from rockbed.config import whole_problems
from rockbed.errors import InvalidConfig
from rockbed.slots import SLOTS

Partitioner = Callable[[int], int]
"""From the bytes of a row's weights to the number of parts, 1..16384."""

_ROWS_MAX = 1 << 50


def fixed_size_partitioner(num_shards: int) -> Partitioner:
    """So many parts, 1..16384. Raises InvalidConfig."""
    _check(num_shards=(num_shards, SLOTS))
    return lambda row_bytes: num_shards


def variable_axis_size_partitioner(max_shard_bytes: int, *, expected_rows: int, max_shards: int = SLOTS) -> Partitioner:
    """As few parts as keep the weights of each within max_shard_bytes, and max_shards at the most.

    Raises InvalidConfig.
    """
    _check(max_shard_bytes=(max_shard_bytes, 1 << 60), expected_rows=(expected_rows, _ROWS_MAX))
    _check(max_shards=(max_shards, SLOTS))
    return lambda row_bytes: min(max_shards, -(-expected_rows * row_bytes // max_shard_bytes))


def min_max_variable_partitioner(
    max_partitions: int = 1, *, expected_rows: int, min_slice_size: int = 256 << 10
) -> Partitioner:
    """As many parts as leave each min_slice_size bytes of weights, from one to max_partitions. Raises InvalidConfig."""
    _check(max_partitions=(max_partitions, SLOTS), expected_rows=(expected_rows, _ROWS_MAX))
    _check(min_slice_size=(min_slice_size, 1 << 60))
    return lambda row_bytes: max(1, min(max_partitions, expected_rows * row_bytes // min_slice_size))


def parts_by(partitioner: Partitioner, dim: int) -> int:
    """How many parts a partitioner makes of rows of `dim` weights. Raises InvalidConfig."""
    if not callable(partitioner):
        raise InvalidConfig(
            f"partitioner is {partitioner!r}: give rockbed.fixed_size_partitioner(num_shards) or the like"
        )
    parts = partitioner(4 * dim)
    problems = whole_problems("the partitioner's number of parts", parts, 1, SLOTS)
    if problems:
        raise InvalidConfig(problems[0])
    return int(parts)


def _check(**given: tuple[int, int]) -> None:
    problems = [problem for name, (value, most) in given.items() for problem in whole_problems(name, value, 1, most)]
    if problems:
        raise InvalidConfig("; ".join(problems))
