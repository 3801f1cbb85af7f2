"""Shrink: remove the rows that are not worth keeping."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rockbed.reports import ShrinkReport
from rockbed.requests import check_shrink
from rockbed.server import removal
from rockbed.server.conditions import REASONS, Conditions
from rockbed.server.group import Group
from rockbed.server.scanning import current, scan
from rockbed.types import I64

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


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
    check_shrink(max_age_s, min_count, min_norm)
    conditions = Conditions.of(max_age_s, min_count, min_norm)
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


def _remove(engine: "Engine", group: Group, keys: I64, conditions: Conditions) -> I64:
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
