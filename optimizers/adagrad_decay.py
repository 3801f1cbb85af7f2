"""Adagrad whose accumulator is discounted every so many steps (DeepRec's AdagradDecay), so that old gradients fade.

    k = (t - 1) // decay_steps                    decays due until now; the row remembers how many it has had
    a = max(a * decay_rate^(k - had), a0)         only where k > had
    g' = g + lambda * w
    a += g'^2
    w -= lr * g' / sqrt(a)

a starts at a0 = initial_accumulator (0.1), which is the floor and what stands in for an epsilon. t is the row's update
count or the global step; meant for the global one. The count had is kept as float32, exact up to 2^24 decays.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rockbed.kernels import kernel
from rockbed.optimizers.base import Rule, learning_rate, register, weight_decay
from rockbed.optimizers.config import fraction, parameter, positive
from rockbed.optimizers.rowloop import AHEAD, power, prefetch_row
from rockbed.types import F32, I64


@kernel
def _step(
    data: F32,
    rows: I64,
    grads: F32,
    lr: F32,
    step: I64,
    decay: np.float32,
    decay_steps: int,
    decay_rate: float,
    floor: np.float32,
) -> None:
    n, dim = grads.shape
    d = np.uint64(dim)
    mark = np.uint64(2 * dim)
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(data, rows[i + AHEAD])
        r = np.uint64(rows[i])
        rate = lr[i]
        due = (step[i] - 1) // decay_steps
        missing = due - np.int64(data[r, mark])
        if missing > 0:
            data[r, mark] = due
            factor = np.float32(power(decay_rate, missing))
            for j in range(d):
                data[r, d + j] = max(data[r, d + j] * factor, floor)
        for j in range(d):
            w = data[r, j]
            g = grads[i, j] + decay * w
            a = data[r, d + j] + g * g
            data[r, d + j] = a
            data[r, j] = w - rate * g / math.sqrt(a)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class AdagradDecay(Rule):
    name: ClassVar[str] = "adagrad_decay"
    lr: float = learning_rate(1e-2)
    weight_decay: float = weight_decay()
    decay_steps: int = parameter(int, "decay_steps", "decay_step", default=100_000, check=positive)
    decay_rate: float = parameter(float, "decay_rate", default=0.9, check=fraction)
    initial_accumulator: float = parameter(
        float, "initial_accumulator", "initial_accumulator_value", "init_acc", default=0.1, check=positive
    )

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return (("sum_squares", dim), ("decays", 1))

    def initial_state(self, dim: int) -> F32:
        state = np.full(dim + 1, self.initial_accumulator, np.float32)
        state[dim] = 0
        return state

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        decay, floor = np.float32(self.weight_decay), np.float32(self.initial_accumulator)
        _step(data, rows, grads, lr, step, decay, self.decay_steps, self.decay_rate, floor)
