"""SGD with (Nesterov) momentum: Polyak 1964; Sutskever, Martens, Dahl, Hinton 2013, in torch's form.

    g' = g + lambda * w
    b = momentum * b + g'
    w -= lr * b                          nesterov: w -= lr * (g' + momentum * b)

As torch.optim.SGD(momentum=..., nesterov=...) without dampening. TF and Sutskever multiply the rate into the buffer
(b = momentum * b - lr * g; w += b), which differs once the rate changes. The buffer of a row moves only when the
row has a gradient.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rockbed.kernels import kernel
from rockbed.optimizers.base import Rule, learning_rate, register, registry, weight_decay
from rockbed.optimizers.config import decay_factor, parameter
from rockbed.optimizers.rowloop import AHEAD, prefetch_row
from rockbed.types import F32, I64


@kernel
def _step(
    data: F32,
    rows: I64,
    grads: F32,
    lr: F32,
    keep: np.float32,
    from_grad: np.float32,
    from_buffer: np.float32,
    decay: np.float32,
) -> None:
    n, dim = grads.shape
    d = np.uint64(dim)
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        rate = lr[i]
        for j in range(d):
            w = data[r, j]
            g = grads[i, j] + decay * w
            b = keep * data[r, d + j] + g
            data[r, d + j] = b
            data[r, j] = w - rate * (from_grad * g + from_buffer * b)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum(Rule):
    name: ClassVar[str] = "momentum"
    lr: float = learning_rate(1e-3)
    momentum: float = parameter(float, "momentum", default=0.9, check=decay_factor)
    nesterov: bool = parameter(bool, "nesterov", "use_nesterov", default=False)
    weight_decay: float = weight_decay()

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("momentum", dim),)

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        keep, decay = np.float32(self.momentum), np.float32(self.weight_decay)
        # Two factors instead of a branch: g' * 1 + b * momentum, or g' * 0 + b.
        from_grad, from_buffer = (np.float32(1), keep) if self.nesterov else (np.float32(0), np.float32(1))
        _step(data, rows, grads, lr, keep, from_grad, from_buffer, decay)


registry.alias("nesterov", of="momentum", nesterov=True)
