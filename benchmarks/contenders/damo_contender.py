"""damo-embedding 1.1.12: rows in RocksDB, the optimizer in its merge operator. It has a virtual environment of its own.

Its calls hold repeated keys badly, so, as its own torch module does, keys are made unique and gradients summed before
each call; here with numpy, which is far faster than that module's loops. Its key 0 is padding; hashed keys avoid it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import damo  # type: ignore[import-not-found]
import numpy as np

from benchmarks.contenders.base import INITIAL_BOUND, LEARNING_RATE, Contender, Settings
from benchmarks.data import F32, I64, Batch


class Damo:
    def open(self, settings: Settings) -> None:
        self._dim = settings.dim
        self._store = damo.PyDamo(str(config_file(settings)))

    def _pull(self, table: int, keys: I64) -> F32:
        # It fills a flat float32 array of exactly this size; anything else is left unfilled without a word.
        rows = np.empty(len(keys) * self._dim, np.float32)
        self._store.pull(table, keys, rows)
        return rows.reshape(len(keys), self._dim)

    def lookup(self, batch: Batch) -> None:
        keys, inverse = np.unique(batch.keys, return_inverse=True)
        self._pull(batch.table, keys)[inverse]

    def apply(self, batch: Batch, grads: F32) -> None:
        keys, inverse = np.unique(batch.keys, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        starts = np.searchsorted(inverse[order], np.arange(len(keys)))
        summed = np.add.reduceat(grads[order], starts, axis=0)
        self._push(batch.table, keys, summed.reshape(-1))

    def _push(self, table: int, keys: I64, grads: F32) -> None:
        self._store.push(0, table, keys, grads)

    def train_step(self, batches: Sequence[Batch], grads: Sequence[F32]) -> None:
        for batch in batches:
            self.lookup(batch)
        for batch, grad in zip(batches, grads, strict=True):
            self.apply(batch, grad)

    def settle(self) -> None:
        """It has no call for it: closing is what flushes and compacts."""

    def facts(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        del self._store  # its destructor is its only way to close


def config_file(settings: Settings, **more: object) -> Path:
    """Write the JSON that it is opened with."""
    table = {
        "dim": settings.dim,
        "initializer": {"name": "random_uniform", "min": -INITIAL_BOUND, "max": INITIAL_BOUND},
        "optimizer": {"name": "adagrad", "gamma": LEARNING_RATE},
    }
    config = {
        "ttl": 0,
        "dir": str(settings.directory / "rows"),
        "embeddings": [{**table, "group": group} for group in range(settings.tables)],
        **more,
    }
    settings.directory.mkdir(parents=True, exist_ok=True)
    path = settings.directory / "damo.json"
    path.write_text(json.dumps(config))
    return path


def make() -> Contender:
    return Damo()
