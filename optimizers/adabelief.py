"""AdaBelief (Zhuang et al. 2020, algorithm 2): Adam that divides by how far gradients stray from their mean.

    m = b1 * m + (1 - b1) * g
    s = b2 * s + (1 - b2) * (g - m)^2 + epsilon
    w -= lr * ((m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + epsilon) + lambda * w)

m is the new one. The decay is decoupled, as in the authors' implementation, and so is epsilon's default of 1e-16 theirs
(the paper says 1e-8): it is added to s at every step.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rockbed.kernels import kernel
from rockbed.optimizers.base import Rule, beta1, beta2, epsilon, learning_rate, register, weight_decay
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
    decay: np.float32,
    eps: np.float32,
) -> None:
    n, dim = grads.shape
    d, d2 = np.uint64(dim), np.uint64(2 * dim)
    b1, b2, c1, c2 = np.float32(beta1), np.float32(beta2), np.float32(1.0 - beta1), np.float32(1.0 - beta2)
    last = np.int64(-1)
    correction1 = correction2 = 1.0
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        if step[i] != last:  # neighbours often share their step
            last = step[i]
            correction1 = 1.0 / (1.0 - power(beta1, last))
            correction2 = math.sqrt(1.0 / (1.0 - power(beta2, last)))
        rate = np.float32(lr[i] * correction1)
        root = np.float32(correction2)
        shrink = np.float32(1.0) - lr[i] * decay
        for j in range(d):
            g = grads[i, j]
            m = b1 * data[r, d + j] + c1 * g
            s = b2 * data[r, d2 + j] + c2 * (g - m) * (g - m) + eps
            data[r, d + j] = m
            data[r, d2 + j] = s
            data[r, j] = shrink * data[r, j] - rate * m / (math.sqrt(s) * root + eps)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class AdaBelief(Rule):
    name: ClassVar[str] = "adabelief"
    lr: float = learning_rate(1e-3)
    beta1: float = beta1()
    beta2: float = beta2()
    weight_decay: float = weight_decay()
    epsilon: float = epsilon(1e-16)

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("mean", dim), ("mean_square_deviation", dim))

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        decay, eps = np.float32(self.weight_decay), np.float32(self.epsilon)
        _step(data, rows, grads, lr, step, self.beta1, self.beta2, decay, eps)
