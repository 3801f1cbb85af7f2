"""Rockbed, embedded: durable pushes (journal on), rows in the hot tier as far as the budget goes."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.contenders.base import INITIAL_BOUND, LEARNING_RATE, Contender, Settings
from benchmarks.data import F32, Batch
from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage

# "room for every row": twice what the rows take, and some more for small stores
ROOM = 256 << 20
ROW_OVERHEAD = 100
DEFAULT_INTERVAL_S = 30.0  # PyStorage's own


class Rockbed:
    def open(self, settings: Settings) -> None:
        compile_kernels(settings.directory.with_name("warm-up"))
        storage = PyStorage(
            settings.directory,
            memory_budget=memory_budget(settings),
            write_back_interval=DEFAULT_INTERVAL_S if settings.write_back else 86_400.0,
        )
        self._use(storage, settings)

    def _use(self, storage: PyStorage, settings: Settings) -> None:
        self._storage = storage
        optimizer = PyOptimizer(name="adagrad", gamma=LEARNING_RATE)
        initializer = PyInitializer(name="random_uniform", min=-INITIAL_BOUND, max=INITIAL_BOUND)
        self._tables = [
            PyEmbedding(self._storage, optimizer, initializer, settings.dim, group) for group in range(settings.tables)
        ]
        self._out = np.empty((0, settings.dim), np.float32)

    def _look_up(self, batches: Sequence[Batch]) -> None:
        """All batches into one array that is used again, one after the other in it."""
        total = sum(len(batch.keys) for batch in batches)
        if len(self._out) < total:
            self._out = np.empty((total, self._out.shape[1]), np.float32)
        start = 0
        for batch in batches:
            self._tables[batch.table].lookup(batch.keys, self._out[start : start + len(batch.keys)])
            start += len(batch.keys)

    def lookup(self, batch: Batch) -> None:
        self._look_up([batch])

    def apply(self, batch: Batch, grads: F32) -> None:
        self._tables[batch.table].apply_gradients(batch.keys, grads)

    def train_step(self, batches: Sequence[Batch], grads: Sequence[F32]) -> None:
        self._look_up(batches)
        self._storage.apply_gradients(
            [(self._tables[batch.table], batch.keys, grad) for batch, grad in zip(batches, grads, strict=True)]
        )

    def settle(self) -> None:
        self._storage.flush()
        self._storage.compact()  # damo compacts all it has when it is closed

    def facts(self) -> dict[str, float]:
        stats = self._storage.stats()
        return {name: float(value) for name, value in stats.items() if isinstance(value, int | float)}

    def close(self) -> None:
        self._storage.close()


def memory_budget(settings: Settings) -> int:
    """What the settings say, or else room for every row."""
    rows = settings.rows * settings.tables
    return settings.memory_budget or ROOM + 2 * rows * (2 * 4 * settings.dim + ROW_OVERHEAD)


def compile_kernels(directory: Path) -> None:
    """Use once, in a store that is thrown away, what will be measured: a first use compiles, or reads numba's cache."""
    keys = np.arange(70_000) % 40_000  # with repeats, and enough for several threads
    for _ in range(2):  # a new store, and one that has its rows on disk
        with PyStorage(directory) as storage:
            rows = PyEmbedding(storage, PyOptimizer(name="adagrad"), PyInitializer(name="random_uniform"), 4)
            for batch in (keys, keys[:30_000], keys[:10]):
                rows.apply_gradients(batch, rows.lookup(batch))
    shutil.rmtree(directory)


def make() -> Contender:
    return Rockbed()
