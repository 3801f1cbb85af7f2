"""The sweeper: expired rows go, from memory and from disk, at the rate allowed; no other row does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import PyStorage
from rockbed.server import sweeper as module
from rockbed.server.engine import Engine
from rockbed.server.group import Group
from rockbed.server.sweeper import Sweeper, drop_expired
from rockbed.storage.record import decode_key
from rockbed.types import I64
from tests.api.helpers import (
    SMALL,
    Clock,
    OpenStorage,
    as_after_kill,
    assert_sound,
    embedding,
    engine_of,
    ones,
    push_in_pieces,
    uniform,
)

ENOUGH = 100
"""Turns in which any sweeper here has gone round."""


def on_disk(storage: PyStorage, group: int = 0) -> set[int]:
    """The keys that have a record in rows/."""
    return {decode_key(key)[1] for keys, _ in engine_of(storage).files.scan(group) for key in keys}


def in_memory(storage: PyStorage, group: int = 0) -> set[int]:
    table = engine_of(storage).groups[group].table
    return set(table.header[table.used_rows(), 0].tolist())


def sweep_all(storage: PyStorage) -> int:
    sweeper = Sweeper(engine_of(storage))
    return sum(sweeper.turn(1.0) for _ in range(ENOUGH))


@pytest.mark.parametrize("budget", [SMALL, 1 << 26])
def test_expired_rows_leave_memory_and_disk_and_the_others_stay_as_they_are(
    open_storage: OpenStorage, clock: Clock, budget: int
) -> None:
    storage = open_storage(ttl=100, memory_budget=budget, sweep_rows_s=1_000, clock=clock)
    rows = embedding(storage, initializer=uniform())
    keys = np.arange(-3_000, 3_000)
    kept = keys[keys % 3 == 0]
    push_in_pieces(rows, keys)
    storage.flush()
    clock.now += 50
    push_in_pieces(rows, kept)
    clock.now += 50
    before = rows.lookup(keys, train=False)
    assert sweep_all(storage) == keys.size - kept.size
    assert on_disk(storage) <= set(kept.tolist())
    assert in_memory(storage) <= set(kept.tolist())
    stats = storage.stats()["groups"][0]
    assert (stats["rows"], stats["expired"]) == (kept.size, keys.size - kept.size)
    np.testing.assert_array_equal(rows.lookup(keys, train=False), before)
    assert before[keys % 3 == 0].any(axis=1).all()
    assert_sound(storage)
    assert storage.check().rows == {0: kept.size}
    assert on_disk(storage) == set(kept.tolist())


def test_a_sweep_takes_several_turns_and_keeps_to_its_rate(open_storage: OpenStorage, clock: Clock) -> None:
    rate, n = 2_000, 20_000
    storage = open_storage(ttl=100, memory_budget=SMALL, sweep_rows_s=rate, clock=clock)
    embedding(storage).lookup(np.arange(n))
    clock.now += 100
    sweeper = Sweeper(engine_of(storage))
    removed = turns = 0
    while removed < n:
        removed += sweeper.turn(0.5)
        turns += 1
        # rows are looked at by the thousand, so a turn may go ahead of its rate and the next ones wait for it
        assert removed <= turns * rate * 0.5 + 4_096
        assert turns < ENOUGH
    assert n / (rate * 0.5) - 5 <= turns <= n / (rate * 0.5) + 10
    assert storage.stats()["rows"] == 0


def test_time_without_a_turn_is_made_up_for_one_second_at_the_most(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(ttl=100, sweep_rows_s=5_000, clock=clock)
    embedding(storage).lookup(np.arange(30_000))
    clock.now += 100
    assert 0 < Sweeper(engine_of(storage)).turn(3_600.0) <= 5_000 + 4_096


def test_a_rate_of_nothing_sweeps_nothing(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(ttl=100, sweep_rows_s=0, clock=clock)
    embedding(storage).lookup(np.arange(10))
    clock.now += 1_000
    assert sweep_all(storage) == 0
    assert in_memory(storage) == set(range(10))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_row_that_is_pushed_between_the_look_and_the_removal_stays(
    open_storage: OpenStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    storage = open_storage(ttl=100, memory_budget=SMALL if where == "disk" else 1 << 26, sweep_rows_s=1 << 20,
                           clock=clock)  # fmt: skip
    rows = embedding(storage)
    keys = np.arange(4_000)
    push_in_pieces(rows, keys)
    storage.flush()
    clock.now += 100
    refreshed = np.array([7, 1_000, 3_999])
    waiting = set(refreshed.tolist())
    original = module._drop_expired

    def late(engine: Engine, group: Group, some: I64) -> int:
        mine = np.array(sorted(waiting & set(some.tolist())), np.int64)
        waiting.difference_update(mine.tolist())
        rows.apply_gradients(mine, ones(mine.size))
        return original(engine, group, some)

    monkeypatch.setattr(module, "_drop_expired", late)
    assert sweep_all(storage) == 4_000 - refreshed.size
    got = rows.lookup(keys, train=False)[:, 0]
    # their life began anew with that push: zeros, then one step
    np.testing.assert_array_equal(got, np.where(np.isin(keys, refreshed), -0.5, 0))
    storage.flush()
    assert on_disk(storage) == set(refreshed.tolist())
    assert_sound(storage)


def test_a_lookup_that_read_the_row_before_its_removal_does_not_bring_it_back(
    open_storage: OpenStorage, clock: Clock
) -> None:
    storage = open_storage(ttl=100, memory_budget=SMALL, clock=clock)
    rows = embedding(storage)
    keys = np.arange(3_000)
    push_in_pieces(rows, keys)
    storage.flush()
    group = engine_of(storage).groups[0]
    gone = keys[group.table.find(keys, 0)[0] < 0][:10]
    left = group.table.left
    fetched = group.fetch(gone)
    assert fetched.found.size == 10
    clock.now += 100
    assert drop_expired(engine_of(storage), group, gone) == 10
    assert group.fetched_now(gone, fetched, left).found.size == 0


def test_each_group_is_swept_by_its_own_ttl(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(ttl=100, sweep_rows_s=10_000, clock=clock)
    ttls: dict[int, Any] = {1: None, 2: 0, 3: 50, 4: 1_000}
    for number, ttl in ttls.items():
        embedding(storage, group=number, ttl=ttl).lookup(np.arange(5_000))
    storage.flush()
    for now, left in ((50, {1, 2, 4}), (100, {2, 4}), (999, {2, 4}), (1_000, {2})):
        clock.now = 1_700_000_000.0 + now
        sweep_all(storage)
        assert {number for number in ttls if in_memory(storage, number)} == left
        assert {number for number in ttls if on_disk(storage, number)} == left
    assert_sound(storage)


def test_no_group_waits_for_ever_behind_a_large_one(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(ttl=100, sweep_rows_s=1_000, clock=clock)
    embedding(storage, group=1, ttl=10_000).lookup(np.arange(20_000))
    storage.flush()
    for number in range(2, 40):
        embedding(storage, group=number).lookup(np.arange(5))
    clock.now += 100
    sweeper = Sweeper(engine_of(storage))
    # memory and disk of the large one, then some hundred rows' worth for each of the small ones
    assert sum(sweeper.turn(1.0) for _ in range(60)) == 38 * 5
    assert storage.stats()["rows"] == 20_000


def test_going_round_empty_groups_is_part_of_the_rate(
    open_storage: OpenStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(ttl=100, sweep_rows_s=1_000, clock=clock)
    for number in range(200):
        embedding(storage, group=number)
    embedding(storage, group=200, ttl=0)
    visited: list[int] = []
    scan = engine_of(storage).files.scan

    def noted(group: int, **rest: Any) -> Any:
        visited.append(group)
        return scan(group, **rest)

    monkeypatch.setattr(engine_of(storage).files, "scan", noted)
    sweeper = Sweeper(engine_of(storage))
    for _ in range(30):
        sweeper.turn(1.0)
    assert 200 <= len(visited) <= 310
    assert set(visited) == set(range(200))  # all but the one whose rows never expire


def test_a_swept_key_begins_anew(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(ttl=100, sweep_rows_s=1_000, clock=clock)
    rows = embedding(storage, initializer=uniform(), seed=3)
    keys = np.arange(10)
    first = rows.lookup(keys)
    rows.apply_gradients(keys, ones(10))
    storage.flush()
    clock.now += 100
    assert sweep_all(storage) == 10
    np.testing.assert_array_equal(rows.lookup(keys), first)
    assert storage.stats()["rows"] == 10
    assert storage.shrink(min_count=1, dry_run=True).rows_removed == 10  # updates are counted anew
    assert_sound(storage)


def test_swept_rows_do_not_come_back_with_the_next_opening_or_after_a_kill(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path
) -> None:
    storage = open_storage(ttl=100, memory_budget=SMALL, sweep_rows_s=1 << 20, clock=clock)
    rows = embedding(storage, miss_value=9.0)
    old, new = np.arange(3_000), np.arange(3_000, 3_100)
    push_in_pieces(rows, old)  # some in rows/, some in memory and the journal only
    clock.now += 100
    assert sweep_all(storage) == 0  # after a kill now, the journal's pushes would need them
    storage.flush()
    assert sweep_all(storage) == 3_000
    rows.apply_gradients(old[:5], ones(5, value=2.0))
    rows.apply_gradients(new, ones(100))
    expected = np.full(3_100, 9.0)
    expected[:5], expected[3_000:] = -1.0, -0.5
    killed = as_after_kill(storage, tmp_path / "killed")
    storage.close()
    for name in ("store", str(killed)):
        again = open_storage(name, ttl=100, memory_budget=SMALL, sweep_rows_s=1 << 20, clock=clock)
        rows = embedding(again, miss_value=9.0)
        np.testing.assert_array_equal(rows.lookup(np.arange(3_100), train=False)[:, 0], expected)
        sweep_all(again)
        np.testing.assert_array_equal(rows.lookup(np.arange(3_100), train=False)[:, 0], expected)
        assert_sound(again)
        assert again.stats()["rows"] == 105
