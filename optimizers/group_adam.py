"""Group Adam: Adam that can zero whole rows (Yue et al. 2021, "Adaptive Optimizers with Sparse Group Lasso").

    m = b1 * m + (1 - b1) * g
    v' = b2 * v + (1 - b2) * g^2
    x += lr * sqrt(1 - b2^t) / (1 - b1^t) * m - (sqrt(v') - sqrt(v)) * w      first: - (sqrt(v') + epsilon) * w
    u = clip(x, -l1, l1) - x
    w = u * (1 - l21 * sqrt(dim) / |u|) / (sqrt(v') + epsilon + 2 * l2)         if |u| > l21 * sqrt(dim)
    w = 0                                                                       otherwise

|u| is the L2 norm of the row; l1, l2, l21 stand for lr * lambda1, lr * lambda2, lr * lambda21, as in tfplus. Without
regularisation it is Adam in TF's form (epsilon beside the uncorrected root). x = 0 tells the first update of an
element: later, x = 0 comes with w = 0, and then both forms agree; so nothing depends on which step t starts from. A row
of zeros is the sign that its feature can be dropped; `shrink` by weight norm does it.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rockbed.kernels import kernel
from rockbed.optimizers.base import Rule, beta1, beta2, epsilon, initial_accumulator, learning_rate, penalty, register
from rockbed.optimizers.rowloop import AHEAD, power, prefetch_row
from rockbed.types import F32, I64


@kernel
def _step(
    data: F32,
    rows: I64,
    grads: F32,
    lr: F32,
    step: I64,
    beta1: float,
    beta2: float,
    eps: np.float32,
    lambda1: np.float32,
    lambda2: np.float32,
    lambda21: np.float32,
) -> None:
    n, dim = grads.shape
    d, d2, d3 = np.uint64(dim), np.uint64(2 * dim), np.uint64(3 * dim)
    zero = np.float32(0.0)
    b1, b2, c1, c2 = np.float32(beta1), np.float32(beta2), np.float32(1.0 - beta1), np.float32(1.0 - beta2)
    last = np.int64(-1)
    correction = 1.0
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        if step[i] != last:  # neighbours often share their step
            last = step[i]
            correction = math.sqrt(1.0 - power(beta2, last)) / (1.0 - power(beta1, last))
        rate = np.float32(lr[i] * correction)
        l1, l2, l21 = lr[i] * lambda1, lr[i] * lambda2, lr[i] * lambda21 * math.sqrt(np.float32(dim))
        total = zero
        for j in range(d):
            g = grads[i, j]
            m = b1 * data[r, d + j] + c1 * g
            before = data[r, d2 + j]
            v = b2 * before + c2 * g * g
            x = data[r, d3 + j]
            moved = math.sqrt(v) + (eps if x == zero else -math.sqrt(before))
            x += rate * m - moved * data[r, j]
            u = min(max(x, -l1), l1) - x
            total += u * u
            data[r, d + j] = m
            data[r, d2 + j] = v
            data[r, d3 + j] = x
            data[r, j] = u
        norm = math.sqrt(total)
        # `not <=`, so that NaN in a gradient shows up in the weights
        keep = np.float32(1.0) - l21 / norm if not norm <= l21 else zero
        for j in range(d):
            data[r, j] = keep * data[r, j] / (math.sqrt(data[r, d2 + j]) + eps + np.float32(2.0) * l2)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAdam(Rule):
    name: ClassVar[str] = "group_adam"
    lr: float = learning_rate(1e-3)
    beta1: float = beta1()
    beta2: float = beta2()
    epsilon: float = epsilon(1e-8)
    lambda1: float = penalty("1")
    lambda2: float = penalty("2")
    lambda21: float = penalty("21")
    initial_accumulator: float = initial_accumulator(0.0)

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("mean", dim), ("mean_square", dim), ("linear", dim))

    def initial_state(self, dim: int) -> F32:
        state = np.zeros(3 * dim, np.float32)
        state[dim : 2 * dim] = self.initial_accumulator
        return state

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        eps, l1, l2, l21 = map(np.float32, (self.epsilon, self.lambda1, self.lambda2, self.lambda21))
        _step(data, rows, grads, lr, step, self.beta1, self.beta2, eps, l1, l2, l21)
