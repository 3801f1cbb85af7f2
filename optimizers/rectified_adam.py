"""Rectified Adam (Liu et al. 2020, algorithm 2): no second moment until there is enough of it to trust.

    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g^2
    limit = 2 / (1 - b2) - 1;  rho = limit - 2 * t * b2^t / (1 - b2^t)
    r = sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
    u = r * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)       if rho >= sma_threshold
    u = m / (1 - b1^t)                                                otherwise
    w -= lr * (u + lambda * w)

Threshold 5, its ">=", epsilon 1e-7 and the decoupled decay as in TensorFlow Addons; the paper tests rho > 4,
torch.optim.RAdam rho > 5, with lambda in the gradient by default. Addons' own warm-up is a schedule here.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rockbed.kernels import inlined, kernel
from rockbed.optimizers.base import Rule, beta1, beta2, epsilon, learning_rate, register, weight_decay
from rockbed.optimizers.config import parameter
from rockbed.optimizers.rowloop import AHEAD, power, prefetch_row
from rockbed.types import F32, I64


@inlined
def _rectification(beta2: float, decayed: float, step: int, threshold: float) -> float:
    """r of the formulas above, or 0 where the second moment is not to be used yet. `decayed` is beta2**step."""
    limit = 2.0 / (1.0 - beta2) - 1.0
    rho = limit - 2.0 * step * decayed / (1.0 - decayed)
    if rho < threshold:
        return 0.0
    return math.sqrt((rho - 4.0) * (rho - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * rho))


@kernel
def _step(
    data: F32,
    rows: I64,
    grads: F32,
    lr: F32,
    step: I64,
    beta1: float,
    beta2: float,
    threshold: float,
    decay: np.float32,
    eps: np.float32,
) -> None:
    n, dim = grads.shape
    d, d2 = np.uint64(dim), np.uint64(2 * dim)
    b1, b2, c1, c2 = np.float32(beta1), np.float32(beta2), np.float32(1.0 - beta1), np.float32(1.0 - beta2)
    last = np.int64(-1)
    correction1 = correction2 = 1.0
    adaptive = False
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        if step[i] != last:  # neighbours often share their step
            last = step[i]
            decayed = power(beta2, last)
            rectification = _rectification(beta2, decayed, last, threshold)
            adaptive = rectification > 0.0
            correction1 = (rectification if adaptive else 1.0) / (1.0 - power(beta1, last))
            correction2 = math.sqrt(1.0 / (1.0 - decayed))
        rate = np.float32(lr[i] * correction1)
        root = np.float32(correction2)
        shrink = np.float32(1.0) - lr[i] * decay
        for j in range(d):
            g = grads[i, j]
            data[r, d + j] = b1 * data[r, d + j] + c1 * g
            data[r, d2 + j] = b2 * data[r, d2 + j] + c2 * g * g
        if adaptive:
            for j in range(d):
                scale = math.sqrt(data[r, d2 + j]) * root + eps
                data[r, j] = shrink * data[r, j] - rate * data[r, d + j] / scale
        else:
            for j in range(d):
                data[r, j] = shrink * data[r, j] - rate * data[r, d + j]


def _threshold_problem(value: float) -> str | None:
    # Below rho = 4 the variance that the paper rectifies does not exist, and the root is of a negative number.
    return None if value > 4 else "must be above 4"


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class RectifiedAdam(Rule):
    name: ClassVar[str] = "rectified_adam"
    lr: float = learning_rate(1e-3)
    beta1: float = beta1()
    beta2: float = beta2()
    weight_decay: float = weight_decay()
    epsilon: float = epsilon(1e-7)
    sma_threshold: float = parameter(float, "sma_threshold", default=5.0, check=_threshold_problem)

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("mean", dim), ("mean_square", dim))

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        decay, eps = np.float32(self.weight_decay), np.float32(self.epsilon)
        _step(data, rows, grads, lr, step, self.beta1, self.beta2, self.sma_threshold, decay, eps)
