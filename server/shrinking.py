"""Shrink: remove the rows that are not worth keeping."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

from rockbed.reports import ShrinkReport
from rockbed.requests import ShrinkOptions
from rockbed.server import removal
from rockbed.server.conditions import REASONS, Conditions
from rockbed.server.group import Group
from rockbed.server.scanning import current, scan
from rockbed.types import I64

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


def shrink(
    engine: "Engine", options: ShrinkOptions, progress: Callable[[int, int], None] | None = None
) -> ShrinkReport:
    """See PyStorage.shrink."""
    engine.check_open()
    conditions = Conditions.of(
        options.max_age_s, options.min_count, options.min_norm, options.min_step, returned=options.returned
    )
    if not options.dry_run:
        engine.must_be_writable("shrink (a dry run can)")
    if options.group is None:
        groups = [group for _, group in sorted(engine.groups.items())]
    else:
        groups = [engine.group(options.group)]
        conditions.must_fit(groups[0])
    report = ShrinkReport(options.dry_run)
    total = sum(g.counters.rows for g in groups)
    for g in groups:
        counts = np.zeros(len(REASONS), np.int64)
        for rows in scan(engine, g):
            with g.lock if options.returned else nullcontext():
                reason = conditions.reasons(g, rows, engine.now_ms())
            if not options.dry_run:
                reason = _remove(engine, g, rows.keys[reason >= 0], conditions)
            counts += np.bincount(reason[reason >= 0], minlength=len(REASONS))
            report.rows_seen += rows.keys.size
            if progress is not None:
                progress(report.rows_seen, max(total, report.rows_seen))
        report.removed[g.number] = {name: int(counts[REASONS.index(name)]) for name in conditions.possible}
    if not options.dry_run:
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
