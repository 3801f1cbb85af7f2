"""What `stats()` says."""

import time
from typing import TYPE_CHECKING, Any

from rockbed.storage.hot import HotTable

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


def collect(engine: "Engine") -> dict[str, Any]:
    """See docs/operations.md for the meaning of every name."""
    engine.check_open()
    groups: dict[int, dict[str, Any]] = {}
    tables: list[HotTable] = []
    for number, group in sorted(engine.groups.items()):
        groups[number] = group.statistics()
        tables.append(group.table)
    error = engine.background_error
    return {
        "path": str(engine.directory),
        "rows": sum(g["rows"] for g in groups.values()),
        "memory_rows": sum(t.count for t in tables),
        "memory_bytes": sum(t.memory_bytes() for t in tables),
        "memory_budget": engine.config.memory_budget,
        "dirty_rows": sum(g["dirty_rows"] for g in groups.values()),
        "last_lsn": engine.journal.last_lsn,
        "flushed_lsn": engine.flushed_lsn,
        "journal_bytes": engine.journal.total_bytes,
        "rows_written_back": engine.write_back.rows_written,
        "write_back_lag_s": _lag_s(engine),
        "journal_stalls": engine.journal_stall.count,
        "journal_stall_s": engine.journal_stall.seconds,
        "memory_stalls": engine.memory_stall.count,
        "memory_stall_s": engine.memory_stall.seconds,
        **engine.kept.statistics(),
        "background_error": None if error is None else str(error),
        **engine.files.statistics(),
        "groups": groups,
    }


def _lag_s(engine: "Engine") -> float:
    """The most seconds that a journal entry has waited for its rows to be written back."""
    if engine.config.read_only or engine.journal.last_lsn <= engine.flushed_lsn:
        return 0.0
    return time.monotonic() - engine.write_back.clean_at
