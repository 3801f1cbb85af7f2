"""The benchmark's own arithmetic, and one short run of it through the processes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data, report, sessions
from benchmarks.contenders.base import Settings
from benchmarks.processes import ContenderFailed, Worker
from benchmarks.sessions import Record
from benchmarks.targets import Target, judge
from benchmarks.workloads import Sizes

SMALL = Sizes(batch_keys=500, batches=2, pushes=2, steps=2, small_calls=3, pushing_s=0.05)


def record(contender: str, round_: int, rate: float, **more: float) -> Record:
    return Record(
        part="memory",
        contender=contender,
        workload="fill",
        rows=10,
        dim=4,
        tables=1,
        round=round_,
        calls=1,
        keys=1000,
        seconds=1000 / rate,
        p50_s=0.5,
        p99_s=2.0,
        more=more,
    )


def test_keys_have_63_bits_and_do_not_repeat() -> None:
    keys = np.concatenate([data.run_of(0, 100_000, table).keys for table in (0, 1)])
    assert len(np.unique(keys)) == 200_000
    assert keys.min() > 0
    np.testing.assert_array_equal(data.hashed_keys(np.array([3])), data.run_of(0, 10).keys[3:4])


def test_zipf_draws_follow_the_law() -> None:
    batch = data.draw(1000, 200_000, True, np.random.default_rng(0))
    counts = np.sort(np.bincount(batch.at, minlength=1000))[::-1]
    expected = np.arange(1, 1001) ** -data.ZIPF_EXPONENT
    expected *= 200_000 / expected.sum()
    np.testing.assert_allclose(counts[:20], expected[:20], rtol=0.1)  # about 4 sigma at 2,000 draws


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine was half as fast in the second round, for both.
    rates = ((0, 100.0, 10.0), (1, 50.0, 5.0), (2, 90.0, 10.0))
    records = [
        record(name, r, rate) for r, ours, theirs in rates for name, rate in (("rockbed", ours), ("damo", theirs))
    ]
    target = Target(what="", part="memory", workload="fill", metric="rate", goal=10, at_least=True, against="damo")
    (outcome,) = judge([target], records)
    assert outcome.result == pytest.approx(10)
    assert [outcome.low, outcome.high] == pytest.approx([9, 10])
    assert outcome.passed
    assert "pass" in report.outcome_table([outcome])


def test_a_limit_and_an_own_ratio_are_judged() -> None:
    records = [record("rockbed", 0, 10.0, close_s=3.0)]
    close = Target(what="", part="memory", workload="fill", metric="close_s", goal=2, at_least=False)
    tail = Target(what="", part="memory", workload="fill", metric="p99_s", goal=5, at_least=False, over="p50_s")
    outcomes = judge([close, tail], records)
    assert [outcome.result for outcome in outcomes] == [3.0, 4.0]
    assert [outcome.passed for outcome in outcomes] == [False, True]


def test_what_was_not_measured_is_not_judged() -> None:
    target = Target(what="", part="memory", workload="fill", metric="rate", goal=1, at_least=True, against="damo")
    assert judge([target], [record("rockbed", 0, 10.0)]) == []


@pytest.mark.parametrize("tables", [1, 26])
def test_rockbed_goes_through_every_workload_in_its_own_process(tmp_path: Path, tables: int) -> None:
    worker = Worker("rockbed", Path(sys.executable))
    try:
        worker.open(Settings(directory=tmp_path / "store", rows=5200 // tables, dim=8, tables=tables), SMALL)
        plan = [s for s in sessions.plan(["memory", "tables"], 1000, 1000, 1) if s.tables == tables]
        for workload in plan[0].workloads:
            for round_ in range(plan[0].rounds_of(workload)):
                measured = worker.run(workload, round_)
                assert all(second > 0 for second in measured.seconds)
        worker.close()
    finally:
        worker.kill()


def test_a_failure_in_the_process_is_said_with_its_cause(tmp_path: Path) -> None:
    worker = Worker("numpy")
    try:
        worker.open(Settings(directory=tmp_path, rows=100, dim=4), SMALL)
        with pytest.raises(ContenderFailed, match="NotImplementedError"):
            worker.run("apply uniform", 0)
    finally:
        worker.kill()
