"""Which journal entries were of which global step: so that rows, which know the entry that changed them last, need not
hold the step of it."""

from bisect import bisect_right
from collections.abc import Sequence

_MARKS_MAX = 512
_SHARE = 16  # marks that are thinned out stay no further apart than this share of their age


class StepMarks:
    """Marks of one group: the first step and LSN of each, and its last ones, ascending all. Not thread-safe: the
    group's lock is held.

    Every step at which there was a push is a mark until there are 512; then older ones become one with those before
    them, as long as what becomes one is no more than a 16th of its age in steps. So few are enough for any number of
    steps.
    """

    def __init__(self, marks: Sequence[Sequence[int]] = ()) -> None:
        self._marks = [list(mark) for mark in marks]  # step, LSN, last step, last LSN

    def note(self, step: int, lsn: int) -> None:
        """A push at a step was journal entry `lsn`."""
        newest = self._marks[-1] if self._marks else None
        if newest is not None and step <= newest[0]:
            newest[3] = max(newest[3], lsn)
            return
        self._marks.append([step, lsn, step, lsn])
        if len(self._marks) > _MARKS_MAX:
            self._thin_out()

    def lsn_of(self, step: int) -> int:
        """Rows last changed by an entry before this one were so before `step`; those changed shortly before the step
        may be of it or later ones, where marks have become one."""
        at = bisect_right(self._marks, step, key=lambda mark: mark[0])
        if not at:
            return 0
        _, lsn, last, last_lsn = self._marks[at - 1]
        return last_lsn + 1 if last < step else lsn

    def snapshot(self) -> list[list[int]]:
        """The marks, for JSON."""
        return [list(mark) for mark in self._marks]

    def _thin_out(self) -> None:
        marks, newest = self._marks, self._marks[-1][0]
        kept = [len(marks) - 1]
        for at in range(len(marks) - 2, -1, -1):
            # becomes one with the one before it, where that is near enough to the one after it
            after = marks[kept[-1]][0]
            near = at > 0 and after - marks[at - 1][0] <= (newest - after) // _SHARE
            if not near:
                kept.append(at)
        kept.reverse()
        ends = [at - 1 for at in kept[1:]] + [kept[-1]]
        self._marks = [marks[at][:2] + marks[end][2:] for at, end in zip(kept, ends, strict=True)]
