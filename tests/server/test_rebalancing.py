"""How groups share a full memory budget, and that rows which move in memory are still the rows they were."""

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed import PyEmbedding, PyStorage
from rockbed.server import rebalancing
from rockbed.server.rebalancing import Rebalancer
from rockbed.storage import hot_kernels as k
from rockbed.storage.hot import Budget, HotTable, NeedSpace
from rockbed.types import F32, I64
from tests.api.helpers import OpenStorage, assert_sound, embedding, engine_of, push_in_pieces, uniform

BUDGET = 1 << 20


def rows_of(storage: PyStorage, group: int, n: int) -> PyEmbedding:
    """A group of n rows of 16 weights, each pushed once, written back."""
    rows = embedding(storage, 16, group, initializer=uniform(), seed=group)
    push_in_pieces(rows, np.arange(n), 0.25, size=500)
    storage.flush()
    return rows


def high(storage: PyStorage, group: int) -> int:
    return engine_of(storage).groups[group].table.high


def read(rows: PyEmbedding, keys: I64) -> F32:
    """In pieces, so that a group with little memory can."""
    return np.concatenate([rows.lookup(part, train=False) for part in np.array_split(keys, max(1, keys.size // 500))])


def begun(storage: PyStorage) -> Rebalancer:
    """One that has seen what happened so far, and moved nothing for it."""
    rebalancer = Rebalancer(engine_of(storage))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebalancing, "_FULL", 2.0)
        assert rebalancer.turn() == 0
    return rebalancer


def full_of_an_idle_group(storage: PyStorage, *, busy_first: bool = False) -> tuple[PyEmbedding, PyEmbedding]:
    """Group 1, idle, that has nearly all memory, and group 2 that needs more than it has."""
    if busy_first:
        rows_of(storage, 2, 0)
    idle, busy = rows_of(storage, 1, 20_000), rows_of(storage, 2, 4_000)
    budget = engine_of(storage).budget
    assert budget.used_bytes > 0.95 * budget.limit_bytes
    return idle, busy


def test_memory_moves_from_the_idle_group_to_the_one_that_reads_from_disk_and_rows_stay_the_same(
    open_storage: OpenStorage,
) -> None:
    storage = open_storage(memory_budget=BUDGET)
    idle, busy = full_of_an_idle_group(storage)
    everything = [read(idle, np.arange(20_000)), read(busy, np.arange(4_000))]
    rebalancer = begun(storage)
    shares, hits = [high(storage, 2)], []
    for _ in range(30):
        before = storage.stats()["groups"][2]["disk_hits"]
        np.testing.assert_array_equal(read(busy, np.arange(4_000)), everything[1])
        hits.append(storage.stats()["groups"][2]["disk_hits"] - before)
        used = engine_of(storage).budget.used_bytes
        freed = rebalancer.turn()
        assert freed == used - engine_of(storage).budget.used_bytes
        assert freed <= 0.05 * BUDGET + 1_000  # slowly
        shares.append(high(storage, 2))
    assert shares == sorted(shares)
    assert shares[-1] >= 4_000  # all of it fits now,
    assert hits[0] > 1_000  # which it did not
    assert hits[-1] == 0
    assert freed == 0
    np.testing.assert_array_equal(read(idle, np.arange(20_000)), everything[0])
    np.testing.assert_array_equal(read(busy, np.arange(4_000)), everything[1])
    assert_sound(storage)


def test_dirty_rows_of_the_giver_are_written_back_and_then_leave_too(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=BUDGET)
    idle, busy = full_of_an_idle_group(storage)
    before = read(idle, np.arange(20_000))
    table = engine_of(storage).groups[1].table
    there = np.sort(table.header[table.used_rows(), 0])
    for part in np.array_split(there, 10):
        idle.apply_gradients(part, np.full((part.size, 16), 0.5, np.float32))
    before[there] -= np.float32(0.25)
    assert table.dirty_count() > 0.9 * table.count
    rebalancer = begun(storage)
    read(busy, np.arange(4_000))
    assert rebalancer.turn() > 0.04 * BUDGET
    np.testing.assert_array_equal(read(idle, np.arange(20_000)), before)
    assert_sound(storage)


def test_an_empty_group_does_not_keep_the_others_from_giving(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=BUDGET)
    embedding(storage, 16, 0)
    rows_of(storage, 3, 10)
    _, busy = full_of_an_idle_group(storage)
    rebalancer = begun(storage)
    read(busy, np.arange(4_000))
    assert rebalancer.turn() > 0.04 * BUDGET


def test_nothing_moves_while_there_is_free_memory(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=64 * BUDGET)
    idle = rows_of(storage, 1, 20_000)
    busy = rows_of(storage, 2, 1_000)
    engine_of(storage).groups[2].counters.disk_hits = 10_000  # from the time when memory was full
    read(busy, np.arange(1_000))
    before, rows = high(storage, 1), read(idle, np.arange(20_000))
    assert Rebalancer(engine_of(storage)).turn() == 0
    assert high(storage, 1) == before
    np.testing.assert_array_equal(read(idle, np.arange(20_000)), rows)


@pytest.mark.parametrize("busy_first", [True, False])
def test_nothing_moves_to_a_group_that_does_not_read_from_disk(open_storage: OpenStorage, busy_first: bool) -> None:
    storage = open_storage(memory_budget=BUDGET)
    _, busy = full_of_an_idle_group(storage, busy_first=busy_first)
    few = np.arange(200)
    read(busy, few)
    rebalancer = begun(storage)
    for _ in range(20):
        read(busy, few)  # often, and from memory
    assert rebalancer.turn() == 0


def test_nothing_moves_between_groups_that_use_their_memory_alike(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=BUDGET)
    both = [rows_of(storage, 1, 20_000), rows_of(storage, 2, 20_000)]
    # as if each had half: what a group has depends on who came first
    engine_of(storage).groups[1].table.give_way(high(storage, 1) // 2)
    read(both[1], np.arange(20_000))
    rebalancer = begun(storage)
    for _ in range(5):
        for number, rows in enumerate(both, 1):
            n = high(storage, number) * 3
            read(rows, np.arange(n))
        assert storage.stats()["groups"][1]["disk_hits"] > 0
        assert rebalancer.turn() == 0


def test_a_single_group_keeps_what_it_has(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=BUDGET)
    rows = rows_of(storage, 1, 20_000)
    read(rows, np.arange(20_000))
    assert Rebalancer(engine_of(storage)).turn() == 0


# --- giving way ---

DIM = 3
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 80)),
        st.tuples(st.just("remove"), st.integers(1, 60)),
        st.tuples(st.just("dirty"), st.integers(1, 40)),
        st.tuples(st.just("clean"), st.just(0)),
        st.tuples(st.just("give"), st.integers(0, 300)),
    ),
    max_size=25,
)


@given(OPERATIONS, st.integers(0, 2**32 - 1))
def test_whatever_a_table_gives_back_each_row_is_found_with_its_content_and_each_byte_accounted_for(
    operations: list[tuple[str, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    budget = Budget(1 << 16)
    table = HotTable(DIM, DIM, budget)
    state = np.zeros(DIM, np.float32)
    content: dict[int, F32] = {}
    dirty: set[int] = set()
    following = 0

    def some(n: int) -> I64:
        return rng.permutation(np.array(sorted(content), np.int64))[:n]

    for name, n in [("add", 250), ("clean", 0), *operations]:
        if name == "add":
            keys: I64 = np.arange(following, following + n)
            try:
                table.ensure_room(n)
            except NeedSpace:
                pass
            else:
                rows = table.allocate(keys)
                table.start(keys, rows, state, now_ms=7, lsn=5)
                data = rng.random((n, 2 * DIM), np.float32)
                table.data[rows] = data
                content |= dict(zip(keys.tolist(), data, strict=True))
                dirty |= set(keys.tolist())
                following += n
            # what was evicted is clean and no longer found
            gone = {key for key in content if table.find(np.array([key]), 0)[0][0] < 0}
            assert not gone & dirty
            content = {key: row for key, row in content.items() if key not in gone}
        elif name == "remove":
            keys = some(n)
            table.remove(table.find(keys, 0)[0])
            content = {key: row for key, row in content.items() if key not in set(keys.tolist())}
            dirty -= set(keys.tolist())
        elif name == "dirty":
            keys = some(n)
            k.change_flags(table.flags, table.find(keys, 0)[0], 0, k.DIRTY)
            dirty |= set(keys.tolist())
        elif name == "clean":
            k.change_flags(table.flags, table.used_rows(), k.DIRTY, 0)
            dirty.clear()
        else:
            used, before, left = budget.used_bytes, table.high, table.left
            given = table.give_way(n)
            assert 0 <= given <= n
            assert table.high == before - given
            assert budget.used_bytes == used - given * table.row_bytes
            assert table.left > left or given == 0
            gone = {key for key in content if table.find(np.array([key]), 0)[0][0] < 0}
            assert not gone & dirty
            content = {key: row for key, row in content.items() if key not in gone}
        everyone = np.array(sorted(content), np.int64)
        rows, missing = table.find(everyone, 0)
        assert missing == 0
        assert np.unique(rows).size == rows.size == table.count
        assert (rows < table.high).all()
        assert (table.flags[rows] & k.PINNED == 0).all()
        np.testing.assert_array_equal(table.header[rows, 0], everyone)
        assert set(table.header[table.dirty_rows(), 0].tolist()) == dirty
        for row, key in zip(rows.tolist(), everyone.tolist(), strict=True):
            np.testing.assert_array_equal(table.data[row], content[key])
        assert (table.flags[table.high :] == 0).all()
        assert budget.used_bytes == table.high * table.row_bytes
        unused = np.flatnonzero(table.flags[: table.high] & k.USED == 0)
        assert sorted(table._free[: table._free_count].tolist()) == unused.tolist()


@pytest.mark.parametrize("pinned", [True, False])
def test_a_table_gives_no_row_that_is_in_use(pinned: bool) -> None:
    table = HotTable(DIM, 0, Budget(1 << 16))
    keys = np.arange(200)
    table.ensure_room(200)
    rows = table.allocate(keys)
    table.start(keys, rows, np.zeros(0, np.float32), now_ms=7, lsn=5)
    k.change_flags(table.flags, rows, k.DIRTY, 0)
    before, left = table.high, 200 if pinned else 64
    with table.pinned(rows) if pinned else nullcontext():
        given = table.give_way(before)
    assert table.high == table.count == left
    assert given == before - left
