"""Building blocks of the update kernels, inlined into their row loops. What makes those loops fast, measured:

- Rows are asked for AHEAD of their turn, so that misses of memory overlap.
- `for j in range(np.uint64(dim))`: an unsigned index needs no check for "counted from the end", which would keep LLVM
  from vectorising the inner loop.
- Helpers get scalars, and no array but `data`: another array handed over inside the `if` costs an atomic
  reference count for every row.
- Every scalar of the inner loop is float32: one float64 would widen all of it.
"""

from typing import Any

from rockbed.kernels import inlined, prefetch

AHEAD = 16
"""Rows between the one asked for and the one worked on: enough to hide a miss of memory behind the arithmetic."""


@inlined
def prefetch_row(data: Any, row: int) -> None:
    """Ask for every cache line of one row of a C-contiguous float32[capacity, width]."""
    size = data.shape[1] * 4
    start = row * size
    for offset in range(start, start + size, 64):
        prefetch(data, offset)
    prefetch(data, start + size - 1)  # rows are not aligned to lines, so one more may hold the end


@inlined
def power(base: float, exponent: int) -> float:
    """base**exponent for exponent >= 0 by squaring, in float64.

    Not libm's pow: that one may differ in the last bit between machines, and a journal replayed elsewhere must
    give the same rows. The error of 1 - base**exponent stays below 1 / (1 - base) units in the last place.
    """
    result = 1.0
    factor = base
    left = exponent
    while left > 0:
        if left & 1:
            result *= factor
        factor *= factor
        left >>= 1
    return result
