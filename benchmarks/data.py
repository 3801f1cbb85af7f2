"""Keys, orders and gradients of the benchmarks: the same for every contender, made from seeds in each process."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

ZIPF_EXPONENT = 1.05  # the frequency of the r-th most frequent key is proportional to 1 / r^1.05


@dataclass(frozen=True)
class Batch:
    """Keys of one table. at: int64[n], the rows' places 0..rows-1 (for arrays); keys: int64[n], the keys there."""

    table: int
    at: I64
    keys: I64


def hashed_keys(at: I64, table: int = 0) -> I64:
    """63-bit keys of the rows at these places: splitmix64 (Steele, Lea, Flood 2014) with the top bit cleared."""
    with np.errstate(over="ignore"):
        z = (at.astype(np.uint64) + np.uint64(table << 40) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z & np.uint64(2**63 - 1)).astype(np.int64)


@lru_cache(maxsize=2)
def _zipf(rows: int) -> tuple[NDArray[np.float64], I64]:
    """The cumulated chances of the ranks, and the place of each rank: frequent rows do not lie side by side."""
    cumulated = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -ZIPF_EXPONENT)
    return cumulated / cumulated[-1], np.random.default_rng(7).permutation(rows)


def draw(rows: int, n: int, zipf: bool, random: np.random.Generator, table: int = 0) -> Batch:
    """n places of `rows`, with repeats: all equally likely, or by Zipf's law."""
    if zipf:
        cumulated, place = _zipf(rows)
        at = place[np.minimum(np.searchsorted(cumulated, random.random(n)), rows - 1)]
    else:
        at = random.integers(0, rows, n)
    return Batch(table, at, hashed_keys(at, table))


def run_of(start: int, stop: int, table: int = 0) -> Batch:
    """The rows at start..stop-1, in the order of their places (their keys are in no order)."""
    at = np.arange(start, stop, dtype=np.int64)
    return Batch(table, at, hashed_keys(at, table))


def gradients(n: int, dim: int, random: np.random.Generator) -> F32:
    return random.standard_normal((n, dim), np.float32)
