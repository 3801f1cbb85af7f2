"""What long calls report, from the engine and over the wire."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any

import numpy as np

from rockbed.types import F32, I64, U8, Bool


@dataclass(slots=True)
class ShrinkReport:
    """What shrink removed, or would remove. removed: group -> reason -> rows; a row counts under the first reason that
    fits, in the order expired, age, count, norm, step, returned; the last two stand there if they were asked for."""

    dry_run: bool
    rows_seen: int = 0
    removed: dict[int, dict[str, int]] = field(default_factory=dict)

    @property
    def rows_removed(self) -> int:
        """Rows of all groups and reasons."""
        return sum(sum(reasons.values()) for reasons in self.removed.values())


@dataclass(slots=True)
class CheckReport:
    """problems: sentences, empty when all is well. rows: group -> rows found, expired ones included.

    journal_entries: entries that a crash now would replay.
    """

    problems: list[str] = field(default_factory=list)
    rows: dict[int, int] = field(default_factory=dict)
    journal_entries: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(slots=True)
class ExportReport:
    """What an export wrote. rows_seen, rows_written: by group, expired rows seen included; file_bytes: in all.

    rows_removed: by group, of an export since another one, the keys that had a row in that one and have none now.
    sha256: of manifest.json, in hexadecimal digits; it tells this export from any other that has its name later.
    """

    format: str
    rows_seen: dict[int, int] = field(default_factory=dict)
    rows_written: dict[int, int] = field(default_factory=dict)
    file_bytes: int = 0
    rows_removed: dict[int, int] = field(default_factory=dict)
    sha256: str = ""


@dataclass(slots=True)
class ImportReport:
    """What an import did. rows_read, rows_written: by group; fewer are written where mode="keep" found rows.

    groups_created: those that were not there before. rows_removed: by group, because the export says so.
    rows_elsewhere: rows, and keys to be removed, of slots that were not asked for; counted in a dry run, too.
    """

    mode: str
    rows_read: dict[int, int] = field(default_factory=dict)
    rows_written: dict[int, int] = field(default_factory=dict)
    groups_created: list[int] = field(default_factory=list)
    rows_removed: dict[int, int] = field(default_factory=dict)
    rows_elsewhere: int = 0


class RowStatus(IntEnum):
    """What there is for a key."""

    ABSENT = 0  # never seen, as far as is known
    PRESENT = 1
    EXPIRED = 2  # its row is there still, and nobody sees it
    REMOVED = 3  # by shrink, or because it expired: RowReport.removed_by
    NOT_ADMITTED = 4  # seen, but not often enough for a row
    PADDING = 5  # the group's padding key, which has no row


@dataclass(slots=True)
class RowReport:
    """What is known of keys, each array by position.

    keys: int64[n]; status: uint8[n] of RowStatus; weights: float32[n, dim], slots: float32[n, state], zeros without a
    row; slot_widths: name -> columns of slots, in their order; update_num: int64[n]; update_time_ms: int64[n] since
    1970; expires_at_ms: int64[n], 0 = never; in_memory: bool[n], otherwise on disk only; dirty: bool[n], newer in
    memory than on disk; seen: int64[n] sightings of a key without a row, -1 = not known, of `needed` (0 = chance
    decides, or the group admits every key); removed_at_ms: int64[n], 0 = not known; removed_by: reasons, "" likewise;
    now_ms: when this was.
    """

    group: int
    keys: I64
    status: U8
    weights: F32
    slots: F32
    slot_widths: dict[str, int]
    update_num: I64
    update_time_ms: I64
    expires_at_ms: I64
    in_memory: Bool
    dirty: Bool
    seen: I64
    needed: int
    removed_at_ms: I64
    removed_by: list[str]
    now_ms: int = 0

    @classmethod
    def empty(cls, group: int, keys: I64, dim: int, slot_widths: dict[str, int]) -> "RowReport":
        """Nothing known yet."""
        n = keys.size
        numbers = [np.zeros(n, np.int64) for _ in range(5)]
        return cls(
            group=group,
            keys=keys,
            status=np.zeros(n, np.uint8),
            weights=np.zeros((n, dim), np.float32),
            slots=np.zeros((n, sum(slot_widths.values())), np.float32),
            slot_widths=slot_widths,
            update_num=numbers[0],
            update_time_ms=numbers[1],
            expires_at_ms=numbers[2],
            in_memory=np.zeros(n, np.bool_),
            dirty=np.zeros(n, np.bool_),
            seen=numbers[3],
            needed=0,
            removed_at_ms=numbers[4],
            removed_by=[""] * n,
        )

    @classmethod
    def joined(cls, parts: "Sequence[RowReport]") -> "RowReport":
        """The reports of one group's keys, asked for in parts, as one; as of the first part's time."""
        first = parts[0]
        if len(parts) == 1:
            return first
        by_key = [each.name for each in fields(cls) if isinstance(getattr(first, each.name), np.ndarray)]
        whole: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in by_key}
        return replace(first, **whole, removed_by=[reason for part in parts for reason in part.removed_by])

    def explain(self, i: int) -> str:
        """What is known of keys[i], as a sentence."""
        status = RowStatus(self.status[i])
        if status == RowStatus.PRESENT:
            age_s = (self.now_ms - self.update_time_ms[i]) / 1000
            left = (self.expires_at_ms[i] - self.now_ms) / 1000
            life = f"expires in {left:,.0f} s" if self.expires_at_ms[i] else "never expires"
            where = "in memory" if self.in_memory[i] else "on disk"
            return f"present: {self.update_num[i]} updates, the last {age_s:,.0f} s ago, {life}, {where}"
        if status == RowStatus.EXPIRED:
            return f"expired at {_time(self.expires_at_ms[i])}, and its row is not removed yet"
        if status == RowStatus.REMOVED:
            reasons = {"expired": "because it had expired", "import": "by an import"}
            by = reasons.get(self.removed_by[i], f"by shrink ({self.removed_by[i]})")
            return f"removed at {_time(self.removed_at_ms[i])} {by}"
        if status == RowStatus.NOT_ADMITTED:
            seen = "an unknown number of" if self.seen[i] < 0 else str(self.seen[i])
            return f"not admitted: {seen} sightings" + (f" of {self.needed}" if self.needed else ", chance decides")
        return "the padding key" if status == RowStatus.PADDING else "never seen"


def _time(ms: int) -> str:
    return np.datetime_as_string(np.datetime64(int(ms), "ms"), unit="s") + "Z"
