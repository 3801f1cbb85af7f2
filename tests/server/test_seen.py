"""A push to the keys of a lookup does not search for their rows again, unless one may be somewhere else by now."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rockbed import PyStorage
from rockbed.server import seen
from rockbed.storage.hot import HotTable
from rockbed.types import I64
from tests.api.helpers import SMALL, Clock, OpenStorage, assert_sound, embedding, engine_of, ones, push_in_pieces

N = seen._KEYS_LEAST
KEYS = np.arange(N)[::-1].copy() * 7

Searches = Callable[[Callable[[], object]], bool]
"""Whether a call searches for rows."""


@pytest.fixture
def storage(open_storage: OpenStorage, clock: Clock) -> PyStorage:
    return open_storage(clock=clock)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Searches:
    find, found = HotTable.find, list[I64]()

    def noted(self: HotTable, keys: I64, *touch: Any) -> tuple[I64, int]:
        found.append(keys)
        return find(self, keys, *touch)

    def during(call: Callable[[], object]) -> bool:
        found.clear()
        monkeypatch.setattr(HotTable, "find", noted)
        try:
            call()
        finally:
            monkeypatch.setattr(HotTable, "find", find)
        return bool(found)

    return during


# --- what a push finds without a search ---


@pytest.mark.parametrize("known", [True, False], ids=["known keys", "new keys"])
def test_a_push_to_the_keys_of_a_lookup_does_not_search(storage: PyStorage, searches: Searches, known: bool) -> None:
    rows = embedding(storage)
    if known:
        rows.apply_gradients(KEYS, ones(N))
    before = rows.lookup(KEYS)
    assert not searches(lambda: rows.apply_gradients(KEYS.copy(), ones(N)))
    np.testing.assert_array_equal(rows.lookup(KEYS, train=False), before - 0.5)
    assert_sound(storage)


def test_lookups_of_several_groups_at_once_serve_their_push(storage: PyStorage, searches: Searches) -> None:
    tables = [embedding(storage, group=group) for group in range(3)]
    for rows in tables:
        rows.apply_gradients(KEYS, ones(N))
    storage.lookup([(rows, KEYS) for rows in tables])
    push = [(rows, KEYS.copy(), ones(N)) for rows in tables]
    assert not searches(lambda: storage.apply_gradients(push))
    assert searches(lambda: storage.apply_gradients(push))
    assert all((rows.lookup(KEYS, train=False) == -1.5).all() for rows in tables)


def test_repeated_keys_are_summed(storage: PyStorage, searches: Searches) -> None:
    rows, keys = embedding(storage), np.concatenate([KEYS, KEYS[:9], KEYS[:3]])
    rows.lookup(keys)
    assert not searches(lambda: rows.apply_gradients(keys, ones(keys.size)))
    wanted = [-1.5] * 3 + [-1.0] * 6 + [-0.5] * (N - 9)
    assert rows.lookup(KEYS, train=False)[:, 0].tolist() == wanted


def test_each_of_several_lookups_serves_one_push(storage: PyStorage, searches: Searches) -> None:
    rows = embedding(storage)
    batches = [KEYS + i for i in range(seen._LOOKUPS)]
    for batch in batches:
        rows.lookup(batch)
    for batch in batches:
        assert not searches(lambda batch=batch: rows.apply_gradients(batch, ones(N)))  # type: ignore[misc]
    assert searches(lambda: rows.apply_gradients(batches[0], ones(N)))


def test_only_the_last_lookups_are_remembered(storage: PyStorage, searches: Searches) -> None:
    rows = embedding(storage)
    for i in range(seen._LOOKUPS + 1):
        rows.lookup(KEYS + i)
    assert searches(lambda: rows.apply_gradients(KEYS, ones(N)))
    assert not searches(lambda: rows.apply_gradients(KEYS + 1, ones(N)))


def test_groups_do_not_mix_up_their_lookups(storage: PyStorage, searches: Searches) -> None:
    one, other = embedding(storage, group=1), embedding(storage, group=2)
    one.lookup(KEYS)
    assert searches(lambda: other.apply_gradients(KEYS, ones(N)))
    assert not searches(lambda: one.apply_gradients(KEYS, ones(N, value=2)))
    assert (one.lookup(KEYS, train=False) == -1).all()
    assert (other.lookup(KEYS, train=False) == -0.5).all()


# --- what has to be searched for ---


@pytest.mark.parametrize("change", [0, N // 2, N - 1])
def test_keys_that_differ_in_one_place(storage: PyStorage, searches: Searches, change: int) -> None:
    rows, keys = embedding(storage), KEYS.copy()
    rows.lookup(keys)
    keys[change] += 1  # in the array of the lookup itself
    assert searches(lambda: rows.apply_gradients(keys, ones(N)))
    wanted = np.full(N, -0.5)
    wanted[change] = 0
    np.testing.assert_array_equal(rows.lookup(KEYS, train=False)[:, 0], wanted)
    assert (rows.lookup(keys[change : change + 1], train=False) == -0.5).all()


def test_fewer_of_the_keys(storage: PyStorage, searches: Searches) -> None:
    rows = embedding(storage)
    rows.lookup(KEYS)
    assert searches(lambda: rows.apply_gradients(KEYS[:-1], ones(N - 1)))


@pytest.mark.parametrize(
    "what",
    [
        lambda rows: rows.lookup(KEYS, train=False),
        lambda rows: rows.lookup(KEYS[1:]),
        lambda rows: rows.lookup(np.arange(seen._KEYS_MOST + 1)),
    ],
    ids=["to serve", "few", "very many"],
)
def test_lookups_that_are_not_remembered(storage: PyStorage, searches: Searches, what: Any) -> None:
    rows = embedding(storage)
    rows.apply_gradients(KEYS, ones(N))
    what(rows)
    assert not engine_of(storage).groups[0].latest_lookups._lookups
    assert searches(lambda: rows.apply_gradients(KEYS, ones(N)))


def test_a_lookup_that_gave_no_row_is_not_remembered(storage: PyStorage, searches: Searches) -> None:
    rows = embedding(storage, admission={"name": "min_count", "count": 2})
    rows.lookup(KEYS)
    assert not engine_of(storage).groups[0].latest_lookups._lookups
    rows.apply_gradients(KEYS, ones(N))  # not admitted
    rows.lookup(KEYS)
    rows.apply_gradients(KEYS, ones(N))
    assert (rows.lookup(KEYS, train=False) == -0.5).all()


# --- rows that are not there any more ---


def removed(storage: PyStorage, clock: Clock) -> float:
    storage.shrink(min_count=100)
    return 0.0


def expired(storage: PyStorage, clock: Clock) -> float:
    clock.now += 100
    return 0.0


def swept(storage: PyStorage, clock: Clock) -> float:
    clock.now += 100
    storage.shrink(min_count=0)
    return 0.0


def dropped(storage: PyStorage, clock: Clock) -> float:
    storage.drop_group(0)
    embedding(storage, ttl=50.0)
    return 0.0


def put(storage: PyStorage, clock: Clock) -> float:
    storage.put_rows(0, KEYS, np.full((N, 4), 3, np.float32))
    return 3.0


@pytest.mark.parametrize("change", [removed, expired, swept, dropped, put])
def test_what_happened_between_lookup_and_push(storage: PyStorage, clock: Clock, change: Any) -> None:
    rows = embedding(storage, ttl=50.0)
    rows.apply_gradients(KEYS, ones(N))
    rows.lookup(KEYS)
    now = change(storage, clock)
    if change is dropped:
        rows = embedding(storage, ttl=50.0)
    rows.apply_gradients(KEYS, ones(N))
    np.testing.assert_array_equal(rows.lookup(KEYS, train=False), np.full((N, 4), now - 0.5, np.float32))
    assert_sound(storage)


def test_rows_that_left_memory(open_storage: OpenStorage, searches: Searches) -> None:
    storage = open_storage(memory_budget=SMALL)
    rows, many = embedding(storage), np.arange(10_000, 14_000)
    rows.apply_gradients(KEYS, ones(N))
    rows.lookup(KEYS)
    push_in_pieces(rows, many)
    storage.flush()
    push_in_pieces(rows, many)
    assert engine_of(storage).groups[0].table.find(KEYS, 0)[1] > 0, (
        "all rows are still in memory: the test shows nothing"
    )
    rows.apply_gradients(KEYS, ones(N))
    assert (rows.lookup(KEYS, train=False) == -1).all()
    assert (rows.lookup(many, train=False) == -1).all()
    assert_sound(storage)
