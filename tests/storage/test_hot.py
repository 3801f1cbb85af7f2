"""The hot tier against a dict, and its budget."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from rockbed.storage import hot_kernels as k
from rockbed.storage.hot import Budget, HotTable, NeedSpace
from rockbed.storage.memory import release_tail, reserve
from tests.splitmix import mix64

KEYS = st.lists(st.integers(-300, 300), min_size=1, max_size=90, unique=True)


class TableAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(60_000)
        self.table = HotTable(3, 1, self.budget)
        self.model: dict[int, float] = {}
        self.value = 0.0

    @rule(keys=KEYS)
    def insert(self, keys: list[int]) -> None:
        new = np.array([key for key in keys if key not in self.model], np.int64)
        try:
            self.table.ensure_room(new.size)
        except NeedSpace:
            return  # all rows are dirty
        self.drop_evicted()
        rows = self.table.allocate(new)
        k.change_flags(self.table.flags, rows, 0, k.DIRTY)
        for key, row in zip(new.tolist(), rows.tolist(), strict=True):
            self.value += 1
            self.table.data[row] = self.value
            self.model[key] = self.value

    @rule(keys=KEYS)
    def insert_with_repeats(self, keys: list[int]) -> None:
        sent = np.array(keys + keys[::-1], np.int64)
        rows, missing = self.table.find(sent)
        try:
            new = self.table.insert(sent, rows, missing)
        except NeedSpace:
            return
        assert sorted(sent[new].tolist()) == sorted(set(keys) - set(self.model))
        self.table.header[rows[new], 0] = sent[new]
        self.table.flags[rows[new]] = k.USED | k.TOUCHED | k.DIRTY
        for position in new.tolist():
            self.value += 1
            self.table.data[rows[position]] = self.value
            self.model[int(sent[position])] = self.value
        self.drop_evicted()

    @rule(share=st.floats(0, 1))
    def clean(self, share: float) -> None:
        rows = self.table.dirty_rows()
        k.change_flags(self.table.flags, rows[: int(share * rows.size)], k.DIRTY, 0)

    @rule(keys=KEYS)
    def remove(self, keys: list[int]) -> None:
        rows, _ = self.table.find(np.array(keys, np.int64))
        self.table.remove(rows[rows >= 0])
        for key in keys:
            self.model.pop(key, None)

    @rule(count=st.integers(1, 50))
    def evict(self, count: int) -> None:
        clean = self.table.count - self.table.dirty_count()
        assert self.table.evict(count) == min(count, clean)
        self.drop_evicted()

    @rule(count=st.integers(1, 200))
    def give_way(self, count: int) -> None:
        high = self.table.high
        given_rows = self.table.give_way(count)
        assert self.table.high == high - given_rows
        self.drop_evicted()

    def drop_evicted(self) -> None:
        keys = np.array(sorted(self.model), np.int64)
        rows, _ = self.table.find(keys, 0)
        for key in keys[rows < 0].tolist():
            del self.model[key]

    @invariant()
    def every_key_leads_to_its_row(self) -> None:
        keys = np.arange(-300, 301)
        rows, missing = self.table.find(keys, 0)
        found = {int(key): float(self.table.data[row, 0]) for key, row in zip(keys, rows, strict=True) if row >= 0}
        assert found == self.model
        assert missing == keys.size - len(found)
        assert self.table.count == len(found) == self.table.used_rows().size

    @invariant()
    def rows_have_the_mark_that_lookups_do_not_give_yet(self) -> None:
        if not self.table.touching:
            assert (self.table.flags[self.table.used_rows()] & k.TOUCHED != 0).all()

    @invariant()
    def the_budget_adds_up(self) -> None:
        assert self.budget.used_bytes == self.table.high * self.table.row_bytes
        assert self.budget.used_bytes <= max(self.budget.limit_bytes, 64 * self.table.row_bytes)


def test_a_table_is_like_a_dict() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call, unused-ignore]  # the one for Python 3.10
        TableAgainstDict, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
    )


def test_a_touched_row_gets_a_second_chance() -> None:
    table = HotTable(1, 0, Budget(100_000))
    keys = np.arange(100)
    table.ensure_room(100)
    table.allocate(keys)
    assert table.evict(1) == 1  # the hand goes round once and takes the first row it finds untouched
    table.find(keys[50:])
    table.evict(49)
    assert table.find(keys[50:], 0)[1] <= 1
    assert table.find(keys[:50], 0)[1] >= 49


def test_dirty_rows_and_pinned_rows_stay() -> None:
    table = HotTable(1, 0, Budget(100_000))
    table.ensure_room(30)
    rows = table.allocate(np.arange(30))
    k.change_flags(table.flags, rows[:10], 0, k.DIRTY)
    k.change_flags(table.flags, rows[10:20], 0, k.WRITING)
    assert table.clean_count() == 10
    with table.pinned(rows[20:]):
        assert table.evict(30) == 0
    assert table.evict(30) == 10


def test_rows_are_cut_by_slot_in_the_order_of_the_disk() -> None:
    table = HotTable(1, 0, Budget(1 << 20))
    keys = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 5_000)
    table.ensure_room(keys.size)
    rows = table.allocate(keys)
    k.change_flags(table.flags, np.setdiff1d(rows, rows[::3]), 0, k.DIRTY)
    ordered, ends = table.dirty_by_slot()
    assert sorted(ordered.tolist()) == sorted(table.dirty_rows().tolist())
    slots = [mix64(key) & 0x3FFF for key in table.header[ordered, 0].tolist()]
    assert slots == sorted(slots)
    np.testing.assert_array_equal(ends, np.searchsorted(slots, np.arange(1 << 14), side="right"))


def test_reserved_memory_is_given_back_and_reads_as_zero() -> None:
    array = reserve((1 << 20, 2), np.float32)
    array[:] = 1
    release_tail(array, 1 << 19)
    assert (array[: 1 << 19] == 1).all()
    assert not array[(1 << 19) + 1024 :].any()
    with pytest.raises(TypeError):
        release_tail(np.zeros(5), 0)
