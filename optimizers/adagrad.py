"""Adagrad (Duchi, Hazan, Singer 2011, diagonal form).

    g' = g + lambda * w
    m += g'^2
    w -= lr / (1 + (t - 1) * eta) * g' / (sqrt(m) + epsilon)

As torch.optim.Adagrad: `eta` is its lr_decay, `initial_accumulator` where m starts (0). TF1 starts m at 0.1 and has no
epsilon; Keras starts at 0.1 and puts epsilon 1e-7 under the root. damo takes `eta` and ignores it; here it acts.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rockbed.kernels import kernel
from rockbed.optimizers.base import Rule, epsilon, initial_accumulator, learning_rate, register, weight_decay
from rockbed.optimizers.config import not_negative, parameter
from rockbed.optimizers.rowloop import AHEAD, prefetch_row
from rockbed.types import F32, I64


@kernel
def _step(
    data: F32, rows: I64, grads: F32, lr: F32, step: I64, decay: np.float32, lr_decay: float, eps: np.float32
) -> None:
    n, dim = grads.shape
    d = np.uint64(dim)
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        rate = lr[i]
        if lr_decay > 0.0:  # without one the division would be a tenth of the time
            rate = np.float32(rate / (1.0 + (step[i] - 1) * lr_decay))
        for j in range(d):
            w = data[r, j]
            g = grads[i, j] + decay * w
            m = data[r, d + j] + g * g
            data[r, d + j] = m
            data[r, j] = w - rate * g / (math.sqrt(m) + eps)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Adagrad(Rule):
    name: ClassVar[str] = "adagrad"
    lr: float = learning_rate(1e-2)
    weight_decay: float = weight_decay()
    lr_decay: float = parameter(float, "eta", "lr_decay", default=0.0, check=not_negative)
    epsilon: float = epsilon(1e-10)
    initial_accumulator: float = initial_accumulator(0.0)

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("sum_squares", dim),)

    def initial_state(self, dim: int) -> F32:
        return np.full(dim, self.initial_accumulator, np.float32)

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        decay, eps = np.float32(self.weight_decay), np.float32(self.epsilon)
        _step(data, rows, grads, lr, step, decay, self.lr_decay, eps)
