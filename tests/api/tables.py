"""Rows as plain values, for tests that move them from one store to another."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from rockbed import PyStorage
from rockbed.server.scanning import scan
from tests.api.helpers import Clock, adagrad, embedding, engine_of, keys_of, ones, uniform

FORMATS = ("npz", "parquet", "safetensors")
DAY = 86_400


def stored(storage: PyStorage, group: int) -> dict[int, tuple[bytes, int, int]]:
    """Every row of a group, expired or not: key -> (bits of weights and slots, count, time)."""
    engine = engine_of(storage)
    return {
        int(key): (data.tobytes(), int(count), int(time))
        for rows in scan(engine, engine.group(group))
        for key, data, count, time in zip(rows.keys, rows.data, rows.update_num, rows.update_time, strict=True)
    }


def fill(storage: PyStorage, clock: Clock) -> None:
    """Group 1, dim 2, SGD: -6, 5 (ten days old, one update), 7 (two). Group 2, dim 3, Adagrad: 300 rows, one of them
    never pushed."""
    one = embedding(storage, 2, 1)
    two = embedding(storage, 3, 2, optimizer=adagrad(), initializer=uniform())
    one.apply_gradients(keys_of(5, -6), ones(2, 2))
    clock.now += 10 * DAY
    for _ in range(2):
        one.apply_gradients(keys_of(7), ones(1, 2))
    keys = np.arange(1, 300)
    two.apply_gradients(keys, ones(299, 3))
    clock.now += 60
    two.apply_gradients(keys[::2], ones(150, 3, 0.25))
    two.lookup(keys_of(2**62))


def manifest_of(path: Path) -> Any:
    """manifest.json."""
    return json.loads((path / "manifest.json").read_text())


def write_manifest(path: Path, manifest: Any) -> None:
    """Replace manifest.json."""
    (path / "manifest.json").write_text(json.dumps(manifest))
