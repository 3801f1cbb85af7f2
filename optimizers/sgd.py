"""Stochastic gradient descent.

    w -= lr * (g + lambda * w)

As torch.optim.SGD without momentum, and damo's `sgd`. No slots. The decay is L2 in the gradient.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rockbed.kernels import kernel
from rockbed.optimizers.base import Rule, learning_rate, register, weight_decay
from rockbed.optimizers.rowloop import AHEAD, prefetch_row
from rockbed.types import F32, I64


@kernel
def _step(data: F32, rows: I64, grads: F32, lr: F32, decay: np.float32) -> None:
    n, dim = grads.shape
    d = np.uint64(dim)
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        rate = lr[i]
        for j in range(d):
            w = data[r, j]
            data[r, j] = w - rate * (grads[i, j] + decay * w)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd(Rule):
    name: ClassVar[str] = "sgd"
    lr: float = learning_rate(1e-3)
    weight_decay: float = weight_decay()

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        _step(data, rows, grads, lr, np.float32(self.weight_decay))
