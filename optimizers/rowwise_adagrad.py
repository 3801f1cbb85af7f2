"""Adagrad with one accumulator a row (the rule of FBGEMM's and TorchRec's embedding tables).

    g' = g + lambda * w
    a += mean(g'^2)                      over the row
    w -= lr * g' / (sqrt(a) + epsilon)

State is one float32 a row instead of dim. At dim 1 it is Adagrad.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rockbed.kernels import kernel
from rockbed.optimizers.base import Rule, epsilon, initial_accumulator, learning_rate, register, weight_decay
from rockbed.optimizers.rowloop import AHEAD, prefetch_row, sum_of_squares
from rockbed.types import F32, I64


@kernel
def _step(data: F32, rows: I64, grads: F32, lr: F32, decay: np.float32, eps: np.float32) -> None:
    n, dim = grads.shape
    d = np.uint64(dim)
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        a = data[r, d] + sum_of_squares(grads, i, data, rows[i], decay) / np.float32(dim)
        data[r, d] = a
        rate = lr[i] / (math.sqrt(a) + eps)
        for j in range(d):
            w = data[r, j]
            data[r, j] = w - rate * (grads[i, j] + decay * w)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class RowwiseAdagrad(Rule):
    name: ClassVar[str] = "rowwise_adagrad"
    lr: float = learning_rate(1e-2)
    weight_decay: float = weight_decay()
    epsilon: float = epsilon(1e-8)
    initial_accumulator: float = initial_accumulator(0.0)

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("mean_sum_squares", 1),)

    def initial_state(self, dim: int) -> F32:
        return np.full(1, self.initial_accumulator, np.float32)

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        _step(data, rows, grads, lr, np.float32(self.weight_decay), np.float32(self.epsilon))
