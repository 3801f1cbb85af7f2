"""`check()`: read everything there is and say what is wrong."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rockbed.errors import RockbedError
from rockbed.server.group import Group
from rockbed.storage import hot_kernels as k
from rockbed.storage.journal import Journal, read_segment
from rockbed.storage.record import decode_key, encode_keys, headers_of

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


@dataclass(slots=True)
class CheckReport:
    """problems: sentences, empty when all is well. rows: group -> rows found, expired ones included."""

    problems: list[str] = field(default_factory=list)
    rows: dict[int, int] = field(default_factory=dict)
    journal_entries: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check(engine: "Engine") -> CheckReport:
    """See PyStorage.check."""
    engine.check_open()
    report = CheckReport()
    if not engine.config.read_only:
        engine.flush()
    with engine.quiet():
        _journal(engine, report)
        for _, group in sorted(engine.groups.items()):
            with group.lock:
                _memory(group, report)
                _disk(engine, group, report)
        for number in engine.files.groups():
            if number not in engine.groups:
                report.problems.append(f"rows/ holds rows of group {number}, which the catalog does not know")
    return report


def _journal(engine: "Engine", report: CheckReport) -> None:
    segments = Journal.files(engine.directory / "journal")
    try:
        for i, (_, path) in enumerate(segments):
            report.journal_entries += sum(1 for _ in read_segment(path, last=i + 1 == len(segments)))
    except RockbedError as error:
        report.problems.append(str(error))


def _memory(group: Group, report: CheckReport) -> None:
    table, number = group.table, group.number
    used = table.used_rows()
    rows, missing = table.find(np.ascontiguousarray(table.header[used, 0]), 0)
    if used.size != table.count:
        report.problems.append(f"group {number}: {used.size} rows in memory, {table.count} counted")
    if missing or not np.array_equal(rows, used):
        report.problems.append(
            f"group {number}: the index in memory does not lead to {int((rows != used).sum())} of {used.size} rows"
        )
    if table.mark.any():
        report.problems.append(f"group {number}: scratch of an earlier batch was not cleared")
    pinned = int((table.flags[used] & k.PINNED != 0).sum())
    if pinned:
        report.problems.append(f"group {number}: {pinned} rows are pinned by no batch")
    broken = used[~np.isfinite(table.data[used]).all(axis=1)]
    if broken.size:
        report.problems.append(
            f"group {number}: {broken.size} rows hold NaN or Inf, the first for key {table.header[broken[0], 0]}"
        )


def _disk(engine: "Engine", group: Group, report: CheckReport) -> None:
    rows = 0
    try:
        for keys, values in engine.files.scan(group.number):
            records = engine.files.matrix(values, group.record_bytes)
            wanted = np.array([decode_key(key)[1] for key in keys], np.int64)
            group.check_records(records, wanted)
            if encode_keys(group.number, wanted).tobytes() != b"".join(keys):
                report.problems.append(f"group {group.number}: a key of rows/ has the wrong slot")
            in_memory, _ = group.table.find(wanted, 0)
            at = in_memory[in_memory >= 0]
            clean = at[group.table.flags[at] & (k.DIRTY | k.WRITING) == 0]
            stored = {int(h["key"]): int(h["lsn"]) for h in headers_of(records)}
            wrong = [key for key, lsn in group.table.header[clean][:, [0, 3]].tolist() if stored[key] != lsn]
            if wrong:
                report.problems.append(
                    f"group {group.number}: key {wrong[0]} and {len(wrong) - 1} others differ in memory and on disk"
                )
            rows += len(keys)
            if engine.config.read_only:
                rows -= int((group.table.flags[at] & k.DIRTY != 0).sum())  # counted below
    except RockbedError as error:
        report.problems.append(str(error))
        return
    dirty = group.table.dirty_rows()
    rows += dirty.size if engine.config.read_only else 0
    report.rows[group.number] = rows
    if not engine.config.read_only and not dirty.size:
        group.counters.rows = rows  # after a crash the counter is an estimate: this is the truth
