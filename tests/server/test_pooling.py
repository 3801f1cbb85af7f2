"""The features of a batch are looked up in one go where that changes no row, in pieces of any size, with the locks of
all their groups shared; what has to be changed, or is not in memory, takes its own way."""

import threading
from typing import Any

import numpy as np
import pytest

from rockbed import Feature, FusedEmbedding, PyEmbedding, PyStorage, Ragged, parallel
from rockbed.server import pooling
from rockbed.storage import batch_kernels
from rockbed.types import F32, I64
from tests.api.helpers import SMALL, Clock, OpenStorage, assert_sound, embedding, engine_of, ones, push_in_pieces
from tests.fused.cases import assert_as_specified, every_feature, random_batch, two_tables

KEYS = np.arange(1_000)
Call = tuple[int, bool]
"""Of a call of the kernel: how many pieces it was for, and whether the lock of group 0 was shared."""


@pytest.fixture
def storage(open_storage: OpenStorage, clock: Clock) -> PyStorage:
    return open_storage(clock=clock)


@pytest.fixture
def calls(storage: PyStorage, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    kernel, made = batch_kernels.find_and_pool, list[Call]()

    def noted(pieces: Any, start: int, end: int, *rest: Any) -> None:
        lock = engine_of(storage).groups[0].lock
        made.append((end - start, bool(lock._sharing) and not lock._is_claimed))
        kernel(pieces, start, end, *rest)

    monkeypatch.setattr(batch_kernels, "find_and_pool", noted)
    return made


def sums(table: PyEmbedding, bags: dict[str, I64], *, train: bool = True) -> F32:
    """The sums of bags of one key."""
    fused = FusedEmbedding([Feature(name, table, "sum") for name in bags])
    batch = {name: Ragged(keys, np.arange(keys.size + 1)) for name, keys in bags.items()}
    return fused.lookup(batch, train=train).pooled


def counters(storage: PyStorage, group: int = 0) -> tuple[int, int]:
    stats = storage.stats()["groups"][group]
    return stats["lookup_keys"], stats["memory_hits"]


# --- in one go ---


def test_features_whose_rows_are_in_memory_are_one_call_with_the_locks_shared(
    storage: PyStorage, calls: list[Call]
) -> None:
    first, second = embedding(storage), embedding(storage, group=1)
    for table in (first, second):
        table.apply_gradients(KEYS, ones(KEYS.size))
    features = [Feature("a", first, "sum"), Feature("b", second, "mean"), Feature("c", first, None)]
    batch = {name: Ragged(KEYS, np.arange(KEYS.size + 1)) for name in "abc"}
    for train in (False, True):
        out = FusedEmbedding(features).lookup(batch, train=train)
        assert (out.pooled == -0.5).all()
        assert (out["c"] == -0.5).all()
    assert calls == [(3, True)] * 2
    assert counters(storage) == (4_000, 4_000)
    assert counters(storage, 1) == (2_000, 2_000)


def test_two_lookups_combine_rows_at_the_same_time(storage: PyStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, together, kernel = embedding(storage), threading.Barrier(2), batch_kernels.find_and_pool
    rows.apply_gradients(KEYS, ones(KEYS.size))

    def met(*args: Any) -> None:
        together.wait(20)
        kernel(*args)

    monkeypatch.setattr(batch_kernels, "find_and_pool", met)
    found: list[F32] = []
    threads = [threading.Thread(target=lambda: found.append(sums(rows, {"f": KEYS}))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    np.testing.assert_array_equal(found, np.full((2, KEYS.size, 4), -0.5, np.float32))


@pytest.mark.parametrize("keys", [1, 7, 1 << 14])
def test_a_feature_may_be_cut_into_pieces_of_any_size_for_several_threads(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, keys: int
) -> None:
    monkeypatch.setattr(pooling, "GRAIN", keys)
    monkeypatch.setattr(parallel, "GRAIN", 16)
    monkeypatch.setattr(parallel, "THREADS", 3)
    monkeypatch.setattr(parallel, "_CORES", 3)
    monkeypatch.setattr(parallel, "_pool", None)
    monkeypatch.setattr(parallel, "_pool_process", 0)  # with three threads
    features = every_feature(two_tables(open_storage()))
    fused, random = FusedEmbedding(features), np.random.default_rng(7)
    for size in (0, 1, 60):
        batch = random_batch(random, features, size)
        for train in (True, False):
            assert_as_specified(features, batch, fused.lookup(batch, train=train))


# --- each in its own way ---


def test_features_with_new_keys_get_them_beside_others_that_only_read(storage: PyStorage, calls: list[Call]) -> None:
    rows, growing = embedding(storage), embedding(storage, group=1)
    rows.apply_gradients(KEYS, ones(KEYS.size))
    batch = {name: Ragged(KEYS, np.arange(KEYS.size + 1)) for name in "ab"}
    fused = FusedEmbedding([Feature("a", rows, "sum"), Feature("b", growing, "sum")])
    out = fused.lookup(batch)
    assert (out["a"] == -0.5).all()
    assert (out["b"] == 0).all()
    assert calls == [(2, True)]
    assert counters(storage, 1) == (1_000, 0)  # each key counts once, though it was looked for twice
    assert storage.stats()["groups"][1]["rows"] == 1_000
    fused.lookup(batch)
    assert calls == [(2, True), (1, True)]  # a group whose vocabulary grows is not asked for first
    fused.lookup(batch)
    assert calls[2:] == [(2, True)]
    assert_sound(storage)


def test_lookups_that_refresh_rows_have_the_lock_alone(storage: PyStorage, calls: list[Call], clock: Clock) -> None:
    rows = embedding(storage, ttl=10.0, refresh="lookup")
    rows.apply_gradients(KEYS, ones(KEYS.size))
    clock.now += 6
    assert (sums(rows, {"f": KEYS}) == -0.5).all()
    assert not calls
    clock.now += 6
    assert (sums(rows, {"f": KEYS}, train=False) == -0.5).all()
    assert calls == [(1, True)]


def test_expired_rows_are_hidden_when_served_and_begin_anew_in_training(
    storage: PyStorage, calls: list[Call], clock: Clock
) -> None:
    rows = embedding(storage, ttl=10.0, miss_value=9.0)
    rows.apply_gradients(KEYS[::2], ones(KEYS.size // 2))
    clock.now += 6
    rows.apply_gradients(KEYS[1::2], ones(KEYS.size // 2))
    clock.now += 6
    served = np.where(KEYS % 2, -0.5, 9.0)
    before = counters(storage)
    np.testing.assert_array_equal(sums(rows, {"f": KEYS, "g": KEYS[::-1]}, train=False)[:, 0], served)
    assert np.subtract(counters(storage), before).tolist() == [2_000, 1_000]
    np.testing.assert_array_equal(sums(rows, {"f": KEYS})[:, 0], np.where(KEYS % 2, -0.5, 0.0))
    assert calls == [(2, True), (1, True)]
    assert storage.stats()["groups"][0]["expired"] == 500
    assert_sound(storage)


def test_rows_on_disk_come_beside_those_in_memory(open_storage: OpenStorage) -> None:
    storage, many = open_storage(memory_budget=SMALL), np.arange(8_000)
    large, small = embedding(storage), embedding(storage, group=1)
    push_in_pieces(large, many)
    small.apply_gradients(KEYS[:50], ones(50))
    storage.flush()
    fused = FusedEmbedding([Feature("a", large, "sum"), Feature("b", small, "sum")])
    for train in (False, True):
        before = storage.stats()["groups"][0]
        keys = np.concatenate([many, many + many.size])
        batch = {"a": Ragged(keys, np.arange(0, keys.size + 1, 320)), "b": Ragged(KEYS[:50], np.arange(51))}
        out = fused.lookup(batch, train=train)
        np.testing.assert_array_equal(out["a"][:, 1], np.repeat([-160.0, 0.0], 25))
        assert (out["b"] == -0.5).all()
        after = storage.stats()["groups"][0]
        grown = {name: after[name] - before[name] for name in ("lookup_keys", "memory_hits", "disk_hits")}
        assert grown["lookup_keys"] == 16_000
        assert 0 < grown["memory_hits"] < 8_000
    assert_sound(storage)
