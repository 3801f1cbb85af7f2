"""`catalog.json`: what the store was at `flushed_lsn`. The journal holds what came after; together they are the state.

Replaced as a whole (written beside, synced, renamed), so it is never half a catalog.
"""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rockbed.errors import FormatTooNew, StorageCorrupt
from rockbed.storage.files import os_errors, write_atomically

FORMAT = 1
FILE = "catalog.json"


@dataclass(slots=True)
class Catalog:
    """flushed_lsn: every journal entry up to it is in rows/. clock_ms: the latest time the store has seen.

    groups: number -> config and counters as the engine writes them; clients: id -> request numbers applied.
    """

    flushed_lsn: int = 0
    clock_ms: int = 0
    groups: dict[int, dict[str, Any]] = field(default_factory=dict)
    clients: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Replace the file, durably."""
        body = {
            "flushed_lsn": self.flushed_lsn,
            "clock_ms": self.clock_ms,
            "groups": {str(number): group for number, group in sorted(self.groups.items())},
            "clients": self.clients,
        }
        text = json.dumps(body, sort_keys=True)
        whole = json.dumps(
            {"format": FORMAT, "crc32": zlib.crc32(text.encode()), "catalog": body}, sort_keys=True, indent=1
        )
        write_atomically(directory / FILE, whole.encode())

    @classmethod
    def read(cls, directory: Path) -> "Catalog":
        """Raises StorageCorrupt, FormatTooNew."""
        path = directory / FILE
        with os_errors(f"reading {path}"):
            raw = path.read_bytes()
        hint = "Nothing was changed; restore a checkpoint with PyStorage.restore"
        try:
            whole = json.loads(raw)
            version, body, crc = int(whole["format"]), whole["catalog"], whole["crc32"]
        except (ValueError, KeyError, TypeError) as error:
            raise StorageCorrupt(f"{path} is not a catalog ({error}). {hint}") from error
        if version > FORMAT:
            raise FormatTooNew(
                f"{path} has format {version}, this Rockbed reads up to {FORMAT}: open it with a newer Rockbed"
            )
        if version < 1 or zlib.crc32(json.dumps(body, sort_keys=True).encode()) != crc:
            raise StorageCorrupt(f"{path} does not match its checksum. {hint}")
        groups = {int(number): group for number, group in body["groups"].items()}
        return cls(body["flushed_lsn"], body["clock_ms"], groups, body["clients"])
