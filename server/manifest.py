"""manifest.json of an export: which groups it has, with which settings, in which files."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rockbed._version import __version__
from rockbed.config import GroupConfig, whole_problems
from rockbed.errors import FormatTooNew, InvalidConfig, RockbedError, StorageCorrupt
from rockbed.server.rules import rules_of
from rockbed.storage.files import os_errors, write_atomically

FILE = "manifest.json"
FORMAT_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")  # of a file: an export from elsewhere names none outside of it


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of a group."""

    name: str
    rows: int
    bytes: int


@dataclass(slots=True)
class GroupTables:
    """A group's share. slots: float32 values of the optimizer's state a row, None where they were left out."""

    config: GroupConfig
    slots: int | None
    rows: int = 0
    files: list[TableFile] = field(default_factory=list)

    def columns(self) -> dict[str, int | None]:
        """The columns of each file, as read_columns takes them."""
        columns = {"key": None, "weights": self.config.dim, "update_num": None, "update_time": None}
        # no format has a width of 0 that all readers take
        return {**columns, "slots": self.slots} if self.slots else columns


@dataclass(slots=True)
class Manifest:
    """What an export holds. format: of its files, by name."""

    format: str
    groups: list[GroupTables]

    def write(self, directory: Path) -> None:
        """Write manifest.json."""
        groups = [{**asdict(group), "config": group.config.to_json()} for group in self.groups]
        content = {
            "format_version": FORMAT_VERSION,
            "rockbed_version": __version__,
            "format": self.format,
            "groups": groups,
        }
        write_atomically(directory / FILE, json.dumps(content, indent=1).encode())

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read manifest.json, and compare it with the sizes of the files.

        Raises FormatTooNew, StorageCorrupt with every problem found, and the disk's errors.
        """
        path = directory / FILE
        with os_errors(f"reading {path}"):
            content = path.read_bytes()
        try:
            found = json.loads(content)
            version = found["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise StorageCorrupt(f"{path} is no manifest of an export ({error!r}): copy or export it again") from None
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise FormatTooNew(
                f"{path} has format version {version!r}, this Rockbed reads up to {FORMAT_VERSION}: import it with a "
                f"newer Rockbed (it was written by {found.get('rockbed_version')})"
            )
        try:
            manifest = cls(found["format"], [_group(each) for each in found["groups"]])
            problems = list(manifest._problems(directory))
        except (KeyError, TypeError, ValueError) as error:  # InvalidConfig of a group's settings is a ValueError
            problems = [str(error) if isinstance(error, RockbedError) else repr(error)]
        if problems:
            raise StorageCorrupt(f"{path} is damaged: {'; '.join(problems)}. Copy or export it again")
        return manifest

    def _problems(self, directory: Path) -> Iterator[str]:
        if not isinstance(self.format, str):
            yield f"format is {self.format!r}, not a str"
        numbers = [group.config.group for group in self.groups]
        if len(set(numbers)) < len(numbers):
            yield f"a group stands there twice: {numbers}"
        for group in self.groups:
            number, state = group.config.group, rules_of(group.config)[0].state_width(group.config.dim)
            if group.slots not in (None, state):
                yield f"group {number} has {group.slots!r} slots a row, its optimizer {state}"
            if group.rows != sum(file.rows for file in group.files):
                yield f"group {number} has {group.rows} rows, its files {sum(file.rows for file in group.files)}"
            for file in group.files:
                yield from _file_problems(directory, file)


def _group(found: dict[str, Any]) -> GroupTables:
    files = [TableFile(**file) for file in found["files"]]
    for file in files:
        problems = [*whole_problems("rows", file.rows, 1, 2**62), *whole_problems("bytes", file.bytes, 1, 2**62)]
        if not isinstance(file.name, str) or not _NAME.fullmatch(file.name):
            problems.append(f"name is {file.name!r}, not that of a file beside the manifest")
        if problems:
            raise InvalidConfig(f"file {file.name!r}: {'; '.join(problems)}")
    return GroupTables(GroupConfig.from_json(found["config"]), found["slots"], found["rows"], files)


def _file_problems(directory: Path, file: TableFile) -> Iterator[str]:
    path = directory / file.name
    if not path.is_file():
        yield f"{file.name} is not there"
    elif path.stat().st_size != file.bytes:
        yield f"{file.name} has {path.stat().st_size} bytes instead of {file.bytes}"
