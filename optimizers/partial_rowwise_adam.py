"""Adam with one second moment a row (FBGEMM's partial row-wise Adam).

    g' = g + lambda * w
    m = b1 * m + (1 - b1) * g'
    v = b2 * v + (1 - b2) * mean(g'^2)            over the row
    w -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)

State is dim + 1 float32 a row instead of 2 * dim. At dim 1 it is Adam.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rockbed.kernels import kernel
from rockbed.optimizers.base import Rule, beta1, beta2, epsilon, learning_rate, register, weight_decay
from rockbed.optimizers.rowloop import AHEAD, power, prefetch_row, sum_of_squares
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
        for j in range(d):
            g = grads[i, j] + decay * data[r, j]
            data[r, d + j] = b1 * data[r, d + j] + c1 * g
        v = b2 * data[r, d2] + c2 * (sum_of_squares(grads, i, data, rows[i], decay) / np.float32(dim))
        data[r, d2] = v
        rate = np.float32(rate / (math.sqrt(v) * correction2 + eps))
        for j in range(d):
            data[r, j] -= rate * data[r, d + j]


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class PartialRowwiseAdam(Rule):
    name: ClassVar[str] = "partial_rowwise_adam"
    lr: float = learning_rate(1e-2)
    beta1: float = beta1()
    beta2: float = beta2()
    weight_decay: float = weight_decay()
    epsilon: float = epsilon(1e-8)

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("mean", dim), ("mean_square", 1))

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        decay, eps = np.float32(self.weight_decay), np.float32(self.epsilon)
        _step(data, rows, grads, lr, step, self.beta1, self.beta2, decay, eps)
