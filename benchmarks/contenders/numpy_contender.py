"""np.take of random rows of one array: what fetching the bytes alone costs a Python program."""

from collections.abc import Sequence

import numpy as np

from benchmarks.contenders.base import Contender, Settings
from benchmarks.data import F32, Batch


class NumpyTake:
    def open(self, settings: Settings) -> None:
        shape = (settings.rows, settings.dim)
        self._tables = [np.random.default_rng(t).random(shape, np.float32) for t in range(settings.tables)]
        self._out = np.empty((0, settings.dim), np.float32)

    def lookup(self, batch: Batch) -> None:
        if len(self._out) < len(batch.at):
            self._out = np.empty((len(batch.at), self._out.shape[1]), np.float32)
        # mode="clip" because "raise" copies through a buffer when `out` is given: this is np.take at its fastest.
        np.take(self._tables[batch.table], batch.at, axis=0, out=self._out[: len(batch.at)], mode="clip")

    def apply(self, batch: Batch, grads: F32) -> None:
        raise NotImplementedError("np.take is measured for lookups only")

    def train_step(self, batches: Sequence[Batch], grads: Sequence[F32]) -> None:
        raise NotImplementedError("np.take is measured for lookups only")

    def settle(self) -> None:
        return

    def facts(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._tables = []


def make() -> Contender:
    return NumpyTake()
