"""FTRL-Proximal (McMahan et al. 2013, "Ad Click Prediction", algorithm 1).

    s = (sqrt(n + g^2) - sqrt(n)) / alpha
    z += g - s * w
    n += g^2
    w = 0                                                             if |z| <= lambda1
    w = -(z - sign(z) * lambda1) / ((beta + sqrt(n)) / alpha + lambda2)    otherwise

n is stored whether or not the weight becomes 0, as in the paper (damo forgets it then). alpha is the rate, and may be
scheduled; where it is 0 the row is left as it is. TF: n starts at 0.1 (`initial_accumulator` here, 0), l2 counts twice
in the denominator. z starts at 0, so the first update replaces the initial weight, as in TF and damo.
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
def _step(data: F32, rows: I64, grads: F32, lr: F32, beta: np.float32, l1: np.float32, l2: np.float32) -> None:
    n, dim = grads.shape
    d, d2 = np.uint64(dim), np.uint64(2 * dim)
    zero = np.float32(0.0)
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        alpha = lr[i]
        if alpha == zero:
            continue
        for j in range(d):
            g = grads[i, j]
            before = data[r, d2 + j]
            after = before + g * g
            root = math.sqrt(after)
            z = data[r, d + j] + (g - (root - math.sqrt(before)) / alpha * data[r, j])
            # A gradient whose square underflows leaves n, and so the denominator, at 0: then the weight is 0 too.
            scale = (beta + root) / alpha + l2
            shrunk = z - l1 if z > zero else z + l1
            data[r, d + j] = z
            data[r, d2 + j] = after
            data[r, j] = zero if abs(z) <= l1 or scale == zero else -shrunk / scale


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Ftrl(Rule):
    name: ClassVar[str] = "ftrl"
    lr: float = learning_rate(5e-3, "alpha", "gamma")
    beta: float = parameter(float, "beta", default=0.0, check=not_negative)
    lambda1: float = penalty("1")
    lambda2: float = penalty("2")
    initial_accumulator: float = initial_accumulator(0.0)

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("linear", dim), ("sum_squares", dim))

    def initial_state(self, dim: int) -> F32:
        state = np.zeros(2 * dim, np.float32)
        state[dim:] = self.initial_accumulator
        return state

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        beta, l1, l2 = np.float32(self.beta), np.float32(self.lambda1), np.float32(self.lambda2)
        _step(data, rows, grads, lr, beta, l1, l2)
