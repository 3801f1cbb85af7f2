"""Where an import takes rows from: a directory that an export wrote, or a file of damo-embedding's dump."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from rockbed.config import DIM_MAX, GROUPS, GroupConfig
from rockbed.errors import StorageCorrupt, StoreNotFound
from rockbed.requests import PutRows
from rockbed.server.dumping import record_layout
from rockbed.server.manifest import FILE, GroupTables, Manifest, TableFile
from rockbed.server.table_files import TableFormat, read_columns, table_format
from rockbed.storage.checkpoint import is_store
from rockbed.storage.files import os_errors
from rockbed.types import I64

DUMP_ROWS = 1 << 16  # of a dump that are read at a time


class Source(Protocol):
    """The rows of one group. Reading them raises StorageCorrupt, and the disk's errors, with the file's name."""

    number: int
    dim: int
    rows: int
    config: GroupConfig | None
    """The settings of the group, where the source knows them."""
    slots: int | None
    """float32 values of the optimizer's state that come with a row; None: weights only."""
    goes_on: bool
    """Whether it holds only what changed since another export."""

    def tables(self) -> Iterator[tuple[str, PutRows]]:
        """All rows, some at a time, each with the file they are from."""

    def key_arrays(self) -> Iterator[I64]:
        """The keys alone, in the same parts."""

    def removed(self) -> Iterator[I64]:
        """Keys that have no row any more, some at a time."""


def sources_of(path: Path) -> list[Source]:
    """What can be imported from a path, sorted by group.

    Raises StoreNotFound, StorageCorrupt, FormatTooNew, UnknownName, MissingPackage, and the disk's errors.
    """
    found: list[Source]
    if path.is_file():
        found = [*_dumped_groups(path)]
    elif (path / FILE).is_file():
        manifest = Manifest.read(path)
        format = table_format(manifest.format)
        goes_on = manifest.since is not None
        found = [ExportedGroup(path, format, tables, goes_on) for tables in manifest.groups]
    elif is_store(path):
        raise StoreNotFound(f"{path} is a store or a checkpoint, not an export: open it, or PyStorage.restore it")
    else:
        raise StoreNotFound(
            f"{path} is no export (it has no {FILE}) and no dump: give the path that export() was given"
        )
    return sorted(found, key=lambda source: source.number)


class ExportedGroup:
    """A group of an export."""

    def __init__(self, directory: Path, format: TableFormat, tables: GroupTables, goes_on: bool) -> None:
        self.number = tables.config.group
        self.dim = tables.config.dim
        self.rows = tables.rows
        self.config: GroupConfig | None = tables.config
        self.slots = tables.slots
        self.goes_on = goes_on
        self._directory = directory
        self._format = format
        self._tables = tables

    def tables(self) -> Iterator[tuple[str, PutRows]]:
        for file in self._tables.files:
            c = read_columns(self._format, self._directory / file.name, file.rows, self._tables.columns())
            yield file.name, PutRows(c["key"], c["weights"], c.get("slots"), c["update_num"], c["update_time"])

    def key_arrays(self) -> Iterator[I64]:
        return self._keys_of(self._tables.files)

    def removed(self) -> Iterator[I64]:
        return self._keys_of(self._tables.removed)

    def _keys_of(self, files: list[TableFile]) -> Iterator[I64]:
        for file in files:
            yield read_columns(self._format, self._directory / file.name, file.rows, {"key": None})["key"]


@dataclass(slots=True)
class DumpedGroup:
    """A group of a damo-embedding dump, whose layout PyStorage.dump describes."""

    number: int
    dim: int
    rows: int
    path: Path
    offset: int  # of its first record in the file, in bytes
    config: GroupConfig | None = None
    slots: int | None = None
    goes_on: bool = False

    def tables(self) -> Iterator[tuple[str, PutRows]]:
        layout = record_layout(self.dim)
        with os_errors(f"reading {self.path}"), self.path.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, self.rows, DUMP_ROWS):
                records = np.frombuffer(
                    _exactly(file, layout.itemsize * min(DUMP_ROWS, self.rows - start), self.path), layout
                )
                if (records["group"] != self.number).any():
                    raise StorageCorrupt(
                        f"{self.path}: a row of group {self.number} says that it is of group "
                        f"{records['group'][records['group'] != self.number][0]}: the dump is damaged"
                    )
                yield self.path.name, PutRows(records["key"].copy(), records["weights"].copy())

    def key_arrays(self) -> Iterator[I64]:
        return (rows.keys for _, rows in self.tables())

    def removed(self) -> Iterator[I64]:
        return iter(())


def _exactly(file: BinaryIO, size: int, path: Path) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise StorageCorrupt(f"{path} ends too early: it is no dump, or damaged")
    return data


def _dumped_groups(path: Path) -> Iterator[DumpedGroup]:
    with os_errors(f"reading {path}"), path.open("rb") as file:
        size = path.stat().st_size
        (n,) = struct.unpack("<i", _exactly(file, 4, path))
        if not 0 <= n <= GROUPS:
            raise StorageCorrupt(f"{path} would have {n} groups: it is no dump, or damaged")
        numbers, dims, counts = (
            np.frombuffer(_exactly(file, n * np.dtype(kind).itemsize, path), kind) for kind in ("<i4", "<i4", "<i8")
        )
        offset = file.tell()
    if (
        np.unique(numbers).size < n
        or ((numbers < 0) | (numbers >= GROUPS) | (dims < 1) | (dims > DIM_MAX) | (counts < 0)).any()
    ):
        raise StorageCorrupt(f"{path} has groups that cannot be: it is no dump, or damaged")
    for number, dim, count in zip(numbers.tolist(), dims.tolist(), counts.tolist(), strict=True):
        yield DumpedGroup(number, dim, count, path, offset)
        offset += count * record_layout(dim).itemsize
    if offset != size:
        raise StorageCorrupt(f"{path} has {size} bytes, its head says {offset}: it is no dump, or damaged")
