"""What a store should hold after what the writer reported: plain numpy in float64, nothing of the code under test.

Journaled, and therefore there after any crash: pushes, removals. Not journaled, and therefore there only if it was
written back: rows that lookups made and nobody has pushed to, and the sightings that admission counts.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np

from rockbed.types import F64, I64, Bool
from tests.crash.steps import (
    ADAGRAD,
    ADAM,
    ADMITTED,
    EXPIRING,
    GLOBAL,
    GROUPS,
    MIN_COUNT,
    SHRINK_MIN_COUNT,
    SHRUNK,
    TTL_S,
    Batch,
    Shape,
    batch,
    global_step,
)
from tests.splitmix import GAMMA, MASK, mix64


@cache
def first_rows(group: int) -> F64:
    """float64[keys, dim]: the weights that rows begin with, as optimizers/random_values.py defines them (seed 0)."""
    shape = GROUPS[group]
    low, high = shape.first
    first = np.full((shape.keys, shape.dim), low)
    if low != high:
        stream = mix64(mix64(GAMMA) + (group + 1) * GAMMA)
        for i in range(shape.keys):
            row = mix64(stream ^ ((i - shape.keys // 2) & MASK))
            for j in range(shape.dim):
                word = mix64(row + (j // 2 + 1) * GAMMA)
                half = word & 0xFFFFFFFF if j % 2 else word >> 32
                first[i, j] = np.float32(low + (high - low) * ((half + 0.5) * 2.0**-32))
    return first


class Rows:
    """The rows of a group, at position key + keys // 2. `settled`: a crash cannot take the row away."""

    def __init__(self, group: int, shape: Shape) -> None:
        self.group, self.shape = group, shape
        self.weights = np.zeros((shape.keys, shape.dim))
        self.mean, self.squares = np.zeros_like(self.weights), np.zeros_like(self.weights)
        self.alive: Bool = np.zeros(shape.keys, np.bool_)
        self.settled: Bool = np.zeros(shape.keys, np.bool_)
        self.pushes, self.written_s = np.zeros(shape.keys, np.int64), np.zeros(shape.keys, np.int64)

    def at(self, keys: I64) -> I64:
        """Positions of keys."""
        return keys + self.shape.keys // 2

    def expire(self, now_s: int) -> None:
        """Let die what is too old now."""
        if self.group == EXPIRING:
            self.alive &= now_s - self.written_s < TTL_S

    def begin(self, at: I64, now_s: int) -> None:
        """Give positions that have no row their first one."""
        self.weights[at] = first_rows(self.group)[at]
        self.mean[at] = self.squares[at] = 0
        self.pushes[at], self.written_s[at] = 0, now_s
        self.alive[at], self.settled[at] = True, False

    def update(self, at: I64, grad: F64, step: int, now_s: int) -> None:
        """One step of the optimizer for distinct positions. step: the global one."""
        if self.shape.optimizer == "adagrad":  # Duchi, Hazan, Singer 2011
            self.squares[at] += grad**2
            self.weights[at] -= ADAGRAD["gamma"] * grad / (np.sqrt(self.squares[at]) + ADAGRAD["epsilon"])
        elif self.shape.optimizer == "adam":  # Kingma, Ba 2015, algorithm 1
            b1, b2 = ADAM["beta1"], ADAM["beta2"]
            self.mean[at] = b1 * self.mean[at] + (1 - b1) * grad
            self.squares[at] = b2 * self.squares[at] + (1 - b2) * grad**2
            mean, squares = self.mean[at] / (1 - b1**step), self.squares[at] / (1 - b2**step)
            self.weights[at] -= ADAM["gamma"] * mean / (np.sqrt(squares) + ADAM["epsilon"])
        else:
            self.weights[at] -= grad
        self.pushes[at] += 1
        self.written_s[at] = now_s
        self.settled[at] = True

    def adopt(self, there: Bool, doubtful: Bool) -> None:
        """Take over which of the rows that a crash may take away are there. Fails where it took or gave others.

        there: bool[keys], rows that the store has; doubtful: rows that an unfinished shrink may have removed.
        """
        ghosts, lost = there & ~self.alive, ~there & self.alive & self.settled & ~doubtful
        assert not ghosts.any(), f"group {self.group}: rows nobody made, or removed ones: {np.flatnonzero(ghosts)[:9]}"
        assert not lost.any(), f"group {self.group}: rows are lost: {np.flatnonzero(lost)[:9]}"
        self.alive, self.settled = there.copy(), there.copy()


@dataclass
class Model:
    """All groups, as the lines of the writer tell. now_s: the writer's clock."""

    seed: int
    now_s: int = 1_000_000
    last: int = 0  # the newest step whose push is known to be there
    begun: int = 0  # the newest step whose lookups may have begun,
    sent: int = 0  # and whose push may have
    global_step: int = 0
    rows: dict[int, Rows] = field(default_factory=lambda: {g: Rows(g, shape) for g, shape in GROUPS.items()})
    doubtful: Bool | None = None  # rows that a shrink is removing
    saved: I64 = field(default_factory=lambda: np.zeros(GROUPS[ADMITTED].keys, np.int64))
    sightings: I64 = field(default_factory=lambda: np.zeros(GROUPS[ADMITTED].keys, np.int64))
    unsaved: list[tuple[I64, I64]] = field(default_factory=list)  # (positions, sightings) since `saved`, a lookup each

    def follow(self, line: str) -> None:
        """Take over one line of the writer."""
        word, *numbers = line.split()
        if word == "looking":
            self.begun, self.now_s = int(numbers[0]), int(numbers[1])
            self.look(batch(self.seed, self.begun))
        elif word == "pushing":
            self.sent = int(numbers[0])
        elif word == "pushed":
            self.push(int(numbers[0]))
        elif word == "shrinking":
            self.doubtful = self.rare()
        elif word == "shrunk":
            assert self.doubtful is not None
            self.rows[SHRUNK].alive &= ~self.doubtful
            self.doubtful = None
        elif word in ("flushed", "closed"):
            self.settle()
        else:
            assert word in ("opening", "open", "flushing", "closing", "checkpointing", "checkpointed"), line

    def look(self, made: Batch) -> None:
        """Training lookups: keys without a row get one, if their group admits them."""
        for group, keys in made.looked:
            rows = self.rows[group]
            rows.expire(self.now_s)
            at, counts = np.unique(rows.at(keys), return_counts=True)
            new = ~rows.alive[at]
            if group == ADMITTED:
                self.unsaved.append((at[new], counts[new]))
                self.sightings[at[new]] += counts[new]
                new &= self.sightings[at] >= MIN_COUNT
            rows.begin(at[new], self.now_s)

    def push(self, step: int) -> None:
        """The push of a step, which is one of all its groups."""
        for group, keys, grads in batch(self.seed, step).pushed:
            rows = self.rows[group]
            rows.expire(self.now_s)
            at, inverse = np.unique(rows.at(keys), return_inverse=True)
            grad = np.zeros((at.size, rows.shape.dim))
            np.add.at(grad, inverse, grads.astype(np.float64))
            absent = ~rows.alive[at]
            taken: Bool = np.ones(at.size, np.bool_)
            if group == ADMITTED:
                taken = ~absent | (self.sightings[at] >= MIN_COUNT)
            rows.begin(at[absent & taken], self.now_s)
            rows.update(at[taken], grad[taken], global_step(step), self.now_s)
            if group == GLOBAL:
                self.global_step = global_step(step)
        self.last = step

    def rare(self) -> Bool:
        """bool[keys]: what a shrink would remove now."""
        rows = self.rows[SHRUNK]
        found: Bool = rows.alive & (rows.pushes < SHRINK_MIN_COUNT)
        return found

    def settle(self) -> None:
        """Everything has been written back."""
        for rows in self.rows.values():
            rows.settled |= rows.alive
        self.saved, self.unsaved = self.sightings.copy(), []

    def adopt_sightings(self, seen: I64) -> None:
        """Take over the sightings that a crash left: those of one moment since they were surely written.

        seen: int64[keys], MIN_COUNT for more too; for keys with a row -1, as nobody can ask for theirs.
        """
        known = seen >= 0
        found: I64 | None = None
        counts = self.saved.copy()
        for at, more in [(np.empty(0, np.int64), np.empty(0, np.int64)), *self.unsaved]:
            counts[at] += more
            if np.array_equal(np.minimum(counts[known], MIN_COUNT), seen[known]):
                found = counts.copy()
        assert found is not None, f"the sightings are not those of any of {len(self.unsaved) + 1} moments"
        self.saved, self.unsaved, self.sightings = found, [], found.copy()
