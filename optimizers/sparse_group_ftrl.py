"""FTRL with sparse group lasso (Ni et al. 2019; as in tfplus): FTRL-Proximal that can zero whole rows.

    a' = a + g^2
    x += g + 2 * l2_shrinkage * w - (sqrt(a') - sqrt(a)) / lr * w
    u = clip(x, -lambda1, lambda1) - x
    w = u * (1 - lambda21 * sqrt(dim) / |u|) / (sqrt(a') / lr + 2 * lambda2)     if |u| > lambda21 * sqrt(dim)
    w = 0                                                                       otherwise

|u| is the L2 norm of the row. a starts at initial_accumulator (0.1), x at 0, so the first update replaces the initial
weight. The power of the rate is fixed at -1/2 (a root): other powers would need libm, whose last bits differ between
machines. l2_shrinkage and the 2 in the denominator are as in TF's Ftrl. With lambda21 = 0 and a starting at 0 it is
`ftrl` with beta 0 and twice this lambda2. Where the rate is 0 the row is left as it is.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rockbed.kernels import kernel
from rockbed.optimizers.base import Rule, initial_accumulator, learning_rate, penalty, register
from rockbed.optimizers.config import not_negative, parameter
from rockbed.optimizers.rowloop import AHEAD, prefetch_row
from rockbed.types import F32, I64


@kernel
def _step(
    data: F32,
    rows: I64,
    grads: F32,
    lr: F32,
    l1: np.float32,
    l2: np.float32,
    lambda21: np.float32,
    shrinkage: np.float32,
) -> None:
    n, dim = grads.shape
    d, d2 = np.uint64(dim), np.uint64(2 * dim)
    zero, two = np.float32(0.0), np.float32(2.0)
    l21 = lambda21 * math.sqrt(np.float32(dim))
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        rate = lr[i]
        if rate == zero:
            continue
        total = zero
        for j in range(d):
            g = grads[i, j]
            w = data[r, j]
            before = data[r, d + j]
            after = before + g * g
            x = data[r, d2 + j] + (g + two * shrinkage * w - (math.sqrt(after) - math.sqrt(before)) / rate * w)
            u = min(max(x, -l1), l1) - x
            total += u * u
            data[r, d + j] = after
            data[r, d2 + j] = x
            data[r, j] = u
        norm = math.sqrt(total)
        # `not <=`, so that NaN in a gradient shows up in the weights
        keep = np.float32(1.0) - l21 / norm if not norm <= l21 else zero
        for j in range(d):
            # The denominator is 0 only for an element without any gradient so far whose a started at 0.
            scale = math.sqrt(data[r, d + j]) / rate + two * l2
            data[r, j] = zero if scale == zero else keep * data[r, j] / scale


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class SparseGroupFtrl(Rule):
    name: ClassVar[str] = "sparse_group_ftrl"
    lr: float = learning_rate(1e-2)
    lambda1: float = penalty("1")
    lambda2: float = penalty("2")
    lambda21: float = penalty("21")
    l2_shrinkage: float = parameter(
        float, "l2_shrinkage", "l2_shrinkage_regularization_strength", default=0.0, check=not_negative
    )
    initial_accumulator: float = initial_accumulator(0.1)

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("sum_squares", dim), ("linear", dim))

    def initial_state(self, dim: int) -> F32:
        state = np.zeros(2 * dim, np.float32)
        state[:dim] = self.initial_accumulator
        return state

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        l1, l2, l21, shrinkage = map(np.float32, (self.lambda1, self.lambda2, self.lambda21, self.l2_shrinkage))
        _step(data, rows, grads, lr, l1, l2, l21, shrinkage)
