"""Large lookups of rows in memory go on side by side; whatever changes a row has the group's lock alone."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rockbed import PyEmbedding, PyStorage
from rockbed.server import lookups
from rockbed.storage.hot import HotTable
from rockbed.types import F32, I64
from tests.api.helpers import SMALL, Clock, OpenStorage, assert_sound, embedding, engine_of, ones, push_in_pieces

N = lookups._SHARED_KEYS + 500
KEYS = np.arange(N)

Finds = Callable[[Callable[[], object]], list[bool]]
"""Of each time that a call looked for rows in memory: whether it had the lock of group 0 alone."""


@pytest.fixture
def storage(open_storage: OpenStorage, clock: Clock) -> PyStorage:
    return open_storage(clock=clock)


@pytest.fixture
def finds(storage: PyStorage, monkeypatch: pytest.MonkeyPatch) -> Finds:
    find, seen = HotTable.find, list[bool]()

    def noted(self: HotTable, *args: Any) -> tuple[I64, int]:
        lock = engine_of(storage).groups[0].lock
        assert lock._is_claimed != bool(lock._sharing)
        seen.append(lock._is_claimed)
        return find(self, *args)

    def during(call: Callable[[], object]) -> list[bool]:
        seen.clear()
        monkeypatch.setattr(HotTable, "find", noted)
        call()
        monkeypatch.setattr(HotTable, "find", find)
        return list(seen)

    return during


def values(rows: PyEmbedding, keys: I64 = KEYS) -> list[float]:
    """The first weight of each key's row, looked up without training."""
    found: list[float] = rows.lookup(keys, train=False)[:, 0].tolist()
    return found


# --- side by side ---


@pytest.mark.parametrize("train", [True, False])
def test_two_lookups_read_rows_at_the_same_time(
    storage: PyStorage, monkeypatch: pytest.MonkeyPatch, train: bool
) -> None:
    rows, together, gather = embedding(storage), threading.Barrier(2), HotTable.gather
    rows.apply_gradients(KEYS, ones(N))
    rows.lookup(KEYS)

    def met(self: HotTable, found: I64, out: F32) -> None:
        together.wait(20)
        gather(self, found, out)

    monkeypatch.setattr(HotTable, "gather", met)
    found: list[F32] = []
    threads = [threading.Thread(target=lambda: found.append(rows.lookup(KEYS, train=train))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    np.testing.assert_array_equal(found, np.full((2, N, 4), -0.5, np.float32))
    assert storage.stats()["groups"][0]["memory_hits"] == 3 * N  # one was before


@pytest.mark.parametrize("train", [True, False])
def test_no_lookup_sees_half_of_a_push(open_storage: OpenStorage, train: bool) -> None:
    storage = open_storage(still=False, write_back_interval=0.02)
    rows, done, torn = embedding(storage, dim=16), threading.Event(), list[F32]()
    keys, pushes = np.arange(4 * N), 400
    rows.apply_gradients(keys, ones(keys.size, 16))

    def look() -> None:
        before = 0.0
        while not done.is_set():
            found = rows.lookup(keys, train=train)
            if found.min() != found.max() or found[0, 0] > before:
                torn.append(found)
            before = found[0, 0]

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(pushes):
        rows.apply_gradients(keys, ones(keys.size, 16))
    done.set()
    for thread in threads:
        thread.join(30)
    assert not torn
    assert values(rows, keys) == [-0.5 * (pushes + 1)] * keys.size
    assert_sound(storage)


# --- alone where something changes ---


def test_rows_in_memory_are_found_with_the_lock_shared(storage: PyStorage, finds: Finds) -> None:
    rows = embedding(storage)
    assert finds(lambda: rows.lookup(KEYS)) == [False, True]  # it was to change nothing, and then there was nothing
    assert finds(lambda: rows.lookup(KEYS + N)) == [True]  # the vocabulary grows: no use in looking first
    assert finds(lambda: rows.lookup(KEYS)) == [True]
    assert finds(lambda: rows.lookup(KEYS)) == [False]
    assert finds(lambda: rows.lookup(KEYS + N, train=False)) == [False]
    assert finds(lambda: rows.lookup(KEYS[:1_000])) == [True]  # few: not worth it


def test_rows_of_groups_that_lookups_refresh_are_found_alone(storage: PyStorage, finds: Finds, clock: Clock) -> None:
    rows = embedding(storage, ttl=10.0, refresh="lookup")
    rows.apply_gradients(KEYS, ones(N))
    clock.now += 6
    assert finds(lambda: rows.lookup(KEYS, train=False)) == [False]
    assert finds(lambda: rows.lookup(KEYS)) == [True]
    clock.now += 6
    assert values(rows) == [-0.5] * N
    clock.now += 6
    assert values(rows) == [0.0] * N


def test_expired_rows_begin_anew_alone_and_are_hidden_shared(storage: PyStorage, finds: Finds, clock: Clock) -> None:
    rows = embedding(storage, ttl=10.0)
    rows.apply_gradients(KEYS[::2], ones(N // 2))
    clock.now += 6
    rows.apply_gradients(KEYS[1::2], ones(N // 2))
    rows.lookup(KEYS)
    assert finds(lambda: rows.lookup(KEYS)) == [False]
    clock.now += 6
    seen: list[float] = []
    assert finds(lambda: seen.extend(values(rows)))[0] is False
    assert seen == [0.0, -0.5] * (N // 2)
    before = storage.stats()["groups"][0]
    assert finds(lambda: rows.lookup(KEYS)) == [False, True]
    after = storage.stats()["groups"][0]
    assert after["expired"] - before["expired"] == N // 2
    assert after["lookup_keys"] - before["lookup_keys"] == N
    rows.apply_gradients(KEYS, ones(N))
    assert values(rows) == [-0.5, -1.0] * (N // 2)
    assert_sound(storage)


def test_rows_on_disk_come_while_those_in_memory_are_read_with_the_lock_shared(
    open_storage: OpenStorage, clock: Clock
) -> None:
    storage = open_storage(clock=clock, memory_budget=SMALL)
    rows = embedding(storage, padding_key=7)
    push_in_pieces(rows, KEYS)
    storage.flush()
    expected = np.full(2 * N, -0.5)
    expected[N:] = 0
    expected[7] = 0
    for train in (False, True):
        before = storage.stats()["groups"][0]
        np.testing.assert_array_equal(rows.lookup(np.arange(2 * N), train=train)[:, 3], expected)
        after = storage.stats()["groups"][0]
        assert after["lookup_keys"] - before["lookup_keys"] == 2 * N
        hits = after["memory_hits"] - before["memory_hits"]
        assert hits + after["disk_hits"] - before["disk_hits"] == N - 1
        assert 0 < hits < N - 1
    assert_sound(storage)
