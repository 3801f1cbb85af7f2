"""Exports that go on from one another: a whole one, and after it what has changed since, and since that."""

from collections.abc import Sequence
from pathlib import Path

from rockbed.errors import GroupConflict, InvalidConfig, StorageCorrupt, StoreNotFound
from rockbed.requests import ExportOptions
from rockbed.server.digests import Earlier, must_be_whole
from rockbed.server.group import Group
from rockbed.server.manifest import FILE, GroupTables, Manifest, Since


def chain_of(path: Path) -> list[Path]:
    """The exports that an export stands for, from the whole one to itself. What is no export is a chain of its own.

    Raises StoreNotFound, StorageCorrupt, FormatTooNew, and the disk's errors.
    """
    chain = [path]
    while (chain[-1] / FILE).is_file():
        since = Manifest.read(chain[-1]).since
        if since is None:
            break
        before = chain[-1].resolve().parent / since.name
        if before in (each.resolve() for each in chain):
            raise StorageCorrupt(f"{chain[-1]} goes on from {since.name}, which goes on from it: export anew")
        if not (before / FILE).is_file():
            raise StoreNotFound(f"{chain[-1]} goes on from {before}, which is no export: put it back beside it")
        if Since.of(before) != since:
            raise StorageCorrupt(
                f"{before} is not the export that {chain[-1].name} goes on from, but another one of its name: put that "
                "one back"
            )
        chain.append(before)
    return chain[::-1]


class Base:
    """The export that a new one goes on from, or nothing."""

    def __init__(self, target: Path, groups: Sequence[Group], options: ExportOptions) -> None:
        """Raises InvalidConfig, GroupConflict, StoreNotFound, StorageCorrupt, FormatTooNew, and the disk's errors."""
        self.since: Since | None = None
        self._tables: dict[int, GroupTables] = {}
        if options.since is None:
            return
        self._path = Path(options.since)
        if self._path.resolve().parent != target.resolve().parent:
            raise InvalidConfig(f"{target} goes on from {self._path}: exports that do lie side by side")
        if not (self._path / FILE).is_file():
            raise StoreNotFound(f"{self._path} is no export (it has no {FILE}): give the path of one with digests")
        self.since = Since.of(self._path)
        self._tables = {tables.config.group: tables for tables in Manifest.read(self._path).groups}
        numbers = {group.number for group in groups}
        if not self._tables.keys() <= numbers:
            left = sorted(self._tables.keys() - numbers)
            raise InvalidConfig(f"{self._path} has group {left[0]}, this export would not: make a whole export")
        for group in groups:
            if group.number in self._tables:
                self._must_fit(group, self._tables[group.number], options)

    def _must_fit(self, group: Group, tables: GroupTables, options: ExportOptions) -> None:
        if tables.digests is None:
            raise InvalidConfig(f"{self._path} was written without digests=True: nothing can be compared with it")
        if (tables.slots is not None) != options.slots:
            raise InvalidConfig(
                f"{self._path} was written with slots={tables.slots is not None}, and exports that go on from it are, "
                "too"
            )
        was, now = tables.config, group.config
        if (was.dim, was.optimizer["name"], was.name) != (now.dim, now.optimizer["name"], now.name):
            raise GroupConflict(
                f"group {group.number} was dropped and made anew with other settings since {self._path}: make a whole "
                "export"
            )
        if tables.digests_sha256 is not None:
            must_be_whole(self._path / tables.digests.name, tables.digests_sha256)

    def rows_of(self, group: Group) -> Earlier:
        """The rows of a group that the export stands for."""
        tables = self._tables.get(group.number)
        return Earlier(None if tables is None or tables.digests is None else self._path / tables.digests.name)
