"""Fused batches on the device, made from specifications (fused_spec.py), for the tests of pooling and of gradients."""

from typing import Any

import numpy as np

from rockbed.storage.gpu.fused import Absent, DeviceBags, FusedBatch
from rockbed.storage.gpu.launcher import DeviceArray, Launcher
from rockbed.storage.gpu.table import DeviceTable
from rockbed.types import F32, F64, I64
from tests.gpu.fused_spec import Rows, Spec
from tests.gpu.tables import make_table, records_of


def table_of(launcher: Launcher, dim: int, keys: I64, seed: int = 0, **settings: Any) -> tuple[DeviceTable, Rows]:
    """A table that holds the keys with normal rows, and those rows' weights."""
    table = make_table(launcher, dim, **settings)
    rows = np.random.default_rng([seed, dim]).normal(size=(keys.size, table.width)).astype(np.float32)
    table.load(keys, records_of(keys, rows, dim=dim))
    weights = rows[:, :dim].astype(np.float64)
    return table, dict(zip(keys.tolist(), weights, strict=True))


def batch_of(launcher: Launcher, features: list[tuple[DeviceTable, Spec]]) -> FusedBatch:
    """A fused batch; its features are named "0", "1", ..."""
    settings = ("combiner", "max_norm", "default_key", "negative", "padding_key", "absent")
    bags = []
    for i, (table, spec) in enumerate(features):
        keys, offsets = launcher.to_device(spec.keys), launcher.to_device(spec.offsets)
        weights = None if spec.weights is None else launcher.to_device(spec.weights)
        bags.append(
            DeviceBags(str(i), table, keys, offsets, weights, **{name: getattr(spec, name) for name in settings})
        )
    return FusedBatch(launcher, bags)


def shape_of(features: list[tuple[DeviceTable, Spec]]) -> tuple[int, int]:
    """The shape of the pooled result."""
    width = sum(table.dim for table, spec in features if spec.combiner is not None)
    return max((spec.offsets.size - 1 for _, spec in features), default=0), width


def lookup(
    launcher: Launcher, features: list[tuple[DeviceTable, Spec]], *, pin: bool = False
) -> tuple[list[F32], list[Absent]]:
    """Each feature's result, taken out of what one launch fills, and what was absent."""
    out = launcher.empty(shape_of(features), np.float32)
    sequences = [
        launcher.empty((spec.keys.size, table.dim), np.float32) for table, spec in features if spec.combiner is None
    ]
    absent = batch_of(launcher, features).pool(out, sequences, pin=pin)
    whole, rest, column, results = launcher.to_host(out), iter(sequences), 0, []
    for table, spec in features:
        if spec.combiner is None:
            results.append(launcher.to_host(next(rest)))
        else:
            results.append(whole[:, column : column + table.dim])
            column += table.dim
    return results, absent


def random_grads(
    launcher: Launcher, features: list[tuple[DeviceTable, Spec]], seed: int = 0
) -> tuple[DeviceArray, list[DeviceArray], list[F64]]:
    """Gradients of what `lookup` gives: pooled, for the sequences, and those of each feature as the specification's."""
    rng = np.random.default_rng(seed)
    whole = rng.normal(size=shape_of(features)).astype(np.float32)
    sequences, each, column = [], [], 0
    for table, spec in features:
        if spec.combiner is None:
            sequences.append(rng.normal(size=(spec.keys.size, table.dim)).astype(np.float32))
            each.append(sequences[-1].astype(np.float64))
        else:
            each.append(whole[:, column : column + table.dim].astype(np.float64))
            column += table.dim
    return launcher.to_device(whole), [launcher.to_device(own) for own in sequences], each
