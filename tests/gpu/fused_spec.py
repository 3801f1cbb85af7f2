"""Pooling and its gradient once more, in numpy float64 and one bag at a time, for the tests to compare with."""

from dataclasses import dataclass

import numpy as np

from rockbed.types import F32, F64, I64

Rows = dict[int, F64]


@dataclass
class Spec:
    """One feature of a batch, as rockbed.bags.Bags, with the value of each weight of a key that has no row."""

    keys: I64
    offsets: I64
    weights: F32 | None = None
    combiner: str | None = "mean"
    max_norm: float | None = None
    default_key: int | None = None
    negative: bool = False
    padding_key: int | None = None
    absent: float = 0.0


def uses(spec: Spec) -> list[list[tuple[int, float]]]:
    """For each bag (for a sequence: each key) the keys that count, with what their rows are multiplied by."""
    weights = np.ones(spec.keys.size) if spec.weights is None else spec.weights.astype(np.float64)

    def kept(i: int) -> bool:
        key = int(spec.keys[i])
        if key == spec.padding_key or (key < 0 and not spec.negative):
            return False
        return spec.combiner in ("sum", None) or weights[i] > 0

    if spec.combiner is None:
        return [[(int(key), 1.0)] if kept(i) else [] for i, key in enumerate(spec.keys)]
    result = []
    for begin, end in zip(spec.offsets[:-1], spec.offsets[1:], strict=True):
        bag = [(int(spec.keys[i]), float(weights[i])) for i in range(begin, end) if kept(i)]
        if not bag and spec.default_key is not None:
            bag = [(spec.default_key, 1.0)]
        own = np.array([weight for _, weight in bag])
        divisor = {"sum": 1.0, "mean": own.sum(), "sqrtn": np.sqrt((own**2).sum())}[spec.combiner]
        result.append([(key, weight / divisor) for key, weight in bag])
    return result


def limited(spec: Spec, row: F64) -> F64:
    norm = np.linalg.norm(row)
    return row if spec.max_norm is None or norm <= spec.max_norm else row * (spec.max_norm / norm)


def pooled(spec: Spec, rows: Rows, dim: int) -> F64:
    """float64[bags or nnz, dim]"""
    out = np.zeros((len(uses(spec)), dim))
    for total, bag in zip(out, uses(spec), strict=True):
        for key, weight in bag:
            total += weight * limited(spec, rows.get(key, np.full(dim, spec.absent)))
    return out


def row_gradients(spec: Spec, rows: Rows, grads: F64) -> Rows:
    """The gradient of each row that is there. grads: float64[bags or nnz, dim]."""
    result: Rows = {}
    for g, bag in zip(grads, uses(spec), strict=True):
        for key, weight in bag:
            if key not in rows:
                continue
            e, own = rows[key], weight * g
            norm = np.linalg.norm(e)
            if spec.max_norm is not None and norm > spec.max_norm:
                own = spec.max_norm / norm * (own - e * (e @ own) / norm**2)
            result[key] = result.get(key, 0.0) + own
    return result


def random_feature(
    rng: np.random.Generator, bags: int, keys: I64, *, longest: int = 6, weighted: bool = False, **settings: object
) -> Spec:
    """Bags of 0..longest keys, some pruned: negative ones, and with weights some of 0 and below."""
    sizes = rng.integers(0, longest + 1, bags)
    sizes[rng.integers(0, bags, bags // 4)] = 0
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    chosen = rng.choice(keys, offsets[-1])
    weights = None
    if weighted:
        weights = rng.choice([0.0, -0.5, 0.25, 1.0, 2.5], offsets[-1]).astype(np.float32)
    return Spec(chosen, offsets, weights, **settings)  # type: ignore[arg-type]
