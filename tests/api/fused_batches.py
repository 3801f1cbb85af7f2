"""Fused batches as a Backend takes them, and the arrays for what they give."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rockbed import PyStorage
from rockbed.bags import Bags
from rockbed.client.backend import Backend
from rockbed.types import F32, AnyArray

DIMS = {1: 4, 2: 6, 3: 5}
"""The dim of each group that `random_batch` uses."""


def bags(name: str, group: int, *keys: Sequence[int], weights: Sequence[float] | None = None, **settings: Any) -> Bags:
    """keys: those of each bag."""
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in keys])]).astype(np.int64)
    flat = np.array([key for each in keys for key in each], np.int64)
    return Bags(name, group, flat, offsets, None if weights is None else np.array(weights, np.float32), **settings)


def random_batch(random: np.random.Generator, samples: int) -> list[Bags]:
    """Features of the groups of DIMS: each combiner, weights, empty bags, pruned keys, two features of one group."""
    batch = []
    for name, group, combiner, options in (
        ("one", 1, "mean", {}),
        ("two", 2, "sum", {"max_norm": 0.5}),
        ("again", 1, "sqrtn", {"default_key": 7, "negative": True}),
        ("sequence", 2, None, {}),
        ("single", 3, "sum", {"max_norm": 1.5}),
    ):
        lengths = np.ones(samples, np.int64) if name == "single" else random.integers(0, 5, samples)
        n = int(lengths.sum())
        weights = None if combiner is None else random.uniform(-1, 2, n).astype(np.float32)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        batch.append(Bags(name, group, random.integers(-3, 40, n), offsets, weights, combiner, **options))
    return batch


def outputs(storage: PyStorage, batch: Sequence[Bags]) -> tuple[F32, list[F32]]:
    """Arrays for what a batch gives, filled with NaN."""
    dims = [storage.groups()[each.group].dim for each in batch]
    width = sum(dim for each, dim in zip(batch, dims, strict=True) if each.combiner is not None)
    shapes = [(each.keys.size, dim) for each, dim in zip(batch, dims, strict=True) if each.combiner is None]
    samples = batch[0].offsets.size - 1 if batch else 0
    return _nan((samples, width)), [_nan(shape) for shape in shapes]


def _nan(shape: tuple[int, int]) -> F32:
    out: AnyArray = np.full(shape, np.nan, np.float32)
    return out


def looked_up(
    storage: PyStorage, batch: Sequence[Bags], *, train: bool = True, keep: bool = False
) -> tuple[F32, list[F32], bytes | None]:
    """pooled, sequences, and the handle."""
    pooled, sequences = outputs(storage, batch)
    handle = _backend(storage).fused_lookup(batch, pooled, sequences, train=train, keep=keep)
    return pooled, sequences, handle


def gradients(storage: PyStorage, batch: Sequence[Bags], value: float = 1.0) -> tuple[F32, list[F32]]:
    """The same gradient for everything that a batch gives."""
    pooled, sequences = outputs(storage, batch)
    for out in (pooled, *sequences):
        out[:] = value
    return pooled, sequences


def _backend(storage: PyStorage) -> Backend:
    return storage.backend
