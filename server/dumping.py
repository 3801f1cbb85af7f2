"""damo-embedding's dump: weights in one flat file."""

import struct
import uuid
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from rockbed.errors import InvalidConfig, StoreExists, StoreNotFound, UnknownName
from rockbed.server.scanning import Rows, scan
from rockbed.storage.files import os_errors
from rockbed.types import Bool

if TYPE_CHECKING:
    from rockbed.server.engine import Engine
    from rockbed.server.group import Group

CONDITIONS = ("expire_days", "min_count", "group")


def record_layout(dim: int) -> "np.dtype[np.void]":
    """A row in the file."""
    return np.dtype([("key", "<i8"), ("group", "<i4"), ("weights", "<f4", (dim,))])


def _checked(given: Mapping[str, Any]) -> dict[str, int]:
    unknown = sorted(map(str, set(given) - set(CONDITIONS)))
    if unknown:
        raise UnknownName(f"dump condition {unknown[0]!r} is unknown. Known: {', '.join(CONDITIONS)}")
    wrong = [f"{n} is {v!r}" for n, v in given.items() if isinstance(v, bool) or not isinstance(v, Integral) or v < 0]
    if wrong:
        raise InvalidConfig(f"dump: {'; '.join(wrong)}: give whole numbers of at least 0")
    return {name: int(value) for name, value in given.items()}


def _wanted(group: "Group", rows: Rows, condition: dict[str, int], now_ms: int) -> Bool:
    wanted = rows.update_time > group.oldest_ms(now_ms)
    if "expire_days" in condition:
        wanted &= now_ms - rows.update_time <= condition["expire_days"] * 86_400_000
    if "min_count" in condition:
        wanted &= rows.update_num >= condition["min_count"]
    return wanted


def dump(engine: "Engine", path: Path, condition: Mapping[str, Any]) -> int:
    """See PyStorage.dump."""
    engine.check_open()
    conditions = _checked(condition)
    if path.exists():
        raise StoreExists(f"{path} is there already: choose a new path, or remove it first")
    if not path.parent.is_dir():
        raise StoreNotFound(f"the directory {path.parent} does not exist: create it first")
    numbers = [conditions["group"]] if "group" in conditions else sorted(engine.groups)
    groups = [engine.group(number) for number in numbers]
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with os_errors(f"writing {path}"):
            with part.open("xb") as file:
                counts = _write(engine, file, groups, conditions)
            part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return sum(counts)


def _write(engine: "Engine", file: BinaryIO, groups: "list[Group]", conditions: dict[str, int]) -> list[int]:
    n = len(groups)
    file.write(struct.pack(f"<i{n}i{n}i", n, *(g.number for g in groups), *(g.config.dim for g in groups)))
    counts_at = file.tell()
    file.write(bytes(8 * n))
    counts = []
    for group in groups:
        layout = record_layout(group.config.dim)
        count = 0
        for rows in scan(engine, group):
            wanted = _wanted(group, rows, conditions, engine.now_ms())
            records = np.empty(int(wanted.sum()), layout)
            records["key"], records["group"] = rows.keys[wanted], group.number
            records["weights"] = rows.data[wanted, : group.config.dim]
            file.write(records.tobytes())
            count += records.size
        counts.append(count)
    file.seek(counts_at)
    file.write(struct.pack(f"<{n}q", *counts))
    return counts
