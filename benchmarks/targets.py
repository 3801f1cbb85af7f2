"""What Rockbed aims at, each a ratio to something measured in the same run, and whether it got there."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.sessions import Record

Metric = Literal["rate", "p50_s", "p99_s", "seconds"] | str  # any other name is a figure of Record.more


@dataclass(frozen=True, kw_only=True)
class Target:
    """One line of the table. against: a contender, or None for a fixed limit (then `goal` is in the metric's unit).

    over: another metric of Rockbed's own to divide by, in place of a contender. contender: Rockbed, as a library or as
    a daemon.
    """

    what: str
    part: str
    workload: str
    metric: Metric
    goal: float
    at_least: bool
    against: str | None = None
    over: Metric | None = None
    contender: str = "rockbed"


def _ratio(what: str, part: str, workload: str, against: str, goal: float) -> Target:
    return Target(what=what, part=part, workload=workload, metric="rate", against=against, goal=goal, at_least=True)


def _served(
    what: str,
    workload: str,
    goal: float,
    *,
    metric: Metric = "rate",
    at_least: bool = True,
    contender: str = "daemon",
    **rest: str,
) -> Target:
    return Target(
        what=what,
        part="daemon",
        contender=contender,
        workload=workload,
        metric=metric,
        goal=goal,
        at_least=at_least,
        **rest,
    )


def _limit(what: str, part: str, workload: str, metric: Metric, goal: float, **rest: str) -> Target:
    return Target(what=what, part=part, workload=workload, metric=metric, goal=goal, at_least=False, **rest)


TARGETS = (
    _ratio("look up 64k existing keys, uniform", "memory", "lookup uniform", "numpy", 0.5),
    _limit("look 1,000 keys up, p50, seconds", "memory", "lookup 1,000 keys", "p50_s", 0.0002),
    _ratio("insert (look up 64k new keys)", "memory", "fill", "damo", 15),
    _ratio("apply, uniform", "memory", "apply uniform", "torch", 1.5),
    _ratio("apply, Zipf 1.05", "memory", "apply zipf", "torch", 1.5),
    *(
        _ratio(f"train step, {draw}, {tables}", part, f"train {draw}", against, goal)
        for part, tables in (("memory", "one table"), ("tables", "26 tables"))
        for draw, against, goal in (
            ("uniform", "torch", 1.5),
            ("zipf", "torch", 1.5),
            ("uniform", "damo", 30),
            ("zipf", "damo", 15),
        )
    ),
    _ratio("ten times the budget: look up, Zipf", "large", "lookup zipf", "damo", 5),
    _ratio("ten times the budget: look up, uniform", "large", "lookup uniform", "damo", 1),
    _ratio("ten times the budget: train step, Zipf", "large", "train zipf", "damo", 5),
    _ratio("ten times the budget: train step, uniform", "large", "train uniform", "damo", 5),
    _limit(
        "ten times the budget: growth of resident memory, less the 256 MiB stated, / budget",
        "large",
        "memory",
        "of_budget",
        1.15,
    ),
    _limit("close, seconds", "memory", "close and open", "close_s", 2),
    _limit("open and look up, seconds", "memory", "close and open", "seconds", 1),
    _limit("open after kill -9 with 256 MB to replay, seconds", "crash", "open after kill -9", "seconds", 5),
    _limit("bytes on disk of a settled row", "memory", "disk", "bytes_a_row", 1.3, against="damo"),
    _limit(
        "1,000-key lookups during write-back, p99 / p50",
        "memory",
        "lookup 1,000 keys in write-back",
        "p99_s",
        5,
        over="p50_s",
    ),
    _served("look up 64k existing keys, uniform, keys a second", "lookup uniform", 3e6),
    _served("apply 64k keys, Zipf, keys a second", "apply zipf", 2e6),
    _served("train step, 26 tables, Zipf, keys a second", "train zipf", 1e6),
    _served("look 1,000 keys up, p50, seconds", "lookup 1,000 keys", 0.001, metric="p50_s", at_least=False),
    *(
        _served(
            f"{what}{how}, beside a gRPC server that does nothing", workload, 0.6, against="echo", contender=contender
        )
        for contender, how in (("daemon", ""), ("daemon-socket", " through the socket"))
        for what, workload in (
            ("look up 64k keys", "lookup uniform"),
            ("apply 64k keys", "apply zipf"),
            ("look 1,000 keys up", "lookup 1,000 keys"),
        )
    ),
    _served("8 trainers at once: calls that failed", "8 trainers", 0, metric="errors", at_least=False),
    _served(
        "8 trainers at once: the server's memory at the end / at half time",
        "8 trainers",
        1.1,
        metric="resident_end",
        at_least=False,
        over="resident_middle",
    ),
    _served(
        "memory of an idle server with a new store, bytes", "idle, new store", 250e6, metric="resident", at_least=False
    ),
)


@dataclass(frozen=True)
class Outcome:
    """ours, theirs: medians over the rounds (theirs None for a limit); result: what is compared with the goal."""

    target: Target
    ours: float
    theirs: float | None
    result: float
    low: float
    high: float
    passed: bool


def judge(targets: Sequence[Target], records: Sequence[Record]) -> list[Outcome]:
    """Every target that was measured. A ratio is taken in each round, and the median of the rounds' ratios counts."""
    outcomes = []
    for target in targets:
        ours = _values(records, target, target.contender, target.metric)
        other = _values(records, target, target.against or target.contender, target.over or target.metric)
        divided = target.against is not None or target.over is not None
        rounds = sorted(ours.keys() & other.keys())
        if not rounds:
            continue
        results = [ours[r] / other[r] if divided else ours[r] for r in rounds]
        result = statistics.median(results)
        outcomes.append(
            Outcome(
                target,
                statistics.median(ours.values()),
                statistics.median(other.values()) if divided else None,
                result,
                min(results),
                max(results),
                result >= target.goal if target.at_least else result <= target.goal,
            )
        )
    return outcomes


def _values(records: Sequence[Record], target: Target, contender: str, metric: Metric) -> dict[int, float]:
    """Round -> value."""
    found = {}
    for record in records:
        if (record.part, record.workload, record.contender) == (target.part, target.workload, contender):
            value = record.more[metric] if metric in record.more else getattr(record, metric)
            found[record.round] = float(value)
    return found
