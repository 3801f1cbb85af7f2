"""Adadelta (Zeiler 2012, algorithm 1), with a learning rate in front.

    g' = g + lambda * w
    s = rho * s + (1 - rho) * g'^2
    delta = sqrt(u + epsilon) / sqrt(s + epsilon) * g'
    u = rho * u + (1 - rho) * delta^2
    w -= lr * delta

As torch.optim.Adadelta (lr 1, rho 0.9, epsilon 1e-6). Keras: lr 0.001, rho 0.95, epsilon 1e-7.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rockbed.kernels import kernel
from rockbed.optimizers.base import Rule, epsilon, learning_rate, register, weight_decay
from rockbed.optimizers.config import decay_factor, parameter
from rockbed.optimizers.rowloop import AHEAD, prefetch_row
from rockbed.types import F32, I64


@kernel
def _step(data: F32, rows: I64, grads: F32, lr: F32, rho: float, decay: np.float32, eps: np.float32) -> None:
    n, dim = grads.shape
    d, d2 = np.uint64(dim), np.uint64(2 * dim)
    keep, add = np.float32(rho), np.float32(1.0 - rho)
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        rate = lr[i]
        for j in range(d):
            w = data[r, j]
            g = grads[i, j] + decay * w
            s = keep * data[r, d + j] + add * g * g
            u = data[r, d2 + j]
            delta = math.sqrt(u + eps) / math.sqrt(s + eps) * g
            data[r, d + j] = s
            data[r, d2 + j] = keep * u + add * delta * delta
            data[r, j] = w - rate * delta


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Adadelta(Rule):
    name: ClassVar[str] = "adadelta"
    lr: float = learning_rate(1.0)
    rho: float = parameter(float, "rho", default=0.9, check=decay_factor)
    weight_decay: float = weight_decay()
    epsilon: float = epsilon(1e-6)

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("mean_square", dim), ("mean_square_update", dim))

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        _step(data, rows, grads, lr, self.rho, np.float32(self.weight_decay), np.float32(self.epsilon))
