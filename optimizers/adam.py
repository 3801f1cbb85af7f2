"""Adam (Kingma, Ba 2015, algorithm 1).

    g' = g + lambda * w
    m = b1 * m + (1 - b1) * g'
    v = b2 * v + (1 - b2) * g'^2
    w -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)

As torch.optim.Adam and damo. TF and Keras move the correction of v to the rate, lr * sqrt(1 - b2^t) / (1 - b1^t), which
makes their epsilon ("epsilon hat", Keras 1e-7) act as epsilon / sqrt(1 - b2^t). t is the row's update count or a global
step, as the group says; the moments of a row decay only when the row has a gradient (as in TF's LazyAdam).
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
        for j in range(d):
            w = data[r, j]
            g = grads[i, j] + decay * w
            m = b1 * data[r, d + j] + c1 * g
            v = b2 * data[r, d2 + j] + c2 * g * g
            data[r, d + j] = m
            data[r, d2 + j] = v
            data[r, j] = w - rate * m / (math.sqrt(v) * root + eps)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Adam(Rule):
    name: ClassVar[str] = "adam"
    lr: float = learning_rate(1e-3)
    beta1: float = beta1()
    beta2: float = beta2()
    weight_decay: float = weight_decay()
    epsilon: float = epsilon(1e-8)

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("mean", dim), ("mean_square", dim))

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        decay, eps = np.float32(self.weight_decay), np.float32(self.epsilon)
        _step(data, rows, grads, lr, step, self.beta1, self.beta2, decay, eps)
