"""Export: rows as table files that other programs read, and that an import takes back."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rockbed.reports import ExportReport
from rockbed.requests import ExportOptions
from rockbed.server.conditions import Conditions
from rockbed.server.group import Group
from rockbed.server.manifest import GroupTables, Manifest, TableFile
from rockbed.server.scanning import Rows, scan
from rockbed.server.table_files import Columns, TableFormat, table_format
from rockbed.storage.checkpoint import Draft
from rockbed.storage.files import os_errors, sync_path
from rockbed.types import I64

if TYPE_CHECKING:
    from rockbed.server.engine import Engine

# A file is in memory while it is written, and again while it is read.
FILE_ROWS_MAX = 1 << 20
FILE_BYTES_MAX = 128 << 20  # before compression


def export(
    engine: "Engine", path: Path, options: ExportOptions, progress: Callable[[int, int], None] | None
) -> ExportReport:
    """See PyStorage.export."""
    engine.check_open()
    format = table_format(options.format)
    numbers = sorted(engine.groups if options.groups is None else options.groups)
    groups = [engine.group(int(number)) for number in numbers]
    conditions = Conditions.of(options.max_age_s, options.min_count, options.min_norm)
    report = ExportReport(options.format)
    total = sum(group.counters.rows for group in groups)
    seen = 0
    with Draft(path) as draft:
        manifest = Manifest(options.format, [])
        for group in groups:
            writer = _Writer(draft, format, group, options)
            report.rows_seen[group.number] = 0
            for rows in scan(engine, group):
                kept = np.flatnonzero(conditions.reasons(group, rows, engine.now_ms()) < 0)
                # lookups do not show a row from the time before its key became the padding key
                writer.add(rows, group.not_padding(rows.keys, kept))
                report.rows_seen[group.number] += rows.keys.size
                seen += rows.keys.size
                if progress is not None:
                    progress(seen, max(total, seen))
            with group.lock:
                group.must_exist()  # dropped meanwhile, it would seem to have had few rows
            manifest.groups.append(writer.finish())
            report.rows_written[group.number] = writer.tables.rows
            report.file_bytes += sum(file.bytes for file in writer.tables.files)
        manifest.write(draft)
    return report


class _Writer:
    """Collects a group's rows and writes them, a full file at a time."""

    def __init__(self, directory: Path, format: TableFormat, group: Group, options: ExportOptions) -> None:
        self._directory = directory
        self._format = format
        self._cutoff = options.cutoff
        slots = group.table.width - group.config.dim if options.slots else None
        self.tables = GroupTables(group.config, slots)
        widths = self.tables.columns()
        row_bytes = sum(8 if width is None else 4 * width for width in widths.values())
        self._capacity = min(FILE_ROWS_MAX, FILE_BYTES_MAX // row_bytes)
        # reserved for a whole file; pages that no row touches take no memory
        self._columns: Columns = {
            name: np.empty(self._capacity, np.int64) if width is None else np.empty((self._capacity, width), np.float32)
            for name, width in widths.items()
        }
        self._used = 0

    def add(self, rows: Rows, picked: I64) -> None:
        """Take the rows at the positions picked, int64[m]."""
        while picked.size:
            part, picked = np.split(picked, [self._capacity - self._used])
            self._fill(rows, part)
            if self._used == self._capacity:
                self._write()

    def _fill(self, rows: Rows, part: I64) -> None:
        dim = self.tables.config.dim
        at = slice(self._used, self._used + part.size)
        self._columns["key"][at] = rows.keys[part]
        self._columns["update_num"][at] = rows.update_num[part]
        self._columns["update_time"][at] = rows.update_time[part]
        weights = self._columns["weights"][at]
        weights[:] = rows.data[part, :dim]
        if self._cutoff is not None:
            weights[np.abs(weights) < np.float32(self._cutoff)] = 0.0
        if "slots" in self._columns:
            self._columns["slots"][at] = rows.data[part, dim:]
        self._used += part.size

    def _write(self) -> None:
        tables = self.tables
        name = f"group-{tables.config.group:05d}-{len(tables.files):05d}.{self._format.name}"
        path = self._directory / name
        with os_errors(f"writing {path}"):
            with path.open("xb") as file:
                self._format.write(file, {name: column[: self._used] for name, column in self._columns.items()})
            sync_path(path)
            tables.files.append(TableFile(name, self._used, path.stat().st_size))
        tables.rows += self._used
        self._used = 0

    def finish(self) -> GroupTables:
        """Write what is left. Returns what there is of the group."""
        if self._used:
            self._write()
        return self.tables
