"""Fused lookups and pushes at the Backend, over every transport."""

import numpy as np
import pytest

from rockbed import PyStorage
from rockbed.requests import Request
from rockbed.types import F32
from tests.api.fused_batches import DIMS, looked_up, random_batch
from tests.api.helpers import Served, adagrad, embedding, uniform


@pytest.fixture
def tables(storage: PyStorage) -> PyStorage:
    for group, dim in DIMS.items():
        embedding(storage, dim, group, optimizer=adagrad(), initializer=uniform())
    return storage


def _all(found: tuple[F32, list[F32], bytes | None]) -> list[F32]:
    return [found[0], *found[1]]


def test_both_transports_look_up_and_push_the_same(tables: PyStorage) -> None:
    random = np.random.default_rng(4)
    own = tables.inner if isinstance(tables, Served) else tables
    for step in range(1, 6):
        batch = random_batch(random, 30)
        found = _all(looked_up(tables, batch))
        for got, wanted in zip(found, _all(looked_up(own, batch)), strict=True):
            np.testing.assert_array_equal(got, wanted)
        pooled, *sequences = [random.normal(size=out.shape).astype(np.float32) for out in found]
        request = Request("trainer", step)
        assert tables.backend.fused_apply_gradients(batch, None, pooled, sequences, {}, request)
        assert not tables.backend.fused_apply_gradients(batch, None, pooled, sequences, {}, request)
    assert sum(group["updates"] for group in tables.stats()["groups"].values()) > 0
