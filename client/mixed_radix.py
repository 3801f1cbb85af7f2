"""Mixed-radix numbers: an id as one digit for each table of a multi-hash variable, and back to nothing but that id.

The generalized quotient-remainder partitions of Shi, Mudigere, Naumov and Yang, "Compositional Embeddings Using
Complementary Partitions for Memory-Efficient Recommendation Systems" (KDD 2020), section 4: with digits d_0 .. d_(k-1)
in radices m_0 .. m_(k-1), no two ids below m_0 * ... * m_(k-1) have all digits alike.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rockbed.config import whole_problems
from rockbed.errors import InvalidConfig
from rockbed.types import I64

VOCABULARY_MAX = 2**62
PARTITIONS_MAX = 16


def digits_of(ids: I64, radices: Sequence[int]) -> list[I64]:
    """The digits of ids int64[n], all of 0 .. the product of the radices - 1: int64[n] for each radix.

    The first digit is the quotient, the last one the remainder.
    """
    digits = []
    rest = ids
    for radix in radices[:0:-1]:
        rest, digit = np.divmod(rest, radix)
        digits.append(digit)
    return [rest, *digits[::-1]]


def smallest_radices(vocabulary: int, num_of_partitions: int) -> list[int]:
    """Radices whose product is no smaller than the vocabulary and whose sum, the number of rows, is about the smallest.

    Near the vocabulary's root of that order; the last is the largest. Raises InvalidConfig.
    """
    problems = [
        *whole_problems("vocabulary", vocabulary, 1, VOCABULARY_MAX),
        *partition_problems(num_of_partitions),
    ]
    if problems:
        raise InvalidConfig("; ".join(problems))
    radices: list[int] = []
    rest = vocabulary
    for left in range(num_of_partitions, 1, -1):
        radices.append(_root_up(rest, left))
        rest = -(-rest // radices[-1])
    return sorted([*radices, rest])


def partition_problems(num_of_partitions: Any) -> list[str]:
    """What is wrong with a number of partitions."""
    return whole_problems("num_of_partitions", num_of_partitions, 2, PARTITIONS_MAX)


def _root_up(value: int, order: int) -> int:
    """The smallest whole number whose power of that order is no smaller than the value."""
    root = max(1, round(float(value ** (1 / order))) - 2)  # floats are near enough to begin with
    while root**order < value:
        root += 1
    return root
