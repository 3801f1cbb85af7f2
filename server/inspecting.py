"""What is known of single rows: for people who ask why a key gives what it gives."""

from typing import TYPE_CHECKING

import numpy as np

from rockbed.reports import RowReport, RowStatus
from rockbed.server.group import Group
from rockbed.server.tier import Tier
from rockbed.storage import hot_kernels as k
from rockbed.storage.record import HEADER_BYTES, headers_of
from rockbed.types import F32, I64

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


_PIECE = 1024  # keys looked at under the group's lock at a time: what is on disk is read under it


def get_rows(engine: "Engine", number: int, keys: I64) -> RowReport:
    """See PyStorage.get_rows. Changes nothing: no row moves into memory, nothing is counted."""
    engine.check_open()
    group = engine.group(number)
    pieces = [keys[start : start + _PIECE] for start in range(0, max(keys.size, 1), _PIECE)]
    return RowReport.joined([_get_rows(engine, group, piece) for piece in pieces])


def _get_rows(engine: "Engine", group: Group, keys: I64) -> RowReport:
    now_ms = engine.now_ms()
    with group.lock.unguarded:
        group.must_exist()
        report = _read(group, keys)
        waits = np.flatnonzero(report.status == RowStatus.ABSENT)
        _explain_admission(group, report, waits)
    if group.ttl_ms:
        there = report.status == RowStatus.PRESENT
        report.expires_at_ms[there] = report.update_time_ms[there] + group.ttl_ms
        report.status[there & (report.update_time_ms <= group.oldest_ms(now_ms))] = RowStatus.EXPIRED
    gone = np.flatnonzero((report.status == RowStatus.ABSENT) | (report.status == RowStatus.NOT_ADMITTED))
    times, reasons = engine.removals.find(group.number, keys[gone])
    report.removed_at_ms[gone] = times
    for i, reason in zip(gone, reasons, strict=True):
        if reason:
            report.removed_by[i] = reason
            report.status[i] = RowStatus.REMOVED
    report.now_ms = now_ms
    return report


def _read(group: Group, keys: I64) -> RowReport:
    config, table = group.config, group.table
    report = RowReport.empty(group.number, keys, config.dim, dict(group.optimizer.slots(config.dim)))
    rows, _ = table.find(keys, 0)
    data = np.zeros((keys.size, table.width), np.float32)
    held = np.flatnonzero(rows >= 0)
    at = rows[held]
    data[held] = table.data[at]
    report.update_time_ms[held], report.update_num[held] = table.header[at, 1], table.header[at, 2]
    report.in_memory[held] = True
    report.dirty[held] = table.flags[at] & (k.DIRTY | k.WRITING) != 0
    absent = np.flatnonzero(rows < 0)
    distinct, inverse = np.unique(keys[absent], return_inverse=True)
    fetched = group.fetch(distinct)
    record_of = np.full(distinct.size, -1)
    record_of[fetched.found] = np.arange(fetched.found.size)
    record = record_of[inverse]
    read, record = absent[record >= 0], record[record >= 0]
    heads = headers_of(fetched.records)
    data[read] = np.ascontiguousarray(fetched.records[:, HEADER_BYTES:]).view(np.float32)[record]
    report.update_time_ms[read], report.update_num[read] = heads["update_time"][record], heads["update_num"][record]
    report.status[held] = report.status[read] = RowStatus.PRESENT
    if group.tier is not None:
        _read_device(group.tier, report, data)
    padding = np.ones(keys.size, np.bool_)
    padding[group.not_padding(keys, np.arange(keys.size))] = False
    report.status[padding] = RowStatus.PADDING
    report.weights[:], report.slots[:] = data[:, : config.dim], data[:, config.dim :]
    return report


def _read_device(tier: Tier, report: RowReport, data: F32) -> None:
    # what is there is newest, and dirty where it differs from what was found below
    above, records = tier.find(report.keys)
    heads = headers_of(records)
    data[above] = np.ascontiguousarray(records[:, HEADER_BYTES:]).view(np.float32)
    report.dirty[above] |= report.update_num[above] != heads["update_num"]
    report.update_time_ms[above], report.update_num[above] = heads["update_time"], heads["update_num"]
    report.in_memory[above], report.status[above] = True, RowStatus.PRESENT


def _explain_admission(group: Group, report: RowReport, at: I64) -> None:
    if group.admission is None or not at.size:
        return
    keys = report.keys[at]
    seen = group.admission.seen(keys)
    report.seen[at] = seen
    report.needed = (group.config.admission or {}).get("count", 0)
    report.status[at[(seen != 0) & ~group.admission.is_admitted(keys)]] = RowStatus.NOT_ADMITTED
