"""Room in memory for rows that are wanted now."""

from typing import TYPE_CHECKING

from rockbed.server.group import Group
from rockbed.storage.hot import NeedSpace

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


def make_space(engine: "Engine", need: NeedSpace) -> None:
    """Write dirty rows back so that they can be evicted, or take memory from another group."""
    with engine.write_back.mutex:
        group = next(g for g in list(engine.groups.values()) if g.table is need.table)
        dirty = not engine.config.read_only and engine.write_back.write(group) > 0
        if not dirty:
            _take_memory(engine, group, need.rows)


def _take_memory(engine: "Engine", group: Group, rows: int) -> None:
    others = [g for g in list(engine.groups.values()) if g is not group and g.table.high > 0]
    wanted = (rows + group.table.count // 8) * group.table.row_bytes
    for other in sorted(others, key=lambda g: -g.table.high * g.table.row_bytes):
        if not engine.config.read_only:
            engine.write_back.write(other)
        with other.lock:
            wanted -= other.table.give_way(-(-wanted // other.table.row_bytes)) * other.table.row_bytes
        if wanted <= 0:
            break
