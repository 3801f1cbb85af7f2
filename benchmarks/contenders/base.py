"""What a contender can do. Its process imports this, numpy, and its own library: nothing of the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.data import F32, Batch

LEARNING_RATE = 0.05
INITIAL_BOUND = 0.01  # initial weights are uniform in -0.01..0.01


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a contender is opened. rows: of each table. memory_budget: bytes, or None for room for every row.

    write_back: False puts Rockbed's write-back off, so that the journal grows (for the part `crash` only).
    """

    directory: Path
    rows: int
    dim: int
    tables: int = 1
    memory_budget: int | None = None
    write_back: bool = True


class Contender(Protocol):
    """Whatever it is, it is measured by these calls."""

    def open(self, settings: Settings) -> None: ...

    def lookup(self, batch: Batch) -> None:
        """Put the rows of the batch, one per key, repeats included, into an array."""

    def apply(self, batch: Batch, grads: F32) -> None:
        """One Adagrad step on the batch's rows; gradients of repeated keys are summed first."""

    def train_step(self, batches: Sequence[Batch], grads: Sequence[F32]) -> None:
        """Look up all batches, then apply a gradient to each."""

    def settle(self) -> None:
        """Bring everything to disk, as far as the contender can be asked to."""

    def facts(self) -> dict[str, float]:
        """Figures that the contender knows about itself, such as rows written back."""

    def close(self) -> None: ...
