"""Time to live: what expires, when, on which paths, and what renews it."""

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.api.helpers import (
    SMALL,
    Clock,
    OpenStorage,
    adagrad,
    as_after_kill,
    assert_sound,
    embedding,
    keys_of,
    ones,
    push_in_pieces,
    uniform,
)
from tests.waiting import until


@pytest.mark.parametrize("place", ["memory", "disk", "journal"])
def test_a_row_is_invisible_from_the_very_millisecond_on_wherever_it_lies(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, place: str
) -> None:
    storage = open_storage(ttl=10, clock=clock)
    rows = embedding(storage, miss_value=-7.0)
    rows.apply_gradients(keys_of(1, 2), ones(2))
    if place == "disk":
        storage.close()
        storage = open_storage(ttl=10, clock=clock)
    elif place == "journal":
        storage = open_storage(str(as_after_kill(storage, tmp_path / "killed")), ttl=10, clock=clock)
    if place != "memory":
        rows = embedding(storage, miss_value=-7.0)
    clock.now += 9.999
    np.testing.assert_array_equal(rows.lookup(keys_of(1), train=False), [[-0.5] * 4])
    clock.now += 0.001
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2), train=False), [[-7] * 4] * 2)
    assert storage.dump(tmp_path / "dump") == 0
    report = storage.shrink(dry_run=True)
    assert report.removed[0] == {"expired": 2, "age": 0, "count": 0, "norm": 0}
    assert_sound(storage)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_training_lookup_of_an_expired_row_begins_weights_slots_and_count_anew(
    open_storage: OpenStorage, clock: Clock, place: str
) -> None:
    options: dict[str, Any] = {"optimizer": adagrad(), "initializer": uniform()}
    storage = open_storage(ttl=10, clock=clock)
    rows = embedding(storage, **options)
    first = rows.lookup(keys_of(1))
    for _ in range(5):
        rows.apply_gradients(keys_of(1), ones(1, value=3))
    if place == "disk":
        storage.close()
        storage = open_storage(ttl=10, clock=clock)
        rows = embedding(storage, **options)
    clock.now += 10
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 1)), np.repeat(first, 2, axis=0))
    rows.apply_gradients(keys_of(1), ones(1, value=3))
    # a first Adagrad step has the length of the rate: the old sum of squares is gone
    np.testing.assert_allclose(rows.lookup(keys_of(1)), first - 0.5, rtol=1e-6)
    stats = storage.stats()["groups"][0]
    assert (stats["rows"], stats["expired"]) == (1, 1)
    assert storage.shrink(dry_run=True, min_count=2).removed[0]["count"] == 1  # one update, not six
    assert_sound(storage)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_push_to_an_expired_row_begins_it_anew_also_when_it_is_replayed(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, place: str
) -> None:
    storage = open_storage(ttl=10, clock=clock)
    rows = embedding(storage, optimizer=adagrad(), initializer=uniform())
    first = rows.lookup(keys_of(1))
    rows.apply_gradients(keys_of(1), ones(1, value=100))
    if place == "disk":
        storage.close()
        storage = open_storage(ttl=10, clock=clock)
        rows = embedding(storage, optimizer=adagrad(), initializer=uniform())
    clock.now += 10
    rows.apply_gradients(keys_of(1), ones(1, value=2))
    replayed = open_storage(str(as_after_kill(storage, tmp_path / "killed")), ttl=10, clock=clock)
    for other in (rows, embedding(replayed, optimizer=adagrad(), initializer=uniform())):
        np.testing.assert_allclose(other.lookup(keys_of(1), train=False), first - 0.5, rtol=1e-6)
    assert_sound(storage)
    assert_sound(replayed)


def test_a_push_renews_a_row_and_a_lookup_does_not_by_default(open_storage: OpenStorage, clock: Clock) -> None:
    rows = embedding(open_storage(ttl=10, clock=clock), miss_value=9.0)
    rows.apply_gradients(keys_of(1, 2), ones(2))
    clock.now += 6
    rows.apply_gradients(keys_of(1), ones(1))
    rows.lookup(keys_of(2))
    clock.now += 6
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2), train=False)[:, 0], [-1.0, 9.0])


@pytest.mark.parametrize("budget", [1 << 30, 1 << 16])
def test_with_refresh_lookup_a_training_lookup_renews_too_and_durably(
    open_storage: OpenStorage, clock: Clock, budget: int
) -> None:
    storage = open_storage(ttl=10, clock=clock, memory_budget=budget)
    rows = embedding(storage, refresh="lookup", miss_value=9.0)
    keys = np.arange(3000)
    push_in_pieces(rows, keys)
    clock.now += 6
    rows.lookup(keys[:2000])
    rows.lookup(keys[2000:], train=False)
    clock.now += 6
    np.testing.assert_array_equal(rows.lookup(keys, train=False)[:, 0], np.where(keys < 2000, -0.5, 9.0))
    storage.close()
    rows = embedding(open_storage(ttl=10, clock=clock), refresh="lookup", miss_value=9.0)
    np.testing.assert_array_equal(rows.lookup(keys, train=False)[:, 0], np.where(keys < 2000, -0.5, 9.0))


def test_a_group_may_live_shorter_longer_or_for_ever(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(ttl=10, clock=clock)
    groups = [embedding(storage, group=g, ttl=ttl) for g, ttl in enumerate([None, 5.0, 20.0, 0])]
    for group in groups:
        group.apply_gradients(keys_of(1), ones(1))

    def alive() -> list[bool]:
        return [bool(group.lookup(keys_of(1), train=False).any()) for group in groups]

    clock.now += 4.999
    assert alive() == [True, True, True, True]
    clock.now += 0.001
    assert alive() == [True, False, True, True]
    clock.now += 5
    assert alive() == [False, False, True, True]
    clock.now += 10
    assert alive() == [False, False, False, True]
    clock.now += 1e9
    assert alive() == [False, False, False, True]


def test_a_groups_ttl_may_change_from_one_opening_to_the_next(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(clock=clock)
    embedding(storage, ttl=10).apply_gradients(keys_of(1), ones(1))
    storage.close()
    clock.now += 8
    storage = open_storage(clock=clock)
    rows = embedding(storage, ttl=5)
    assert not rows.lookup(keys_of(1), train=False).any()
    storage.close()
    rows = embedding(open_storage(clock=clock), ttl=100)
    assert rows.lookup(keys_of(1), train=False).any()


def test_rows_made_without_ttl_outlive_a_compaction_under_one_that_they_have_not_reached(
    open_storage: OpenStorage,
) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(keys_of(1), ones(1))
    storage.close()
    storage = open_storage(ttl=86_400 * 365 * 40)
    storage.compact()
    np.testing.assert_array_equal(embedding(storage).lookup(keys_of(1), train=False), [[-0.5] * 4])


def test_a_clock_that_goes_backwards_neither_revives_nor_renews_anything(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path
) -> None:
    storage = open_storage(ttl=10, clock=clock)
    rows = embedding(storage, miss_value=9.0)
    rows.apply_gradients(keys_of(1), ones(1))
    clock.now += 10
    rows.apply_gradients(keys_of(2), ones(1))  # the store has seen this time
    clock.now -= 1000
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2), train=False)[:, 0], [9.0, -0.5])
    rows.apply_gradients(keys_of(3), ones(1))
    killed = as_after_kill(storage, tmp_path / "killed")
    storage.close()
    for name in ("store", str(killed)):
        again = open_storage(name, ttl=10, clock=clock)
        rows = embedding(again, miss_value=9.0)
        np.testing.assert_array_equal(rows.lookup(keys_of(1, 2, 3), train=False)[:, 0], [9.0, -0.5, -0.5])
        assert_sound(again)
        again.close()
    clock.now += 1010
    rows = embedding(open_storage(ttl=10, clock=clock), miss_value=9.0)
    np.testing.assert_array_equal(rows.lookup(keys_of(2, 3), train=False)[:, 0], [9.0, 9.0])


def test_the_sweeper_removes_expired_rows_from_memory_and_disk_and_only_those(
    open_storage: OpenStorage, clock: Clock
) -> None:
    storage = open_storage(ttl=10, clock=clock, memory_budget=SMALL, sweep_rows_s=10**6)
    rows = embedding(storage)
    keys = np.arange(4000)
    push_in_pieces(rows, keys[:2000])
    clock.now += 8
    push_in_pieces(rows, keys[1000:])
    storage.flush()
    clock.now += 2
    until(lambda: storage.stats()["rows"] <= 3000)
    stats = storage.stats()["groups"][0]
    assert (stats["rows"], stats["expired"]) == (3000, 1000)
    expected = np.select([keys < 1000, keys < 2000], [0, -1.0], -0.5)
    np.testing.assert_array_equal(rows.lookup(keys, train=False)[:, 0], expected)
    assert storage.check().rows == {0: 3000}


def test_a_dump_leaves_expired_rows_out(open_storage: OpenStorage, clock: Clock, tmp_path: Path) -> None:
    storage = open_storage(ttl=10, clock=clock)
    rows = embedding(storage, dim=1)
    rows.apply_gradients(keys_of(1), ones(1, 1))
    clock.now += 5
    rows.apply_gradients(keys_of(2), ones(1, 1))
    clock.now += 5
    assert storage.dump(tmp_path / "dump") == 1
    raw = (tmp_path / "dump").read_bytes()
    assert struct.unpack("<iiiqqif", raw) == (1, 0, 1, 1, 2, 0, -0.5)


def test_rows_are_read_by_their_groups_own_ttl_after_the_stores_own_was_cut_and_compaction_ran(
    open_storage: OpenStorage,
) -> None:
    storage = open_storage(ttl=1000)  # the system's clock, as RocksDB's own expiry runs with it only
    embedding(storage, ttl=500).apply_gradients(keys_of(1), ones(1))
    storage.close()
    storage = open_storage(ttl=1)
    rows = embedding(storage, ttl=500)
    time.sleep(2.5)
    storage.compact()
    np.testing.assert_array_equal(rows.lookup(keys_of(1), train=False), [[-0.5] * 4])
