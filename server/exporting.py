"""Export: rows as table files that other programs read, and that an import takes back."""

import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rockbed.errors import StoreNotFound
from rockbed.reports import ExportReport
from rockbed.requests import ExportOptions
from rockbed.server.chains import Base
from rockbed.server.conditions import Conditions
from rockbed.server.digests import Earlier, entries_of, row_digests
from rockbed.server.group import Group
from rockbed.server.manifest import FILE, GroupTables, Manifest, Since, TableFile
from rockbed.server.scanning import Rows, scan
from rockbed.server.table_files import Columns, TableFormat, table_format
from rockbed.storage.checkpoint import Draft, draft_of
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
    if options.digests:
        engine.must_be_writable("export with digests")  # its rows would not come in order
    base = Base(path, groups, options)
    conditions = Conditions.of(options.max_age_s, options.min_count, options.min_norm)
    report = ExportReport(options.format)
    total = sum(group.counters.rows for group in groups)
    seen = 0
    with Draft(path) as draft:
        manifest = Manifest(options.format, [], base.since)
        for group in groups:
            writer = _Writer(draft, format, group, options, base.rows_of(group))
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
            tables = writer.finish()
            manifest.groups.append(tables)
            report.rows_written[group.number] = tables.rows
            report.file_bytes += sum(file.bytes for file in [*tables.files, *tables.removed])
            if base.since is not None:
                report.rows_removed[group.number] = sum(file.rows for file in tables.removed)
        report.sha256 = manifest.write(draft)
    return report


def remove(path: Path, sha256: str, may: Callable[[list[int]], object] = lambda groups: None) -> None:
    """See PyStorage.remove_export. may: called with the groups that it has; raises to refuse."""
    if path.is_symlink() or not (path / FILE).is_file() or Since.of(path).sha256 != sha256:
        raise StoreNotFound(f"{path} is not the export of SHA-256 {sha256!r}: nothing was removed")
    may([tables.config.group for tables in Manifest.read(path).groups])
    going = draft_of(path)
    with os_errors(f"removing {path}"):
        path.rename(going)  # so that nobody finds half of it
        sync_path(path.parent)
        shutil.rmtree(going)


class _Writer:
    """Collects a group's rows and writes them, a full file at a time."""

    def __init__(
        self, directory: Path, format: TableFormat, group: Group, options: ExportOptions, earlier: Earlier
    ) -> None:
        """earlier: rows that are not to be written again."""
        self._directory = directory
        self._format = format
        self._options = options
        self._dim = group.config.dim
        self._earlier = earlier
        self.tables = GroupTables(group.config, group.table.width - self._dim if options.slots else None)
        widths = self.tables.columns()
        row_bytes = sum(8 if width is None else 4 * width for width in widths.values())
        self._capacity = min(FILE_ROWS_MAX, FILE_BYTES_MAX // row_bytes)
        # reserved for a whole file; pages that no row touches take no memory
        self._columns: Columns = {
            name: np.empty(self._capacity, np.int64) if width is None else np.empty((self._capacity, width), np.float32)
            for name, width in widths.items()
        }
        self._used = 0
        self._gone: list[I64] = []
        self._digested = 0
        self._checksum = sha256()  # of the digests

    def add(self, rows: Rows, picked: I64) -> None:
        """Take the rows at the positions picked, int64[m]. rows: the next ones in RocksDB's order."""
        weights = rows.data[picked, : self._dim]
        if self._options.min_abs is not None:
            counts = (np.abs(weights) >= np.float32(self._options.min_abs)).any(axis=1)
            picked, weights = picked[counts], weights[counts]
        if self._options.cutoff is not None:
            weights[np.abs(weights) < np.float32(self._options.cutoff)] = 0.0
        found: Columns = {
            "key": rows.keys[picked],
            "weights": weights,
            "update_num": rows.update_num[picked],
            "update_time": rows.update_time[picked],
        }
        if "slots" in self._columns:
            found["slots"] = rows.data[picked, self._dim :]
        if self._options.digests:
            found = self._changed(found, int(rows.keys[-1]))
        start, size = 0, found["key"].size
        while start < size:
            end = min(size, start + self._capacity - self._used)
            for name, column in found.items():
                self._columns[name][self._used : self._used + end - start] = column[start:end]
            self._used += end - start
            start = end
            if self._used == self._capacity:
                self._write()

    def _changed(self, found: Columns, last: int) -> Columns:
        """Those rows that the earlier export does not stand for; what it has besides, up to a key, is gone."""
        digests = row_digests([column for name, column in found.items() if name != "key"])
        path = self._directory / self._digests_name
        with os_errors(f"writing {path}"), path.open("ab") as file:
            entries = entries_of(found["key"], digests)
            file.write(entries)
        self._checksum.update(entries)
        self._digested += digests.size
        changed, gone = self._earlier.compared(found["key"], digests, last)
        self._drop(gone)
        return {name: column[changed] for name, column in found.items()}

    def _drop(self, keys: I64) -> None:
        self._gone.append(keys)
        if sum(each.size for each in self._gone) >= FILE_ROWS_MAX:
            self._write_gone()

    @property
    def _digests_name(self) -> str:
        return f"group-{self.tables.config.group:05d}-digests.bin"

    def _write(self) -> None:
        name = f"group-{self.tables.config.group:05d}-{len(self.tables.files):05d}.{self._format.name}"
        columns = {name: column[: self._used] for name, column in self._columns.items()}
        self.tables.files.append(self._written(name, columns))
        self.tables.rows += self._used
        self._used = 0

    def _write_gone(self) -> None:
        name = f"group-{self.tables.config.group:05d}-removed-{len(self.tables.removed):05d}.{self._format.name}"
        keys = np.concatenate(self._gone)
        self._gone = []
        if keys.size:
            self.tables.removed.append(self._written(name, {"key": keys}))

    def _written(self, name: str, columns: Columns) -> TableFile:
        path = self._directory / name
        with os_errors(f"writing {path}"):
            with path.open("xb") as file:
                self._format.write(file, columns)
            sync_path(path)
            return TableFile(name, columns["key"].size, path.stat().st_size)

    def finish(self) -> GroupTables:
        """Write what is left. Returns what there is of the group."""
        if self._used:
            self._write()
        if self._options.digests:
            self._drop(self._earlier.rest())
            self._write_gone()
            path = self._directory / self._digests_name
            with os_errors(f"writing {path}"):
                path.touch()
                sync_path(path)
            self.tables.digests = TableFile(path.name, self._digested, path.stat().st_size)
            self.tables.digests_sha256 = self._checksum.hexdigest()
        return self.tables
