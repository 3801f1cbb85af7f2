"""Several threads on one storage: every gradient counts once, whatever is evicted meanwhile."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from rockbed.types import I64
from tests.api.helpers import OpenStorage, embedding, ones


def _together(*calls: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("budget", [96 << 10, 1 << 28], ids=["mostly on disk", "in memory"])
def test_sums_are_exact_over_threads_and_groups(open_storage: OpenStorage, budget: int) -> None:
    storage = open_storage(memory_budget=budget, write_back_interval=0.02)
    tables = [embedding(storage, dim=8, group=g) for g in range(3)]
    count = np.zeros((3, 1_000), np.int64)
    batches: list[list[tuple[int, I64]]] = []
    for thread in range(4):
        rng = np.random.default_rng(thread)
        batches.append([(int(rng.integers(3)), rng.integers(0, 1_000, 50)) for _ in range(60)])
        for group, keys in batches[-1]:
            np.add.at(count[group], keys, 1)

    def train(mine: list[tuple[int, I64]]) -> None:
        for group, keys in mine:
            tables[group].lookup(keys)
            tables[group].apply_gradients(keys, ones(keys.size, 8))
            tables[group].lookup(keys[::-1], train=False)

    _together(*(lambda mine=mine: train(mine) for mine in batches))
    for group, table in enumerate(tables):
        found = table.lookup(np.arange(1_000), train=False)
        np.testing.assert_array_equal(found, np.repeat(-0.5 * count[group][:, None], 8, axis=1).astype(np.float32))
    assert storage.check().problems == []


def test_large_batches_that_use_several_cores_give_the_same_bits(open_storage: OpenStorage) -> None:
    keys = np.random.default_rng(1).permutation(40_000)
    grads = np.random.default_rng(2).standard_normal((keys.size, 4)).astype(np.float32)
    whole, parts = embedding(open_storage("whole")), embedding(open_storage("parts"))
    whole.apply_gradients(keys, grads)
    for start in range(0, keys.size, 1_000):
        parts.apply_gradients(keys[start : start + 1_000], grads[start : start + 1_000])
    np.testing.assert_array_equal(whole.lookup(keys), parts.lookup(keys))


def test_maintenance_beside_training_breaks_nothing(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=96 << 10, write_back_interval=0.02)
    rows = embedding(storage, dim=8)
    done = threading.Event()

    def train() -> None:
        for step in range(120):
            rows.apply_gradients(np.arange(step % 40, 900, 40), ones(len(range(step % 40, 900, 40)), 8))
        done.set()

    def care() -> None:
        while not done.is_set():
            storage.flush()
            assert storage.shrink(min_count=1).rows_removed == 0
            assert storage.stats()["rows"] <= 900

    _together(train, care)
    assert (rows.lookup(np.arange(900), train=False) == -1.5).all()
    assert storage.check().problems == []
