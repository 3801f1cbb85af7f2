"""Shrink: remove the rows that are not worth keeping."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rockbed.reports import ShrinkReport
from rockbed.requests import check_shrink
from rockbed.server import removal
from rockbed.server.group import Group
from rockbed.server.scanning import Rows, current, scan
from rockbed.types import I64

if TYPE_CHECKING:
    from rockbed.server.engine import Engine

REASONS = ("expired", "age", "count", "norm")


@dataclass(frozen=True, slots=True)
class _Conditions:
    max_age_ms: int | None
    min_count: int | None
    min_norm: float | None

    def reasons(self, group: Group, rows: Rows, now_ms: int) -> I64:
        """The index in REASONS for each row, -1 where it stays: int64[n]."""
        reason = np.full(rows.keys.size, -1, np.int64)
        # the first reason wins, so they are written from the last to the first
        if self.min_norm is not None:
            weights = rows.data[:, : group.config.dim].astype(np.float64)
            reason[np.sqrt((weights**2).sum(axis=1)) < self.min_norm] = 3
        if self.min_count is not None:
            reason[rows.update_num < self.min_count] = 2
        if self.max_age_ms is not None:
            reason[now_ms - rows.update_time >= self.max_age_ms] = 1
        reason[rows.update_time <= group.oldest_ms(now_ms)] = 0
        return reason


def _conditions(max_age_s: float | None, min_count: int | None, min_norm: float | None) -> _Conditions:
    check_shrink(max_age_s, min_count, min_norm)
    return _Conditions(None if max_age_s is None else round(max_age_s * 1000), min_count, min_norm)


def shrink(
    engine: "Engine",
    *,
    group: int | None,
    max_age_s: float | None,
    min_count: int | None,
    min_norm: float | None,
    dry_run: bool,
    progress: Callable[[int, int], None] | None,
) -> ShrinkReport:
    """See PyStorage.shrink."""
    engine.check_open()
    conditions = _conditions(max_age_s, min_count, min_norm)
    if not dry_run:
        engine.must_be_writable("shrink (a dry run can)")
    groups = [engine.group(group)] if group is not None else [g for _, g in sorted(engine.groups.items())]
    report = ShrinkReport(dry_run)
    total = sum(g.counters.rows for g in groups)
    for g in groups:
        counts = np.zeros(len(REASONS), np.int64)
        for rows in scan(engine, g):
            reason = conditions.reasons(g, rows, engine.now_ms())
            if not dry_run:
                reason = _remove(engine, g, rows.keys[reason >= 0], conditions)
            counts += np.bincount(reason[reason >= 0], minlength=len(REASONS))
            report.rows_seen += rows.keys.size
            if progress is not None:
                progress(report.rows_seen, max(total, report.rows_seen))
        report.removed[g.number] = {name: int(count) for name, count in zip(REASONS, counts, strict=True)}
    if not dry_run:
        engine.flush()
    return report


def _remove(engine: "Engine", group: Group, keys: I64, conditions: _Conditions) -> I64:
    # rows may have been pushed since they were read: what counts is how they are now
    if not keys.size:
        return np.empty(0, np.int64)
    with engine.write_back.mutex, group.lock:
        group.must_exist()
        rows = current(group, keys)
        reason = conditions.reasons(group, rows, engine.now_ms())
        for index, name in enumerate(REASONS):
            removal.remove(engine, group, np.ascontiguousarray(rows.keys[reason == index]), name)
        return reason
