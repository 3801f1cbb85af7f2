"""The device tier above another one, against a dict: whatever comes, goes and is evicted, no update is lost."""

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from rockbed.optimizers import make_optimizer
from rockbed.storage.gpu.fused import DeviceBags, FusedBatch
from rockbed.storage.record import headers_of, record_bytes
from rockbed.types import F32, U8
from tests.gpu.fused_spec import Spec, pooled, row_gradients
from tests.gpu.host_launcher import HostLauncher
from tests.gpu.tables import EXTREMES, data_of, initial_rows, make_table

DIM, ROWS = 4, 64
KEYS = st.one_of(st.integers(0, 150), st.sampled_from(EXTREMES.tolist()))
BATCH = st.lists(st.lists(KEYS, max_size=5), min_size=1, max_size=8)


class TierAgainstDict(RuleBasedStateMachine):
    """What an engine does with the tier: look up, fetch what is absent from below or begin it, push, flush."""

    @initialize(seed=st.integers(0, 2**31), optimizer=st.sampled_from(["adagrad", "sgd", "adam"]))
    def begin(self, seed: int, optimizer: str) -> None:
        self.launcher = HostLauncher(seed)
        self.rule = make_optimizer(optimizer)
        self.below: dict[int, U8] = {}  # the records of the tier below
        self.model: dict[int, F32] = {}  # what every row is, by the CPU's kernels
        self.steps: dict[int, int] = {}
        self.table = make_table(self.launcher, DIM, rows=ROWS, optimizer=optimizer)
        self.table._write_back = self.take
        self.clock = 0

    def take(self, records: U8) -> None:
        for key, record in zip(headers_of(records)["key"].tolist(), records, strict=True):
            self.below[key] = record.copy()

    def batch(self, bags: list[list[int]], settings: dict[str, Any]) -> tuple[FusedBatch, Spec]:
        keys = np.array([key for bag in bags for key in bag], np.int64)
        spec = Spec(keys, np.cumsum([0, *map(len, bags)]), negative=True, **settings)
        arrays = (self.launcher.to_device(spec.keys), self.launcher.to_device(spec.offsets))
        feature = DeviceBags("x", self.table, *arrays, negative=True, **settings)
        return FusedBatch(self.launcher, [feature]), spec

    def bring(self, keys: Any) -> None:
        """Load what is below, begin the rest."""
        below = np.array([key for key in keys.tolist() if key in self.below], np.int64)
        if below.size:
            self.table.load(below, np.stack([self.below[key] for key in below.tolist()]), pin=True)
        self.table.insert(self.launcher.to_device(keys), self.clock, self.clock, pin=True)
        for key in keys.tolist():
            if key not in self.model:
                row = np.concatenate([initial_rows(np.array([key]), DIM)[0], self.rule.initial_state(DIM)])
                self.model[key], self.steps[key] = row.astype(np.float32), 0

    def rows(self) -> dict[int, Any]:
        return {key: row[:DIM].astype(np.float64) for key, row in self.model.items()}

    @rule(bags=BATCH, combiner=st.sampled_from(["sum", "mean", "sqrtn"]), default_key=st.none() | KEYS)
    def train(self, bags: list[list[int]], combiner: str, default_key: int | None) -> None:
        self.clock += 1
        batch, spec = self.batch(bags, {"combiner": combiner, "default_key": default_key})
        out = self.launcher.empty((len(bags), DIM), np.float32)
        (absent,) = batch.pool(out, [], pin=True)
        if absent.keys or absent.defaults:
            self.bring(batch.absent_keys(0, absent)[0])
            assert batch.pool(out, [], pin=True)[0].keys == 0
        np.testing.assert_allclose(self.launcher.to_host(out), pooled(spec, self.rows(), DIM), rtol=1e-5, atol=1e-5)
        grads = np.round(np.random.default_rng(self.clock).normal(size=out.shape) * 8).astype(np.float32) / 8
        found, _ = batch.gradients(self.launcher.to_device(grads), [])
        for each in found:
            keys = each.table.headers(each.rows)[0]
            sums = self.launcher.to_host(each.grads)
            wanted = row_gradients(spec, self.rows(), grads.astype(np.float64))
            np.testing.assert_allclose(sums, [wanted[key] for key in keys.tolist()], rtol=1e-5, atol=1e-5)
            self.push(keys, sums)
            each.table.update(each.rows, each.grads, self.rule.lr, step=-1, now_ms=self.clock, lsn=self.clock)
        batch.unpin()

    def push(self, keys: Any, grads: F32) -> None:
        data = np.stack([self.model[key] for key in keys.tolist()])
        steps = np.array([self.steps[key] + 1 for key in keys.tolist()])
        rates = np.full(keys.size, self.rule.lr, np.float32)
        self.rule.apply(data, np.arange(keys.size), grads, rates, steps)
        for key, row, step in zip(keys.tolist(), data, steps.tolist(), strict=True):
            self.model[key], self.steps[key] = row, step

    @rule()
    def flush(self) -> None:
        self.table.write_back()

    @rule(wanted=st.integers(1, ROWS))
    def evict(self, wanted: int) -> None:
        self.table.evict(wanted)

    @rule(keys=st.lists(KEYS, max_size=10))
    def delete(self, keys: list[int]) -> None:
        self.table.remove(np.array(keys, np.int64))
        for key in keys:
            self.below.pop(key, None)
            self.model.pop(key, None)

    @invariant()
    def every_row_is_above_or_below_as_it_should_be(self) -> None:
        records = self.table.records(self.table.used_rows())
        here = dict(zip(headers_of(records)["key"].tolist(), records, strict=True))
        assert len(here) == self.table.count
        assert set(here) | set(self.below) == set(self.model)
        for key, row in self.model.items():
            record = here.get(key, self.below.get(key))
            assert record is not None
            assert record.size == record_bytes(self.table.width)
            np.testing.assert_array_equal(data_of(record[None])[0], row)
            assert headers_of(record[None])["update_num"][0] == self.steps[key]


def test_no_update_is_lost_whatever_is_evicted() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call, unused-ignore]  # the one for Python 3.10
        TierAgainstDict, settings=settings(max_examples=20, stateful_step_count=20, deadline=None)
    )


@pytest.mark.slow
def test_no_update_is_lost_whatever_is_evicted_for_longer() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call, unused-ignore]  # the one for Python 3.10
        TierAgainstDict, settings=settings(max_examples=35, stateful_step_count=40, deadline=None)
    )
