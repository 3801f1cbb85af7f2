"""A store against a dict: hypothesis drives it, the model is plain Python and float64, and the test owns the clock."""

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.reports import RowStatus
from rockbed.server import seen
from rockbed.types import F32, F64, I64
from tests.crash_image import crash_image

FIRST = 0.5
BUDGET = 64 << 10  # room for about 200 rows of dim 64, so eviction goes on all the time
TTL_S = 10.0
RATE = 0.25


@dataclass(frozen=True)
class Kind:
    """A group: how it is opened, and what the model needs to know of it."""

    number: int
    dim: int
    adagrad: bool = False
    ttl: float | None = None
    sequential: bool = False
    skip: bool = False


GROUPS = (
    Kind(1, 64),
    Kind(2, 8, ttl=TTL_S),
    Kind(3, 5, adagrad=True, sequential=True),
    Kind(4, 16, adagrad=True, skip=True),
)
KEY = st.one_of(st.integers(-120, 120), st.sampled_from([0, -1, 2**63 - 1, -(2**63)]))
AGE = st.sampled_from([0.0, 4.0, TTL_S])
KEYS = st.lists(KEY, min_size=1, max_size=40)


@dataclass
class Row:
    """What a row should be. The model keeps weights of one value per row: gradients are the same in every element."""

    weight: float = FIRST
    squares: float = 0.0
    count: int = 0
    time: float = 0.0


class StoreAgainstDict(RuleBasedStateMachine):
    looked_up: Any = Bundle("looked_up")  # keys, for a push some time later

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "store-0"
        self.now = 1_000.0
        self.model: dict[tuple[int, int], Row] = {}
        self.request = 0
        self.copies = 0
        self.open()

    def open(self) -> None:
        self.storage, self.tables = self.opened(self.path)

    def opened(self, path: Path) -> tuple[PyStorage, dict[int, PyEmbedding]]:
        storage = PyStorage(
            path, memory_budget=BUDGET, write_back_interval=1e6, sweep_rows_s=0, fsync="never", clock=lambda: self.now
        )
        return storage, {kind.number: self.table(storage, kind) for kind in GROUPS}

    def table(self, storage: PyStorage, kind: Kind) -> PyEmbedding:
        return PyEmbedding(
            storage,
            PyOptimizer(name="adagrad" if kind.adagrad else "sgd", gamma=RATE),
            PyInitializer(name="constant", value=FIRST),
            kind.dim,
            kind.number,
            ttl=kind.ttl,
            duplicates="sequential" if kind.sequential else "sum",
            absent="skip" if kind.skip else "init",
        )

    # --- the model ---

    def alive(self, kind: Kind, key: int) -> Row | None:
        row = self.model.get((kind.number, key))
        return None if row is None or (kind.ttl is not None and self.now - row.time >= kind.ttl) else row

    def step(self, kind: Kind, row: Row, grad: float) -> None:
        row.count += 1
        row.time = self.now
        if kind.adagrad:
            row.squares += grad * grad
            row.weight -= RATE * grad / (math.sqrt(row.squares) + 1e-10)
        else:
            row.weight -= RATE * grad

    # --- what may happen ---

    @rule(kinds=st.sets(st.sampled_from(GROUPS), min_size=1), keys=KEYS, target=looked_up)
    def lookup_for_training(self, kinds: set[Kind], keys: list[int]) -> list[int]:
        for kind in kinds:
            for key in keys:
                if self.alive(kind, key) is None:
                    self.model[kind.number, key] = Row(time=self.now)
            self.compare(self.tables[kind.number], kind, keys)
        return keys

    @rule(kinds=st.sets(st.sampled_from(GROUPS), min_size=1), keys=looked_up, value=st.integers(-4, 4).map(float))
    def push_to_what_was_looked_up(self, kinds: set[Kind], keys: list[int], value: float) -> None:
        self.push_to(kinds, keys, [value + i % 3 for i in range(len(keys))], repeat=False)

    @rule(kind=st.sampled_from(GROUPS), keys=KEYS)
    def lookup_for_serving(self, kind: Kind, keys: list[int]) -> None:
        self.compare(self.tables[kind.number], kind, keys, train=False)

    @rule(kinds=st.sets(st.sampled_from(GROUPS), min_size=1), keys=KEYS, grads=st.data(), repeat=st.booleans())
    def push(self, kinds: set[Kind], keys: list[int], grads: st.DataObject, repeat: bool) -> None:
        values = grads.draw(st.lists(st.integers(-4, 4).map(float), min_size=len(keys), max_size=len(keys)))
        self.push_to(kinds, keys, values, repeat=repeat)

    def push_to(self, kinds: set[Kind], keys: list[int], values: list[float], *, repeat: bool) -> None:
        ordered = sorted(kinds, key=lambda kind: kind.number)
        items: list[tuple[PyEmbedding, I64, F32]] = []
        for kind in ordered:
            gradients = np.repeat(np.array(values, np.float32)[:, None], kind.dim, axis=1)
            items.append((self.tables[kind.number], np.array(keys, np.int64), gradients))
        self.request += 1
        assert self.storage.apply_gradients(items, request=("test", self.request))
        if repeat:
            assert not self.storage.apply_gradients(items, request=("test", self.request))
        for kind in ordered:
            self.push_to_model(kind, keys, values)

    def push_to_model(self, kind: Kind, keys: Sequence[int], values: Sequence[float]) -> None:
        summed: dict[int, list[float]] = {}
        for key, value in zip(keys, values, strict=True):
            summed.setdefault(key, []).append(value)
        for key, parts in summed.items():
            row = self.alive(kind, key)
            if row is None:
                if kind.skip:
                    continue
                row = self.model[kind.number, key] = Row(time=self.now)
            for grad in parts if kind.sequential else [sum(parts)]:
                self.step(kind, row, grad)

    @rule(kind=st.sampled_from(GROUPS), keys=st.sets(KEY, min_size=1, max_size=40), keep=st.booleans(), age=AGE)
    def put(self, kind: Kind, keys: set[int], keep: bool, age: float) -> None:
        ordered = list(keys)
        weights, squares = np.arange(len(ordered)) / 8, np.arange(len(ordered)) + 1.0
        times = np.full(len(ordered), int((self.now - age) * 1000))
        stored = 0
        for key, weight, square in zip(ordered, weights.tolist(), squares.tolist(), strict=True):
            row = Row(weight, square if kind.adagrad else 0.0, 3, self.now - age)
            if (keep and self.alive(kind, key) is not None) or (kind.ttl is not None and age >= kind.ttl):
                continue
            self.model[kind.number, key] = row
            stored += 1
        assert stored == self.storage.put_rows(
            kind.number,
            np.array(ordered, np.int64),
            np.repeat(weights.astype(np.float32)[:, None], kind.dim, axis=1),
            slots=np.repeat(squares.astype(np.float32)[:, None], kind.dim, axis=1) if kind.adagrad else None,
            update_num=np.full(len(ordered), 3),
            update_time_ms=times,
            mode="keep" if keep else "replace",
        )

    @rule(kind=st.sampled_from(GROUPS))
    def drop_a_group_and_make_it_anew(self, kind: Kind) -> None:
        self.storage.drop_group(kind.number)
        self.model = {(number, key): row for (number, key), row in self.model.items() if number != kind.number}
        self.tables[kind.number] = self.table(self.storage, kind)

    @rule(kind=st.sampled_from(GROUPS), keys=KEYS)
    def ask_about_rows(self, kind: Kind, keys: list[int]) -> None:
        report = self.storage.get_rows(kind.number, np.array(keys, np.int64))
        for i, key in enumerate(keys):
            row = self.alive(kind, key)
            assert (report.status[i] == RowStatus.PRESENT) == (row is not None)
            if row is not None:
                assert (report.update_num[i], report.update_time_ms[i]) == (row.count, int(row.time * 1000))

    @rule(seconds=st.sampled_from([0.5, 3.0, TTL_S - 0.5, TTL_S, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def flush(self) -> None:
        self.storage.flush()

    @rule(kind=st.sampled_from(GROUPS), dry_run=st.booleans(), limit=st.integers(1, 3))
    def shrink_by_count(self, kind: Kind, dry_run: bool, limit: int) -> None:
        gone = self.gone(kind, lambda row: row.count < limit)
        report = self.storage.shrink(group=kind.number, min_count=limit, dry_run=dry_run)
        self.shrunk(kind, gone, report.removed[kind.number], dry_run)

    @rule(kind=st.sampled_from(GROUPS), age=st.sampled_from([2.0, 30.0]))
    def shrink_by_age(self, kind: Kind, age: float) -> None:
        gone = self.gone(kind, lambda row: self.now - row.time >= age)
        report = self.storage.shrink(group=kind.number, max_age=age)
        self.shrunk(kind, gone, report.removed[kind.number], False)

    @rule(kind=st.sampled_from(GROUPS[:2]), norm=st.sampled_from([0.6, 3.0]))
    def shrink_by_norm(self, kind: Kind, norm: float) -> None:
        gone = self.gone(kind, lambda row: abs(row.weight) * math.sqrt(kind.dim) < norm)
        report = self.storage.shrink(group=kind.number, min_norm=norm)
        self.shrunk(kind, gone, report.removed[kind.number], False)

    def gone(self, kind: Kind, meets: Any) -> set[int]:
        keys = {key for number, key in self.model if number == kind.number}
        return {key for key in keys if (row := self.alive(kind, key)) is not None and meets(row)}

    def shrunk(self, kind: Kind, gone: set[int], removed: dict[str, int], dry_run: bool) -> None:
        assert sum(count for reason, count in removed.items() if reason != "expired") == len(gone)
        if not dry_run:
            for key in gone:
                del self.model[kind.number, key]

    @rule()
    def close_and_reopen(self) -> None:
        self.storage.close()
        self.open()

    @rule()
    def crash_and_reopen(self) -> None:
        # what a kill leaves is what the directory holds now; the store that was killed goes on nowhere
        self.copies += 1
        image = crash_image(self.path, self.folder / f"store-{self.copies}")
        self.storage.close()
        shutil.rmtree(self.path)
        self.path = image
        self.open()
        self.forget_rows_never_pushed()

    def forget_rows_never_pushed(self) -> None:
        # they may be gone, or come back as they were: both read the same when trained on; serving tells them apart
        for (number, key), row in list(self.model.items()):
            kind = next(k for k in GROUPS if k.number == number)
            if row.count == 0:
                there = self.tables[number].lookup(np.array([key]), train=False).any()
                assert not there or self.alive(kind, key) is not None
                if not there:
                    del self.model[number, key]

    @rule()
    def checkpoint_and_restore(self) -> None:
        self.copies += 1
        self.storage.checkpoint(self.folder / f"checkpoint-{self.copies}")
        PyStorage.restore(self.folder / f"checkpoint-{self.copies}", self.folder / f"restored-{self.copies}")
        storage, tables = self.opened(self.folder / f"restored-{self.copies}")
        with storage:
            assert storage.last_request("test") == self.request
            for kind in GROUPS:
                keys = sorted({key for number, key in self.model if number == kind.number})
                self.compare(tables[kind.number], kind, keys, train=False)
        shutil.rmtree(self.folder / f"restored-{self.copies}")
        shutil.rmtree(self.folder / f"checkpoint-{self.copies}")

    # --- what must always hold ---

    def compare(self, table: PyEmbedding, kind: Kind, keys: Sequence[int], *, train: bool = True) -> None:
        wanted: F64 = np.zeros((len(keys), kind.dim))
        for i, key in enumerate(keys):
            row = self.alive(kind, key)
            wanted[i] = 0.0 if row is None else row.weight
        found = table.lookup(np.array(keys, np.int64), train=train)
        if kind.adagrad:
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(found, wanted.astype(np.float32))

    @precondition(lambda self: hasattr(self, "storage"))
    @invariant()
    def all_rows_are_as_they_should_be(self) -> None:
        for kind in GROUPS:
            keys = sorted({key for number, key in self.model if number == kind.number})
            self.compare(self.tables[kind.number], kind, keys, train=False)
        stats = self.storage.stats()
        assert stats["memory_bytes"] <= BUDGET + 4 * 64 * 600  # each group may hold 64 rows whatever the budget

    def teardown(self) -> None:
        if hasattr(self, "storage"):
            assert self.storage.check().problems == []
            self.storage.close()
            shutil.rmtree(self.folder)


@pytest.fixture(autouse=True)
def remember_small_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "_KEYS_LEAST", 1)


def test_a_store_is_like_a_dict() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call, unused-ignore]  # the one for Python 3.10
        StoreAgainstDict, settings=settings(max_examples=12, stateful_step_count=25, deadline=None)
    )


@pytest.mark.slow
def test_a_store_is_like_a_dict_for_longer() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call, unused-ignore]  # the one for Python 3.10
        StoreAgainstDict, settings=settings(max_examples=25, stateful_step_count=50, deadline=None)
    )
