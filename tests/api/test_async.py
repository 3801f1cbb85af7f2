"""Calls that go on in threads, and rows fetched ahead."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from rockbed import (
    Feature,
    FusedEmbedding,
    GradientNotFinite,
    PyStorage,
    Ragged,
    StorageClosed,
    UnknownName,
    WrongDtype,
    WrongShape,
)
from tests.api.helpers import SMALL, OpenStorage, embedding, engine_of, keys_of, ones, push_in_pieces, sgd
from tests.waiting import until


def test_a_lookup_ahead_gives_what_a_lookup_gives(storage: PyStorage) -> None:
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1, 2), ones(2))
    futures = [rows.lookup_async(keys_of(key)) for key in (1, 2, 3)]
    found = [future.result() for future in futures]
    assert [float(each[0, 0]) for each in found if each is not None] == [-0.5, -0.5, 0.0]
    own = np.empty((1, 4), np.float32)
    assert rows.lookup_async(keys_of(1), own, train=False).result() is None
    assert (own == -0.5).all()


def test_pushes_ahead_are_applied_in_their_order(storage: PyStorage) -> None:
    rows = embedding(storage, optimizer=sgd(1.0), weight_max=0.0)
    values = [float(value) for value in np.random.default_rng(1).integers(-9, 9, 80)]
    weight = 0.0
    for value in values:
        weight = min(weight - value, 0.0)  # clamped after each: another order gives another sum
    futures = [rows.apply_gradients_async(keys_of(1), ones(1, value=value)) for value in values]
    assert all(future.result() for future in futures)
    assert rows.lookup(keys_of(1))[0, 0] == weight


def test_several_embeddings_are_pushed_ahead_as_one_change_under_a_number(storage: PyStorage) -> None:
    one, two = embedding(storage, group=1), embedding(storage, group=2)
    items = [(one, keys_of(1), ones(1)), (two, keys_of(1), ones(1))]
    results = [storage.apply_gradients_async(items, request=("t", 1)) for _ in range(2)]
    assert [each.result() for each in results] == [True, False]
    assert storage.last_request("t") == 1


def test_what_is_wrong_is_raised_at_once_or_by_the_future(storage: PyStorage) -> None:
    rows = embedding(storage)
    with pytest.raises(WrongDtype):
        rows.lookup_async(np.ones(2))  # type: ignore[arg-type]
    with pytest.raises(WrongShape):
        rows.lookup_async(keys_of(1), ones(2))
    with pytest.raises(WrongShape):
        rows.apply_gradients_async(keys_of(1), ones(2))
    failed = rows.apply_gradients_async(keys_of(1), np.full((1, 4), np.nan, np.float32))
    with pytest.raises(GradientNotFinite):
        failed.result()
    assert not rows.lookup(keys_of(1), train=False).any()


def test_closing_waits_for_the_pushes(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, optimizer=sgd(1.0))
    futures = [rows.apply_gradients_async(np.arange(500), ones(500)) for _ in range(20)]
    storage.close()
    assert all(future.result() for future in futures)
    assert (embedding(open_storage(), optimizer=sgd(1.0)).lookup(np.arange(500)) == -20).all()
    for call in (lambda: rows.apply_gradients_async(keys_of(1), ones(1)), lambda: rows.lookup_async(keys_of(1))):
        with pytest.raises(StorageClosed):
            call()
    assert not any(thread.name.startswith("rockbed-lookup") for thread in threading.enumerate())


def test_a_lookup_that_had_not_begun_when_the_storage_was_closed_says_so(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage)
    begun, go = threading.Event(), threading.Event()

    def busy() -> None:
        begun.set()
        go.wait(30)

    futures = [storage.ahead.lookup(busy) for _ in range(4)]
    waiting = rows.lookup_async(keys_of(1))
    begun.wait(30)
    closing = threading.Thread(target=storage.close)
    closing.start()
    until(lambda: storage.ahead._finished)
    go.set()
    closing.join(30)
    with pytest.raises(StorageClosed, match="closed before this lookup had begun"):
        waiting.result(30)
    for each in futures:
        each.result(30)


def test_they_can_be_awaited(storage: PyStorage) -> None:
    rows = embedding(storage)

    async def train() -> Any:
        await asyncio.wrap_future(rows.apply_gradients_async(keys_of(1), ones(1)))
        return await asyncio.wrap_future(rows.lookup_async(keys_of(1)))

    assert asyncio.run(train())[0, 0] == -0.5


def test_the_threads_end_with_the_storage(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage)
    rows.apply_gradients_async(keys_of(1), ones(1)).result()
    rows.lookup_async(keys_of(1)).result()
    names = ("rockbed-push", "rockbed-lookup")
    assert any(thread.name.startswith(names) for thread in threading.enumerate())
    storage.close()
    assert not any(thread.name.startswith(names) for thread in threading.enumerate())


def test_prefetch_brings_cold_rows_into_memory_and_changes_nothing_else(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=SMALL)
    rows = embedding(storage, 32)
    push_in_pieces(rows, np.arange(3_000))
    storage.flush()
    cold = np.array([5, 6, 7, 5, 90_000])
    assert not storage.get_rows(0, cold).in_memory.any()
    before = storage.stats()["groups"][0]
    assert rows.prefetch(cold) == (3, 1)
    assert storage.get_rows(0, cold).in_memory.tolist() == [True, True, True, True, False]
    assert rows.prefetch_async(cold.astype(np.uint64)).result() == (3, 1)
    after = storage.stats()["groups"][0]
    for name in ("rows", "inserts", "lookup_keys", "misses"):
        assert after[name] == before[name], name
    hits = engine_of(storage).groups[0].counters.disk_hits
    rows.lookup(cold[:3])
    assert engine_of(storage).groups[0].counters.disk_hits == hits


def test_rows_of_a_fused_batch_are_fetched_for_each_group_as_its_lookup_will_ask(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=SMALL)
    tables = [embedding(storage, 32, group) for group in (1, 2)]
    for table in tables:
        push_in_pieces(table, np.arange(-1_500, 1_500))
    storage.flush()
    fused = FusedEmbedding(
        [
            Feature("a", tables[0], default_key=9),
            Feature("s", tables[0], None, prune_negative=False),
            Feature("b", tables[1]),
            Feature("c", tables[1]),
        ]
    )
    batch: Any = {
        "a": Ragged.from_lists([[5, -6], [], [7]]),
        "s": Ragged.from_lists([[5, -8], [90_000], []]),
        "b": Ragged(np.array([11, 12, 2**64 - 13], np.uint64), keys_of(0, 1, 1, 3)),
    }

    def in_memory(group: int, *keys: int) -> list[bool]:
        return [bool(each) for each in storage.get_rows(group, keys_of(*keys)).in_memory]

    wanted = {1: (5, 7, 9, -8), 2: (11, 12, -13)}
    assert not any(any(in_memory(group, *keys)) for group, keys in wanted.items())
    before = storage.stats()["rows"]
    assert fused.prefetch(batch) == (7, 1)
    assert all(all(in_memory(group, *keys)) for group, keys in wanted.items())
    assert in_memory(1, -6, 90_000) == [False, False]
    assert fused.prefetch_async(batch).result() == (7, 1)
    assert fused.prefetch({}) == (0, 0)
    assert storage.stats()["rows"] == before
    for call in (fused.prefetch, fused.prefetch_async):
        with pytest.raises(UnknownName, match="there is no feature 'typo'"):
            call({"typo": batch["a"]})
        with pytest.raises(WrongDtype, match="feature 'a': keys must be a numpy array"):
            call({"a": ([1], keys_of(0, 1))})  # type: ignore[dict-item]
