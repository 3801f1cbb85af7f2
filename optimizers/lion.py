"""Lion (Chen et al. 2023, program 1): the sign of an interpolated momentum.

    u = sign(b1 * m + (1 - b1) * g)               sign(0) = 0
    w -= lr * (u + lambda * w)
    m = b2 * m + (1 - b2) * g

Keys and defaults are damo's (`eta` 3e-4, beta2 0.99, lambda 0.01; the paper's code: 1e-4, 0.99, 0). damo has sign(0) =
+1, which moves weights that got no gradient at all.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rockbed.kernels import kernel
from rockbed.optimizers.base import Rule, beta1, beta2, learning_rate, register, weight_decay
from rockbed.optimizers.rowloop import AHEAD, prefetch_row
from rockbed.types import F32, I64


@kernel
def _step(data: F32, rows: I64, grads: F32, lr: F32, beta1: float, beta2: float, decay: np.float32) -> None:
    n, dim = grads.shape
    d = np.uint64(dim)
    zero = np.float32(0.0)
    one = np.float32(1.0)
    b1, b2, c1, c2 = np.float32(beta1), np.float32(beta2), np.float32(1.0 - beta1), np.float32(1.0 - beta2)
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        rate = lr[i]
        shrink = one - rate * decay
        for j in range(d):
            g = grads[i, j]
            m = data[r, d + j]
            u = b1 * m + c1 * g
            # u * 0 keeps a NaN visible in the weights, where a plain sign would turn it into 0
            direction = one if u > zero else (-one if u < zero else u * zero)
            data[r, d + j] = b2 * m + c2 * g
            data[r, j] = shrink * data[r, j] - rate * direction


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Lion(Rule):
    name: ClassVar[str] = "lion"
    lr: float = learning_rate(3e-4, "eta", "gamma")
    beta1: float = beta1()
    beta2: float = beta2(0.99)
    weight_decay: float = weight_decay(1e-2)

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("mean", dim),)

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        _step(data, rows, grads, lr, self.beta1, self.beta2, np.float32(self.weight_decay))
