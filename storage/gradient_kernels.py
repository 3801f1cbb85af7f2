"""Loops over gradients, float32[n, dim], and what they begin an update of rows with."""

import numpy as np

from rockbed.kernels import kernel, statistic
from rockbed.storage.hot_kernels import stamp
from rockbed.types import F32, I32, I64, U8


@kernel
def occurrence(inverse: I64, count: int, rank: I64) -> None:
    """rank[i] = how many earlier positions have the same number. inverse: int64[n], 0 to count - 1."""
    seen = np.zeros(count, np.int64)
    for i in range(inverse.shape[0]):
        rank[i] = seen[inverse[i]]
        seen[inverse[i]] += 1


@kernel
def all_finite(bits: I32) -> bool:
    """Whether no float32 of an array (seen as int32[n]) is NaN or infinity. Much faster than to find out which."""
    bad = 0
    for i in range(bits.shape[0]):
        bad |= (bits[i] & 0x7F800000) == 0x7F800000
    return bad == 0


@kernel
def not_finite(bits: I32, out: I64) -> int:
    """Write the rows of a float32[n, dim] (seen as int32) that hold NaN or infinity. Returns how many."""
    found = 0
    for i in range(bits.shape[0]):
        bad = 0
        for j in range(bits.shape[1]):
            bad |= (bits[i, j] & 0x7F800000) == 0x7F800000
        if bad:
            out[found] = i
            found += 1
    return found


@kernel
def clip_norm(grads: F32, limit: float) -> None:
    """Scale each row of grads whose L2 norm exceeds `limit` down to it."""
    for i in range(grads.shape[0]):
        square = 0.0
        for j in range(grads.shape[1]):
            square += np.float64(grads[i, j]) * np.float64(grads[i, j])
        norm = np.sqrt(square)
        if norm > limit:
            scale = np.float32(limit / norm)
            for j in range(grads.shape[1]):
                grads[i, j] *= scale


@statistic
def squared_norms(grads: F32) -> tuple[float, float]:
    """The sum of the squared L2 norms of the rows of float32[n, dim], in float64, and the largest of them."""
    total = 0.0
    largest = 0.0
    for i in range(grads.shape[0]):
        square = 0.0
        for j in range(grads.shape[1]):
            square += np.float64(grads[i, j]) * np.float64(grads[i, j])
        total += square
        largest = max(largest, square)
    return total, largest


@kernel
def begin_update(
    header: I64, flags: U8, rows: I64, grads: F32, now_ms: int, lsn: int, step: int, lr: float, steps: I64, rates: F32
) -> tuple[float, float]:
    """What every update of distinct rows begins with: `stamp`, and what `squared_norms` says of the gradients.

    steps[i] = the row's update count, or `step` where that is not below 0; rates[i] = lr, as a float32.
    """
    stamp(header, flags, rows, now_ms, lsn, steps)
    for i in range(rows.shape[0]):
        rates[i] = lr
        if step >= 0:
            steps[i] = step
    return squared_norms(grads)
