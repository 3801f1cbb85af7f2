"""Room in memory for rows that are wanted now."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from rockbed.errors import BatchTooLarge
from rockbed.interrupts import Uninterrupted
from rockbed.server.group import SPACE_TRIES, Group
from rockbed.storage.hot import NeedSpace

if TYPE_CHECKING:
    from rockbed.server.engine import Engine

_Result = TypeVar("_Result")
_LOOK_S = 0.01  # between looks at what another write-back has written
_OWN, _OF_OTHERS = 16, 1  # of SPACE_TRIES


def with_space(engine: "Engine", call: Callable[[], _Result], doing: str) -> _Result:
    """What `call` returns, which is tried again with more room when it raises NeedSpace. No lock may be held.

    doing: begins the message, "the push". Raises BatchTooLarge.
    """
    tries = 0
    while True:
        try:
            return call()
        except NeedSpace as need:
            if tries >= SPACE_TRIES:
                raise BatchTooLarge(
                    f"{doing} needs {need.rows} more rows of {need.table.row_bytes} bytes in memory at once than "
                    f"memory_budget={engine.config.memory_budget} has room for: send smaller batches, or open the "
                    "store with a larger memory_budget"
                    + (" (read_only keeps all replayed rows in memory)" if engine.config.read_only else "")
                ) from None
            tries += make_space(engine, need)


def make_space(engine: "Engine", need: NeedSpace) -> int:
    """Write dirty rows back so that they can be evicted, or take memory from another group.

    No more than is needed: the rest of the rows is for the background thread, not for whoever waits here. Returns what
    counts as tries: less where another write-back has made the room, which others may have taken before the caller.
    """
    write_back, seen = engine.write_back, engine.write_back.rows_written

    def made() -> bool:
        nonlocal seen
        before, seen = seen, write_back.rows_written
        return seen != before and need.table.clean_count() >= need.rows

    with engine.memory_stall.waiting():
        while not _is_free(write_back.mutex):
            if made():
                return _OF_OTHERS
        with write_back.mutex:
            if made():
                return _OF_OTHERS
            group = next((g for g in list(engine.groups.values()) if g.table is need.table), None)
            if group is None:
                return _OWN  # dropped meanwhile, as the caller will find
            dirty = not engine.config.read_only and write_group(engine, group, need.rows) > 0
            if not dirty:
                _take_memory(engine, group, need.rows)
    return _OWN


def _is_free(mutex: "threading.RLock") -> bool:
    with Uninterrupted():  # a signal's handler that raises would leave it locked
        free = mutex.acquire(timeout=_LOOK_S)
        if free:
            mutex.release()
    return free


def write_group(engine: "Engine", group: Group, enough: int | None = None) -> int:
    """Write to rows/ what is newer in memory, and before that on the device. Returns how many rows. No lock of a group
    may be held. enough: of memory's rows, no more runs than hold so many."""
    written = 0
    with engine.write_back.mutex:
        while group.tier is not None and not _handed_down(group):
            written += engine.write_back.write(group)
        return written + engine.write_back.write(group, enough)


def _handed_down(group: Group) -> bool:
    with group.lock:
        try:
            if group.tier is not None:
                group.tier.hand_down()
        except NeedSpace:  # for what is left; each time some rows at least have got to memory
            return False
    return True


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
