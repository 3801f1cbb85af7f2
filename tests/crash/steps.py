"""What the writing process does at each step, as a pure function of (seed, step), and a float64 model of its effect."""

from dataclasses import dataclass, field

import numpy as np

from rockbed.types import F32, F64, I64

EXACT, ADAPTIVE, SHRUNK = 1, 2, 3  # groups: sgd with whole numbers, Adagrad, sgd that is shrunk
DIMS = {EXACT: 4, ADAPTIVE: 16, SHRUNK: 2}
KEYS = {EXACT: 300, ADAPTIVE: 2_000, SHRUNK: 400}
FIRST = {
    EXACT: 0.0,
    ADAPTIVE: 0.0,
    SHRUNK: 0.5,
}  # with whole gradients a row of the last is never 0, as an absent one is
RATE, EPSILON = 0.1, 1e-10
SHRINK_EVERY, CHECKPOINT_EVERY = 41, 97
SHRINK_MIN_COUNT = 3


def pushes(seed: int, step: int) -> list[tuple[int, I64, F32]]:
    """(group, keys, gradients) of the step's one atomic push; keys repeat."""
    rng = np.random.default_rng((seed, step))
    groups = [g for g in (EXACT, ADAPTIVE, SHRUNK) if rng.random() < 0.8] or [EXACT]
    items = []
    for group in groups:
        keys = rng.integers(-KEYS[group] // 2, KEYS[group] // 2, rng.integers(1, 60))
        grads = rng.integers(-3, 4, (keys.size, DIMS[group])).astype(np.float32)
        items.append((group, keys, grads))
    return items


@dataclass
class Row:
    """A row as it should be: weights, Adagrad's sums, updates."""

    weights: F64
    squares: F64
    count: int = 0


@dataclass
class Model:
    """Every row that the steps applied so far have made."""

    seed: int
    rows: dict[tuple[int, int], Row] = field(default_factory=dict)
    applied: int = 0

    def apply_up_to(self, step: int) -> None:
        """Apply the steps that are missing, in order."""
        while self.applied < step:
            self.applied += 1
            for group, keys, grads in pushes(self.seed, self.applied):
                for key in np.unique(keys).tolist():
                    first = np.full(DIMS[group], FIRST[group])
                    row = self.rows.setdefault((group, key), Row(first, np.zeros(DIMS[group])))
                    grad = grads[keys == key].astype(np.float64).sum(axis=0)
                    row.count += 1
                    if group == ADAPTIVE:
                        row.squares = row.squares + grad**2
                        row.weights = row.weights - RATE * grad / (np.sqrt(row.squares) + EPSILON)
                    else:
                        row.weights = row.weights - grad

    def rare(self) -> set[int]:
        """The keys that a shrink would remove now."""
        return {key for (group, key), row in self.rows.items() if group == SHRUNK and row.count < SHRINK_MIN_COUNT}

    def forget(self, keys: set[int]) -> None:
        """Remove rows of the group that is shrunk."""
        for key in keys:
            del self.rows[SHRUNK, key]
