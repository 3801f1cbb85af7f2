"""Loops over a feature's arrays as they were sent: whether they are bags, and what counts of them.

An array that may be absent is empty then.
"""

from typing import Any

import numpy as np

from rockbed.kernels import inlined, kernel
from rockbed.types import F32, I64

WRONG = 1  # what check_arrays refuses: offsets that fall, or do not run from 0 to n; weights that are not finite
UNCLEAN = 2  # `prune` would change something
LONG = 4  # a bag has more than one key
_FLOAT32_MAX = np.finfo(np.float32).max


@inlined
def examine(
    keys: I64,
    offsets: I64,
    weights: F32,
    negative: bool,
    positive: bool,
    padded: bool,
    padding: int,
    fill: bool,
) -> Any:
    """What is found in a feature's arrays, whatever they hold: bits of WRONG, UNCLEAN and LONG. Beside WRONG the others
    mean nothing.

    negative, positive: as of `prune`; padded: whether `padding` is a key that stands for nothing; fill: whether empty
    bags are to hold something.
    """
    n, bags = keys.shape[0], offsets.shape[0] - 1
    wrong = (offsets[0] != 0) | (offsets[bags] != n)
    empty, long = False, False
    for b in range(bags):
        wrong |= offsets[b + 1] < offsets[b]
        empty |= offsets[b + 1] == offsets[b]
        long |= offsets[b + 1] - offsets[b] > 1
    unclean = empty & fill
    if not negative:
        for i in range(n):
            unclean |= keys[i] < 0
    if padded:
        for i in range(n):
            unclean |= keys[i] == padding
    for i in range(weights.shape[0]):
        wrong |= not abs(weights[i]) <= _FLOAT32_MAX
        unclean |= positive & (not weights[i] > 0)
    return WRONG * wrong | UNCLEAN * unclean | LONG * long


@kernel
def prune(
    keys: I64,
    offsets: I64,
    weights: F32,
    negative: bool,
    positive: bool,
    padding: I64,
    default: I64,
    kept: I64,
    ends: I64,
    kept_weights: F32,
) -> int:
    """Copy what counts: keys >= 0 unless `negative`, not the padding key, with weights > 0 if `positive`.

    padding, default: int64[1], or empty. A bag left empty holds default[0] with weight 1. kept: int64[n + bags];
    ends: like offsets; kept_weights: float32[n + bags], empty without weights. Returns how many keys there are.
    """
    weighted = weights.shape[0] > 0
    n = 0
    ends[0] = 0
    for b in range(offsets.shape[0] - 1):
        for i in range(offsets[b], offsets[b + 1]):
            if keys[i] < 0 and not negative:
                continue
            if padding.shape[0] and keys[i] == padding[0]:
                continue
            if weighted:
                if positive and not weights[i] > 0:
                    continue
                kept_weights[n] = weights[i]
            kept[n] = keys[i]
            n += 1
        if n == ends[b] and default.shape[0]:
            kept[n] = default[0]
            if weighted:
                kept_weights[n] = 1
            n += 1
        ends[b + 1] = n
    return n
