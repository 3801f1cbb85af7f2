"""The independent model that the store is compared with: a dict of float64 rows, one row at a time, no shared code."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rockbed.types import F32, F64, I64, U64


@dataclass
class Row:
    """weights: float64[dim]; squares: Adagrad's sum of squared gradients; updates: how often it was pushed."""

    weights: F64
    squares: F64
    updates: int = 0


@dataclass
class Model:
    """Rows that begin at `first` and are trained by SGD, or by Adagrad if `adagrad`. lr: the learning rate."""

    dim: int
    lr: float = 0.5
    adagrad: bool = False
    first: float = 0.0
    rows: dict[int, Row] = field(default_factory=dict)

    def row(self, key: int) -> Row:
        """The row of a key, begun where there is none."""
        return self.rows.setdefault(key, Row(np.full(self.dim, self.first), np.zeros(self.dim)))

    def step(self, key: int, gradient: Any, lr: float | None = None) -> None:
        """One update of one row."""
        row, rate = self.row(key), self.lr if lr is None else lr
        g = np.asarray(gradient, np.float64)
        if self.adagrad:
            row.squares += g * g
            g = g / (np.sqrt(row.squares) + 1e-10)
        row.weights -= rate * g
        row.updates += 1

    def push(self, keys: I64 | U64, gradients: F32) -> None:
        """A push whose repeated keys are summed to one step."""
        sums: dict[int, F64] = {}
        for key, gradient in zip(keys.tolist(), gradients.reshape(-1, self.dim), strict=True):
            sums[key] = sums.get(key, np.zeros(self.dim)) + gradient.astype(np.float64)
        for key, total in sums.items():
            self.step(key, total)

    def weights(self, keys: I64 | U64) -> F64:
        """float64[n, dim]; keys without a row give their first values, and get none."""
        nothing = np.full(self.dim, self.first)
        return np.array([self.rows[k].weights if k in self.rows else nothing for k in keys.tolist()]).reshape(
            -1, self.dim
        )
