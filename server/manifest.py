"""manifest.json of an export: which groups it has, with which settings, in which files."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from rockbed._version import __version__
from rockbed.config import GroupConfig, whole_problems
from rockbed.errors import FormatTooNew, InvalidConfig, RockbedError, StorageCorrupt
from rockbed.server.rules import rules_of
from rockbed.storage.files import os_errors, write_atomically

FILE = "manifest.json"
FORMAT_VERSION = 2
WHOLE_VERSION = 1  # of exports that are whole, which every reader understands
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")  # of a file: an export from elsewhere names none outside of it


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of a group."""

    name: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Since:
    """The export that another one goes on from: its directory's name, beside that one, and the SHA-256 of its manifest,
    in hexadecimal digits."""

    name: str
    sha256: str

    @classmethod
    def of(cls, directory: Path) -> "Since":
        """Raises the disk's errors."""
        with os_errors(f"reading {directory / FILE}"):
            return cls(directory.resolve().name, sha256((directory / FILE).read_bytes()).hexdigest())


@dataclass(slots=True)
class GroupTables:
    """A group's share. slots: float32 values of the optimizer's state a row, None where they were left out.

    removed: files of keys alone, which had a row in the export that this one goes on from. digests: see
    rockbed.server.digests, of all rows that this export and those before it stand for; digests_sha256: of that file, in
    hexadecimal digits, None where it was written without.
    """

    config: GroupConfig
    slots: int | None
    rows: int = 0
    files: list[TableFile] = field(default_factory=list)
    removed: list[TableFile] = field(default_factory=list)
    digests: TableFile | None = None
    digests_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As in the manifest, which has no word of what there is not."""
        return {
            name: value
            for name, value in {**asdict(self), "config": self.config.to_json()}.items()
            if name not in ("removed", "digests", "digests_sha256") or value
        }

    def columns(self) -> dict[str, int | None]:
        """The columns of each file, as read_columns takes them."""
        columns = {"key": None, "weights": self.config.dim, "update_num": None, "update_time": None}
        # no format has a width of 0 that all readers take
        return {**columns, "slots": self.slots} if self.slots else columns


@dataclass(slots=True)
class Manifest:
    """What an export holds. format: of its files, by name. since: the export that it goes on from, if any."""

    format: str
    groups: list[GroupTables]
    since: "Since | None" = None

    def write(self, directory: Path) -> str:
        """Write manifest.json. Returns its SHA-256 in hexadecimal digits."""
        content = {
            "format_version": FORMAT_VERSION if self.since else WHOLE_VERSION,
            "rockbed_version": __version__,
            "format": self.format,
            "groups": [group.to_json() for group in self.groups],
        }
        if self.since is not None:
            content["since"] = asdict(self.since)
        text = json.dumps(content, indent=1).encode()
        write_atomically(directory / FILE, text)
        return sha256(text).hexdigest()

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
            since = Since(**found["since"]) if "since" in found else None
            manifest = cls(found["format"], [_group(each) for each in found["groups"]], since)
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
            for file in [*group.files, *group.removed, *([group.digests] if group.digests else [])]:
                yield from _file_problems(directory, file)
        if self.since is not None and not _is_beside(self.since.name):
            yield f"since is {self.since.name!r}, not the name of an export beside this one"


def _is_beside(name: Any) -> bool:
    """Whether it can be the name of a directory beside another one: users give these names, whatever they like."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _group(found: dict[str, Any]) -> GroupTables:
    files, removed = ([_table_file(file, 1) for file in found.get(name, [])] for name in ("files", "removed"))
    digests = _table_file(found["digests"], 0) if "digests" in found else None
    config = GroupConfig.from_json(found["config"])
    checksum = found.get("digests_sha256")
    return GroupTables(config, found["slots"], found["rows"], files, removed, digests, checksum)


def _table_file(found: dict[str, Any], least: int) -> TableFile:
    file = TableFile(**found)
    problems = [*whole_problems("rows", file.rows, least, 2**62), *whole_problems("bytes", file.bytes, least, 2**62)]
    if not isinstance(file.name, str) or not _NAME.fullmatch(file.name):
        problems.append(f"name is {file.name!r}, not that of a file beside the manifest")
    if problems:
        raise InvalidConfig(f"file {file.name!r}: {'; '.join(problems)}")
    return file


def _file_problems(directory: Path, file: TableFile) -> Iterator[str]:
    path = directory / file.name
    if not path.is_file():
        yield f"{file.name} is not there"
    elif path.stat().st_size != file.bytes:
        yield f"{file.name} has {path.stat().st_size} bytes instead of {file.bytes}"
