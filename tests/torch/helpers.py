"""What tests of the torch modules build, count and compare."""

from typing import Any

import numpy as np
import torch

from rockbed import PyEmbedding, PyStorage
from rockbed.client.backend import Backend
from rockbed.types import F32
from tests.api.helpers import embedding, keys_of, sgd

PUSHES = ("apply_gradients", "fused_apply_gradients")


class Counting:
    """A backend whose pushes are counted."""

    def __init__(self, storage: PyStorage) -> None:
        self.inner: Backend = storage.backend
        self.calls: list[str] = []
        storage.backend = self

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self.inner, name)

    @property
    def pushes(self) -> int:
        return sum(self.calls.count(name) for name in PUSHES)


def tensor(*keys: int) -> Any:
    return torch.tensor(keys, dtype=torch.int64)


def rows(table: PyEmbedding, *keys: int) -> F32:
    """The rows as they are, zeros for keys that have none."""
    return table.lookup(keys_of(*keys), train=False)


def plain(storage: PyStorage, group: int = 1, dim: int = 2, **options: Any) -> PyEmbedding:
    """SGD at a rate of 1 on rows that begin as zeros: a row is minus the sum of its gradients."""
    return embedding(storage, dim, group, optimizer=sgd(1.0), **options)


def twin(table: PyEmbedding, keys: int, **options: Any) -> Any:
    """A torch.nn.Embedding with the rows that keys 0..keys-1 begin with."""
    weights = torch.from_numpy(table.lookup(np.arange(keys)))
    return torch.nn.Embedding.from_pretrained(weights.clone(), freeze=False, **options)
