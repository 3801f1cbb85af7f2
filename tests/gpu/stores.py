"""Stores with a device, for the tests of the engine above it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rockbed import PyEmbedding, PyStorage
from rockbed.types import F32, I64, AnyArray
from tests.api.helpers import embedding, engine_of

Open = Callable[..., PyStorage]
"""(name = "store", rows = None, **options) -> a storage, on the device unless `device=None`, closed after the test."""

ROOMY = 1 << 20
"""Bytes of device memory that hold all rows of a test."""


def stats_of(rows: PyEmbedding) -> dict[str, Any]:
    """What stats() says of the group."""
    found: dict[str, Any] = rows.storage.stats()["groups"][rows.group]
    return found


def table_of(rows: PyEmbedding) -> Any:
    """The group's table on the device."""
    tier = engine_of(rows.storage).groups[rows.group].tier
    assert tier is not None
    with tier.device.queue():
        return tier.table


def contents(rows: PyEmbedding, keys: I64) -> tuple[F32, F32, I64, I64]:
    """Weights, slots, counts and times of the keys' rows."""
    found = rows.storage.get_rows(rows.group, keys)
    return found.weights, found.slots, found.update_num, found.update_time_ms


def assert_equal(found: Iterable[AnyArray]) -> None:
    """Arrays, one of each store, are the same bit for bit."""
    first, *others = found
    for other in others:
        np.testing.assert_array_equal(first, other)


def assert_same_rows(groups: Sequence[PyEmbedding], keys: I64) -> None:
    """Weights, slots and counts are the same in all stores, bit for bit; times are the clock's."""
    for found in zip(*(contents(rows, keys)[:3] for rows in groups), strict=True):
        assert_equal(found)


def small(storage: PyStorage, rows: int = 64, **options: Any) -> PyEmbedding:
    """A group of dim 4 whose share of the device is `rows` rows of SGD: what the storage gives has to be as much."""
    made = embedding(storage, **options)
    assert table_of(made).capacity == rows
    return made
