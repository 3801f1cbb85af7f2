"""Lookups and pushes of many features at once. PLAIN VERSION, to be replaced by the kernels: same results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rockbed.bags import Bags, check_bags
from rockbed.requests import Gradients, Request
from rockbed.types import F32, F64, I64

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


@dataclass(slots=True)
class Plan:
    """A batch that was looked up, for the push that follows."""

    batch: Sequence[Bags]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it keeps."""
        return sum(
            b.keys.nbytes + b.offsets.nbytes + (0 if b.weights is None else b.weights.nbytes) for b in self.batch
        )


def lookup(engine: "Engine", batch: Sequence[Bags], pooled: F32, sequences: Sequence[F32], *, train: bool) -> Plan:
    check_bags(batch)
    column, rest = 0, iter(sequences)
    for bags in batch:
        dim = engine.group(bags.group).config.dim
        keys, of, weights, scale = _clean(engine, bags)
        rows = np.empty((keys.size, dim), np.float32)
        engine.lookup(bags.group, keys, rows, train=train)
        e = rows.astype(np.float64) * _limit(rows, bags.max_norm)[:, None] * (weights * scale[of])[:, None]
        if bags.combiner is None:
            out = next(rest)
            out[:] = 0
            np.add.at(out, of, e.astype(np.float32))
        else:
            total: F64 = np.zeros((bags.offsets.size - 1, dim))
            np.add.at(total, of, e)
            pooled[:, column : column + dim] = total
            column += dim
    return Plan(batch)


def apply_gradients(
    engine: "Engine",
    batch: Sequence[Bags] | Plan,
    pooled: F32,
    sequences: Sequence[F32],
    steps: Mapping[int, int],
    request: Request | None,
) -> bool:
    batch = batch.batch if isinstance(batch, Plan) else batch
    check_bags(batch)
    shares: dict[int, list[tuple[I64, F32]]] = {}
    column, rest = 0, iter(sequences)
    for bags in batch:
        dim = engine.group(bags.group).config.dim
        keys, of, weights, scale = _clean(engine, bags)
        if bags.combiner is None:
            given: F32 = next(rest)
        else:
            given = pooled[:, column : column + dim]
            column += dim
        rows = np.empty((keys.size, dim), np.float32)
        engine.lookup(bags.group, keys, rows, train=True)
        grads = given[of].astype(np.float64) * (weights * scale[of])[:, None]
        if bags.max_norm is not None:
            e, s = rows.astype(np.float64), _limit(rows, bags.max_norm)[:, None]
            dot, square = (e * grads).sum(1)[:, None], np.maximum((e * e).sum(1)[:, None], 1e-300)
            grads = np.where(s < 1, s * (grads - e * dot / square), grads)
        shares.setdefault(bags.group, []).append((keys, grads.astype(np.float32)))
    items = [
        Gradients(g, np.concatenate([k for k, _ in own]), np.concatenate([v for _, v in own]), steps.get(g))
        for g, own in shares.items()
    ]
    return engine.apply_gradients(items, request)


def _clean(engine: "Engine", bags: Bags) -> tuple[I64, I64, F64, F64]:
    """Keys after pruning and filling, the bag of each, its weight, the scale of each bag."""
    n = bags.offsets.size - 1
    of: I64 = np.repeat(np.arange(n), np.diff(bags.offsets))
    count = n
    if bags.combiner is None:
        of, count = np.arange(bags.keys.size), bags.keys.size
    weights = np.ones(bags.keys.size) if bags.weights is None else bags.weights.astype(np.float64)
    kept = np.ones(bags.keys.size, np.bool_) if bags.negative else bags.keys >= 0
    if bags.combiner not in (None, "sum"):
        kept &= weights > 0
    padding = engine.group(bags.group).config.padding_key
    if padding is not None:
        kept &= bags.keys != (padding if padding < 2**63 else padding - 2**64)
    keys, of, weights = bags.keys[kept], of[kept], weights[kept]
    if bags.default_key is not None:
        empty = np.setdiff1d(np.arange(n), of)
        keys = np.concatenate([keys, np.full(empty.size, bags.default_key)])
        of, weights = np.concatenate([of, empty]), np.concatenate([weights, np.ones(empty.size)])
        order = np.argsort(of, kind="stable")
        keys, of, weights = keys[order], of[order], weights[order]
    scale = np.ones(count)
    if bags.combiner in ("mean", "sqrtn"):
        by = weights if bags.combiner == "mean" else weights**2
        total = np.bincount(of, by, minlength=count)
        scale = 1 / np.where(total > 0, total if bags.combiner == "mean" else np.sqrt(total), 1)
    return keys, of, weights, scale


def _limit(rows: F32, max_norm: float | None) -> F64:
    norms = np.sqrt((rows.astype(np.float64) ** 2).sum(1))
    if max_norm is None:
        return np.ones(rows.shape[0])
    limited: F64 = np.where(norms > max_norm, max_norm / np.maximum(norms, 1e-300), 1.0)
    return limited
