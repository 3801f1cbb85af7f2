"""How groups share the memory budget once it is full: memory moves to where rows are read from disk again and again."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rockbed.server.engine import Engine
    from rockbed.server.group import Group

_FULL = 0.95  # of the budget: below it every group still finds free memory
_SHARE = 0.05  # of the budget moved at a time: enough to get anywhere, too little to swing
_ADVANTAGE = 2.0  # the taker's use of a byte must be this many times the giver's


@dataclass(slots=True)
class _Seen:
    """Counters of a group at the last turn."""

    disk_hits: int = 0
    keys: int = 0


class Rebalancer:
    """Called now and then by the background thread."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._seen: dict[int, _Seen] = {}

    def turn(self) -> int:
        """Move some memory to the group that reads most rows from disk, from those that use their bytes least, if that
        is worth it. Returns the bytes that were made free."""
        engine, budget = self._engine, self._engine.budget
        groups = dict(engine.groups)
        wants: dict[int, int] = {}
        uses: dict[int, float] = {}
        for number, group in groups.items():
            keys = group.counters.lookup_keys + group.counters.push_keys
            last = self._seen.get(number, _Seen())
            size = max(1, group.table.high * group.table.row_bytes)
            wants[number] = group.counters.disk_hits - last.disk_hits
            uses[number] = (keys - last.keys) / size
            self._seen[number] = _Seen(group.counters.disk_hits, keys)
        if budget.used_bytes < _FULL * budget.limit_bytes or len(groups) < 2:
            return 0
        taker = max(wants, key=lambda n: wants[n])
        if wants[taker] == 0:
            return 0
        wanted, freed = int(_SHARE * budget.limit_bytes), 0
        for giver in sorted((n for n in groups if n != taker), key=lambda n: uses[n]):
            if freed >= wanted or uses[taker] < _ADVANTAGE * uses[giver]:
                break
            freed += self._take(groups[giver], wanted - freed)
        return freed

    def _take(self, giver: "Group", wanted: int) -> int:
        rows = min(-(-wanted // giver.table.row_bytes), giver.table.high // 2)
        with self._engine.write_back.mutex:
            self._engine.write_back.write(giver)
            with giver.lock:
                return giver.table.give_way(rows) * giver.table.row_bytes
