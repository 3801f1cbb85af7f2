"""What long calls report, from the engine and over the wire."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class ShrinkReport:
    """What shrink removed, or would remove. removed: group -> reason -> rows; a row counts under the first reason that
    fits, in the order expired, age, count, norm."""

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
