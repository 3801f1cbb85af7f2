"""RMSprop (Hinton 2012, lecture 6e), in torch's form.

    g' = g + lambda * w
    v = alpha * v + (1 - alpha) * g'^2
    u = g' / (sqrt(v) + epsilon)
    w -= lr * u                          with momentum: b = momentum * b + u; w -= lr * b

As torch.optim.RMSprop without `centered`. `alpha` is the smoothing, not the rate. TF and Keras: smoothing ("rho") 0.9,
epsilon 1e-7 under the root, the rate inside the momentum buffer. The buffer b is a slot only if momentum > 0.
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
def _step(data: F32, rows: I64, grads: F32, lr: F32, alpha: float, decay: np.float32, eps: np.float32) -> None:
    n, dim = grads.shape
    d = np.uint64(dim)
    keep, add = np.float32(alpha), np.float32(1.0 - alpha)
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        rate = lr[i]
        for j in range(d):
            w = data[r, j]
            g = grads[i, j] + decay * w
            v = keep * data[r, d + j] + add * g * g
            data[r, d + j] = v
            data[r, j] = w - rate * g / (math.sqrt(v) + eps)


@kernel
def _step_with_momentum(
    data: F32, rows: I64, grads: F32, lr: F32, alpha: float, momentum: np.float32, decay: np.float32, eps: np.float32
) -> None:
    n, dim = grads.shape
    d, d2 = np.uint64(dim), np.uint64(2 * dim)
    keep, add = np.float32(alpha), np.float32(1.0 - alpha)
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        rate = lr[i]
        for j in range(d):
            w = data[r, j]
            g = grads[i, j] + decay * w
            v = keep * data[r, d + j] + add * g * g
            b = momentum * data[r, d2 + j] + g / (math.sqrt(v) + eps)
            data[r, d + j] = v
            data[r, d2 + j] = b
            data[r, j] = w - rate * b


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Rmsprop(Rule):
    name: ClassVar[str] = "rmsprop"
    lr: float = learning_rate(1e-2)
    alpha: float = parameter(float, "alpha", "rho", default=0.99, check=decay_factor)
    momentum: float = parameter(float, "momentum", default=0.0, check=decay_factor)
    weight_decay: float = weight_decay()
    epsilon: float = epsilon(1e-8)

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        buffer = (("momentum", dim),) if self.momentum > 0 else ()
        return (("mean_square", dim), *buffer)

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        decay, eps = np.float32(self.weight_decay), np.float32(self.epsilon)
        if self.momentum > 0:
            _step_with_momentum(data, rows, grads, lr, self.alpha, np.float32(self.momentum), decay, eps)
        else:
            _step(data, rows, grads, lr, self.alpha, decay, eps)
