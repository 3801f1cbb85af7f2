"""Rockbed's tables for benchmarks.fused: a train step in one call each way, and feature by feature."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.fused_worker import LEARNING_RATE
from rockbed import Connection, Feature, FusedEmbedding, PyEmbedding, PyInitializer, PyOptimizer, PyStorage, Ragged
from rockbed.types import F32, I64

MEMORY = 4 << 30  # bytes: every row stays in memory
WARM_UP_S = 3.0


def opened(
    target: str, sizes: dict[str, Any], connection: Connection | None = None
) -> tuple[PyStorage, list[PyEmbedding]]:
    """A storage and its embeddings, one for each feature. connection: to a server, if not the default one."""
    served = target.startswith("grpc")
    storage = PyStorage(target, connection=connection) if served else PyStorage(target, memory_budget=MEMORY)
    rule, first = PyOptimizer(name=sizes["optimizer"], gamma=LEARNING_RATE), PyInitializer(name="uniform")
    return storage, [PyEmbedding(storage, rule, first, sizes["dim"], group) for group in range(sizes["features"])]


def fill(folder: Any, sizes: dict[str, Any], rows: I64) -> None:
    """Make a store that has all rows. rows: int64[features, rows], their keys."""
    storage, embeddings = opened(str(folder), sizes)
    for embedding, keys in zip(embeddings, rows, strict=True):
        embedding.lookup(keys)
    storage.close()


class Tables:
    """Calls for batch i, from 0."""

    def __init__(
        self,
        target: str,
        sizes: dict[str, Any],
        keys: list[list[I64]],
        grads: F32,
        connection: Connection | None = None,
    ) -> None:
        self._sizes, self._keys, self._grads = sizes, keys, grads
        self.storage, self._embeddings = opened(target, sizes, connection)
        features = [Feature(f"f{i}", each, "sum") for i, each in enumerate(self._embeddings)]
        self._fused = FusedEmbedding(features)
        self._starts = np.arange(0, sizes["samples"] * sizes["ids"] + 1, sizes["ids"])
        self._batches = [{f"f{i}": Ragged(own, self._starts) for i, own in enumerate(batch)} for batch in keys]

    def by(self, target: str, connection: Connection) -> "Tables":
        """The same tables by another address and connection."""
        return Tables(target, self._sizes, self._keys, self._grads, connection)

    def warm_up(self) -> None:
        """Read all rows, compile what is missing, and push until the journal writes over files of its own: a young
        store waits for new pages with every push, one that has run for a minute does not."""
        for i in range(len(self._keys)):  # the store was opened a moment ago: its rows are on disk
            self.unfused_lookup(i)
        for call in (self.unfused_together, self.fused_train, self.fused_lookup, self.unfused_lookup):
            call(0)
        for _ in range(2):
            began = time.perf_counter()
            while time.perf_counter() - began < WARM_UP_S:
                self.unfused_together(0)
            self.storage.flush()

    def step(self, how: str) -> Callable[[int], object]:
        """A train step. how: "fused", "unfused", or "together": two calls in all, with the sums here."""
        return {"fused": self.fused_train, "unfused": self.unfused_train, "together": self.unfused_together}[how]

    # --- fused ---

    def fused_lookup(self, i: int) -> F32:
        return self._fused.lookup(self._batches[i], train=False).pooled

    def fused_train(self, i: int) -> None:
        self._fused.apply_gradients(self._fused.lookup(self._batches[i]), self._grads)

    # --- feature by feature ---

    def unfused_lookup(self, i: int, *, train: bool = False) -> F32:
        pairs = zip(self._embeddings, self._keys[i], strict=True)
        return self._pooled([each.lookup(own, train=train) for each, own in pairs])

    def unfused_train(self, i: int) -> None:
        self.unfused_lookup(i, train=True)
        for f, embedding in enumerate(self._embeddings):
            embedding.apply_gradients(self._keys[i][f], self._spread(f))

    def unfused_together(self, i: int) -> None:
        self._pooled(self.storage.lookup(list(zip(self._embeddings, self._keys[i], strict=True))))
        shares = [(each, self._keys[i][f], self._spread(f)) for f, each in enumerate(self._embeddings)]
        self.storage.apply_gradients(shares)

    def _pooled(self, rows: list[F32]) -> F32:
        if self._sizes["ids"] > 1:
            rows = [np.add.reduceat(each, self._starts[:-1]) for each in rows]
        return np.concatenate(rows, axis=1)

    def _spread(self, feature: int) -> F32:
        """The gradient of each key."""
        dim = self._sizes["dim"]
        own = self._grads[:, feature * dim : (feature + 1) * dim]
        return np.repeat(own, self._sizes["ids"], axis=0)
