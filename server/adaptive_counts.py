"""What the store counts about an adaptive variable, at its exact part."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rockbed.config import GroupConfig, whole_problems
from rockbed.errors import InvalidConfig
from rockbed.server.distinct import DistinctCount
from rockbed.server.frequency import BloomFrequencies, Frequencies, make_frequency
from rockbed.types import I64, AnyArray, Bool

EXACT = "exact"
STATIC = "static"
SLOTS = ("copy", "fresh")
"""What an exact row begins with beside the weights of its static row: that row's slots and update count too, or those
of a new row."""


def part_of(config: GroupConfig) -> str | None:
    """Which part of an adaptive variable a group is, None where it is none."""
    variable = config.variable or {}
    return variable.get("part") if variable.get("kind") == "adaptive" else None


class AdaptiveCounts:
    """Not thread-safe: the lock of the group is held.

    Saved at a flush: what lookups have added since then is lost in a crash, but for the number of copies, which the
    journal has.
    """

    def __init__(self, frequencies: Frequencies | BloomFrequencies | None) -> None:
        self.frequencies = frequencies
        self.changed = False  # since it was saved
        self._seen = DistinctCount()
        self._copies = 0
        self._copies_lsn = 0  # of the journal entry counted last

    @classmethod
    def of(cls, config: GroupConfig) -> "AdaptiveCounts | None":
        """None for a group that is no exact part. Raises InvalidConfig, UnknownName."""
        if part_of(config) != EXACT:
            return None
        variable = config.variable or {}
        problems = whole_problems("buckets", variable.get("buckets"), 1, 1 << 62)
        if variable.get("slots") not in SLOTS:
            problems.append(f"slots is {variable.get('slots')!r}, not one of {', '.join(map(repr, SLOTS))}")
        if problems:
            raise InvalidConfig(f"group {config.group}, the exact part of an adaptive variable: {'; '.join(problems)}")
        threshold = variable.get("threshold")
        return cls(None if threshold is None else make_frequency(threshold).build(config.group, config.seed))

    def changed_to(self, config: GroupConfig) -> "AdaptiveCounts | None":
        """The same counts under what may be another threshold, or none."""
        new = AdaptiveCounts.of(config)
        if new is not None:
            new.restore(self.state())
            new.changed = True
        return new

    def saw(self, keys: I64) -> None:
        """Ids of a training lookup. int64[n]."""
        self._seen.note(keys)
        self.changed = True

    def frequent(self, keys: I64, *, count: bool) -> Bool:
        """Which ids are frequent. keys: int64[n], repeats allowed; count: these are occurrences. Needs a threshold."""
        assert self.frequencies is not None
        distinct, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        found = self.frequencies.count(distinct, counts) if count else self.frequencies.frequent(distinct)
        return found[inverse]

    def copied(self, rows: int, lsn: int) -> None:
        """Rows were copied from the static part, by the journal entry `lsn`."""
        if lsn > self._copies_lsn:
            self._copies, self._copies_lsn = self._copies + rows, lsn
            self.changed = True

    def statistics(self) -> dict[str, int]:
        """For `stats()`; docs/adaptive.md has the meaning of every name."""
        found = {"ids_seen": self._seen.estimate(), "migrated": self._copies, "counts_bytes": 0}
        if self.frequencies is None:
            return found
        return {
            **found,
            "ids_counted": self.frequencies.ids,
            "ids_frequent": self.frequencies.frequent_ids,
            "ids_left": self.frequencies.left,
            "counts_bytes": self.frequencies.memory_bytes(),
        }

    def state(self) -> dict[str, AnyArray]:
        """All of it, copied, for numpy.savez."""
        counts: dict[str, Any] = {} if self.frequencies is None else self.frequencies.state()
        copies = np.array([self._copies, self._copies_lsn])
        return {**counts, "seen": self._seen.registers.copy(), "copies": copies}

    def restore(self, state: Mapping[str, AnyArray]) -> None:
        """The reverse of `state`. Raises ValueError or KeyError where the arrays are damaged."""
        self._seen.restore(state["seen"])
        self._copies, self._copies_lsn = (int(each) for each in state["copies"])
        if self.frequencies is not None and "rule" in state:
            self.frequencies.restore(state)
