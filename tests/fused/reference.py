"""What a fused lookup and its gradient are: float64, one bag and one key at a time, no code shared with the store."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import sqrt

import numpy as np

from rockbed import Feature, Ragged
from rockbed.types import F64

RowOf = Callable[[int], F64]
"""The weights of a key, float64[dim]."""

Member = tuple[int | None, int, float]
"""A key that counts in its bag: its position in the feature's keys (None: filled in), the key as int64, its weight."""


def forward(feature: Feature, ragged: Ragged, row_of: RowOf) -> F64:
    """float64[B, dim], or, of a sequence, float64[nnz, dim]."""
    dim = feature.embedding.dim
    if feature.combiner is None:
        rows = np.zeros((ragged.nnz, dim))
        for bag in bags_of(feature, ragged):
            for position, key, _ in bag:
                assert position is not None
                rows[position] = limited(row_of(key), feature.max_norm)
        return rows
    pooled = np.zeros((len(ragged), dim))
    for b, bag in enumerate(bags_of(feature, ragged)):
        for (_, key, _), factor in zip(bag, factors(feature, bag), strict=True):
            pooled[b] += factor * limited(row_of(key), feature.max_norm)
    return pooled


def backward(feature: Feature, ragged: Ragged, row_of: RowOf, gradient: F64) -> list[tuple[int, F64]]:
    """(key, gradient of its row) for each occurrence, in order. gradient: that of what `forward` gives."""
    occurrences = []
    for b, bag in enumerate(bags_of(feature, ragged)):
        for (position, key, _), factor in zip(bag, factors(feature, bag), strict=True):
            arriving = gradient[position if feature.combiner is None else b].astype(np.float64)
            occurrences.append((key, limited_backward(row_of(key), feature.max_norm, factor * arriving)))
    return occurrences


def bags_of(feature: Feature, ragged: Ragged) -> Iterator[list[Member]]:
    """The members of each bag, pruned and filled."""
    padding = feature.embedding.config.padding_key
    for start, end in pairwise(ragged.offsets.tolist()):
        bag: list[Member] = []
        for position in range(start, end):
            key = int(ragged.keys[position])
            weight = 1.0 if ragged.weights is None else float(ragged.weights[position])
            pruned = key < 0 and feature.prune_negative
            pruned |= padding is not None and (key - padding) % 2**64 == 0
            pruned |= weight <= 0 and feature.combiner in ("mean", "sqrtn")
            if not pruned:
                bag.append((position, as_int64(key), weight))
        if not bag and feature.default_key is not None:
            bag.append((None, as_int64(feature.default_key), 1.0))
        yield bag


def factors(feature: Feature, bag: list[Member]) -> list[float]:
    """What the row of each member is multiplied by."""
    weights = [weight for _, _, weight in bag]
    if feature.combiner == "mean":
        return [weight / sum(weights) for weight in weights]
    if feature.combiner == "sqrtn":
        return [weight / sqrt(sum(w * w for w in weights)) for weight in weights]
    return weights


def limited(row: F64, max_norm: float | None) -> F64:
    """The row, scaled down to `max_norm` if it is longer."""
    norm = sqrt(float(row @ row))
    return row if max_norm is None or norm <= max_norm else row * (max_norm / norm)


def limited_backward(row: F64, max_norm: float | None, gradient: F64) -> F64:
    """The gradient of `row` from that of `limited(row)`: the derivative of m e / |e| is m (I - e e' / |e|^2) / |e|."""
    norm = sqrt(float(row @ row))
    if max_norm is None or norm <= max_norm:
        return gradient
    return max_norm / norm * (gradient - row * (float(row @ gradient) / norm**2))


def as_int64(key: int) -> int:
    """The int64 of the same 64 bits."""
    return key if key < 2**63 else key - 2**64
