"""`check()`: read everything there is and say what is wrong."""

from typing import TYPE_CHECKING

import numpy as np

from rockbed.errors import RockbedError
from rockbed.reports import CheckReport
from rockbed.server.group import Group
from rockbed.server.tier import Tier
from rockbed.storage import hot_kernels as k
from rockbed.storage.record import HEADER_BYTES, decode_key, encode_keys, headers_of
from rockbed.storage.segment import read_segment, segment_files
from rockbed.types import F32, I64

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


def check(engine: "Engine") -> CheckReport:
    """See PyStorage.check."""
    engine.check_open()
    report = CheckReport()
    if not engine.config.read_only:
        engine.flush()
    with engine.quiet():
        _journal(engine, report)
        for _, group in sorted(engine.groups.items()):
            with group.lock.unguarded:  # it takes as long as the group is large, and changes nothing
                indexed = _memory(group, report)
                _disk(engine, group, report, indexed)
                if group.tier is not None:
                    _device(group, group.tier, report)
        for number in engine.files.groups():
            if number not in engine.groups:
                report.problems.append(f"rows/ holds rows of group {number}, which the catalog does not know")
    return report


def _journal(engine: "Engine", report: CheckReport) -> None:
    gone = [path for _, path in engine.journal.segments if not path.exists()]
    if gone:
        report.problems.append(f"{gone[0]} is in use and gone: flush, or close and open the storage, to begin another")
    try:
        # in a store that is being written to the last number first: the files hold what it counts, perhaps more
        after = None if engine.config.read_only else engine.journal.last_lsn + 1
        segments = segment_files(engine.directory / "journal")
        for i, (first, path) in enumerate(segments):
            until = segments[i + 1][0] if i + 1 < len(segments) else after
            report.journal_entries += sum(1 for _ in read_segment(first, path, until))
    except RockbedError as error:
        report.problems.append(str(error))


def _memory(group: Group, report: CheckReport) -> bool:
    """Whether the index leads to every row: only then can they be compared with the disk."""
    table, number = group.table, group.number
    used = table.used_rows()
    rows, missing = table.find(np.ascontiguousarray(table.header[used, 0]), 0)
    if used.size != table.count:
        report.problems.append(f"group {number}: {used.size} rows in memory, {table.count} counted")
    indexed = missing == 0 and np.array_equal(rows, used)
    if not indexed:
        report.problems.append(
            f"group {number}: the index in memory does not lead to {int((rows != used).sum())} of {used.size} rows"
        )
    pinned = int((table.flags[used] & k.PINNED != 0).sum())
    if pinned:
        report.problems.append(f"group {number}: {pinned} rows are pinned by no batch")
    _finite(group, "memory", table.header[used, 0], table.data[used], report)
    return indexed


def _disk(engine: "Engine", group: Group, report: CheckReport, indexed: bool) -> None:
    table, number = group.table, group.number
    rows = 0
    seen = np.zeros(table.high, np.bool_)  # rows of memory that rows/ has, too
    try:
        for keys, values in engine.files.scan(number):
            records = engine.files.matrix(values, group.record_bytes)
            wanted = np.array([decode_key(key)[1] for key in keys], np.int64)
            group.check_records(records, wanted)
            if encode_keys(number, wanted).tobytes() != b"".join(keys):
                report.problems.append(f"group {number}: a key of rows/ has the wrong slot")
            heads = headers_of(records)
            stored_header = np.stack([heads[name] for name in ("key", "update_time", "update_num")], axis=1)
            stored_data = np.ascontiguousarray(records[:, HEADER_BYTES:]).view(np.float32)
            _finite(group, "rows/", wanted, stored_data, report)
            in_memory, _ = table.find(wanted, 0)
            there = np.flatnonzero(in_memory >= 0)
            at = in_memory[there]
            seen[at] = True
            clean = table.flags[at] & (k.DIRTY | k.WRITING) == 0
            there, at, dirty = there[clean], at[clean], int((~clean).sum())
            same = (table.header[at, :3] == stored_header[there]).all(axis=1)
            same &= table.header[at, 3].view(np.uint64) == heads["lsn"][there]
            same &= (table.data[at].view(np.int32) == stored_data[there].view(np.int32)).all(axis=1)
            if indexed and not same.all():
                others = int((~same).sum()) - 1
                report.problems.append(
                    f"group {number}: key {wanted[there[~same][0]]} and {others} others differ in memory and on disk"
                )
            rows += len(keys)
            if engine.config.read_only:
                rows -= dirty  # counted below
    except RockbedError as error:
        report.problems.append(str(error))
        return
    used = table.used_rows()
    lost = used[(table.flags[used] & (k.DIRTY | k.WRITING) == 0) & ~seen[used]]
    if indexed and lost.size:
        report.problems.append(
            f"group {number}: rows/ lacks {lost.size} rows that were written to it, the first for key "
            f"{table.header[lost[0], 0]}"
        )
    changed = table.dirty_rows()
    rows += changed.size if engine.config.read_only else 0
    report.rows[number] = rows
    if engine.config.read_only or not changed.size:
        group.counters.rows = rows  # after a crash the counter is an estimate: this is the truth


def _device(group: Group, tier: Tier, report: CheckReport) -> None:
    records, dirty = tier.everything()
    heads = headers_of(records)
    keys, data = np.ascontiguousarray(heads["key"]), np.ascontiguousarray(records[:, HEADER_BYTES:]).view(np.float32)
    if tier.find(keys)[0].size < keys.size:
        report.problems.append(f"group {group.number}: the index on the device does not lead to all of its rows")
    _finite(group, "the device", keys, data, report)
    rows, _ = group.table.find(keys, 0)
    fetched = group.fetch(keys[rows < 0])
    below, at = np.zeros_like(data), np.flatnonzero(rows < 0)[fetched.found]
    below[rows >= 0] = group.table.data[rows[rows >= 0]]
    below[at] = np.ascontiguousarray(fetched.records[:, HEADER_BYTES:]).view(np.float32)
    rows[at] = 0
    differ = (below.view(np.int32) != data.view(np.int32)).any(axis=1) & ~dirty
    for wrong, what in ((rows < 0, "are neither in memory nor on disk"), (differ, "differ from the copy below")):
        if wrong.any():
            report.problems.append(
                f"group {group.number}: {int(wrong.sum())} rows on the device {what}, the first for key "
                f"{keys[wrong.argmax()]}"
            )


def _finite(group: Group, where: str, keys: I64, data: F32, report: CheckReport) -> None:
    bad = np.flatnonzero(~np.isfinite(data).all(axis=1))
    if bad.size:
        report.problems.append(
            f"group {group.number}: {bad.size} rows in {where} hold NaN or Inf, the first for key {keys[bad[0]]}"
        )
