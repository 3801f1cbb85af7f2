"""damo-embedding's dump: weights in one flat file."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from rockbed.errors import InvalidConfig, UnknownName
from rockbed.server.scanning import Rows, scan
from rockbed.storage.checkpoint import must_be_new
from rockbed.storage.files import os_errors
from rockbed.types import Bool

if TYPE_CHECKING:
    from rockbed.server.engine import Engine
    from rockbed.server.group import Group

CONDITIONS = ("expire_days", "min_count", "group")


def _checked(condition: Any) -> dict[str, int]:
    given = {} if condition is None else dict(condition if isinstance(condition, Mapping) else condition.as_dict())
    unknown = sorted(set(given) - set(CONDITIONS))
    if unknown:
        raise UnknownName(f"dump condition {unknown[0]!r} is unknown. Known: {', '.join(CONDITIONS)}")
    wrong = [f"{n} is {v!r}" for n, v in given.items() if isinstance(v, bool) or not isinstance(v, int) or v < 0]
    if wrong:
        raise InvalidConfig(f"dump: {'; '.join(wrong)}: give whole numbers of at least 0")
    return given


def _wanted(group: "Group", rows: Rows, condition: dict[str, int], now_ms: int) -> Bool:
    wanted = rows.update_time > group.oldest_ms(now_ms)
    if "expire_days" in condition:
        wanted &= now_ms - rows.update_time <= condition["expire_days"] * 86_400_000
    if "min_count" in condition:
        wanted &= rows.update_num >= condition["min_count"]
    return wanted


def dump(engine: "Engine", path: Path, condition: Any) -> int:
    """See PyStorage.dump."""
    engine.check_open()
    conditions = _checked(condition)
    must_be_new(path)
    numbers = [conditions["group"]] if "group" in conditions else sorted(engine.groups)
    groups = [engine.group(number) for number in numbers]
    part = path.with_name(path.name + ".new")
    try:
        with os_errors(f"writing {path}"):
            with part.open("wb") as file:
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
        layout = np.dtype([("key", "<i8"), ("group", "<i4"), ("weights", "<f4", (group.config.dim,))])
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
