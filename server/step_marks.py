"""Which journal entry began which global step: so that rows, which know the entry that changed them last, need not hold
the step of it."""

from bisect import bisect_right
from collections.abc import Sequence

_MARKS_MAX = 512
_SHARE = 16  # marks that are thinned out stay no further apart than this share of their age


class StepMarks:
    """Marks (step, LSN) of one group, ascending in both. Not thread-safe: the group's lock is held.

    Every step is marked until there are 512 marks; then older ones are thinned out, so that two neighbours are no more
    than a 16th of their age in steps apart. So few are enough for any number of steps.
    """

    def __init__(self, marks: Sequence[Sequence[int]] = ()) -> None:
        self._steps = [step for step, _ in marks]
        self._lsns = [lsn for _, lsn in marks]

    def note(self, step: int, lsn: int) -> None:
        """A push at a step was journal entry `lsn`."""
        if self._steps and step <= self._steps[-1]:
            return
        self._steps.append(step)
        self._lsns.append(lsn)
        if len(self._steps) > _MARKS_MAX:
            self._thin_out()

    def lsn_of(self, step: int) -> int:
        """Rows last changed by an entry before this one were so before `step`; those changed shortly before the step
        may be of it or later ones, where marks were thinned out."""
        at = bisect_right(self._steps, step)
        return self._lsns[at - 1] if at else 0

    def snapshot(self) -> list[list[int]]:
        """The marks, for JSON."""
        return [list(mark) for mark in zip(self._steps, self._lsns, strict=True)]

    def _thin_out(self) -> None:
        newest = self._steps[-1]
        kept = [len(self._steps) - 1]
        for at in range(len(self._steps) - 2, -1, -1):
            # left out where the one before it is near enough to the one after it
            near = at > 0 and self._steps[kept[-1]] - self._steps[at - 1] <= (newest - self._steps[kept[-1]]) // _SHARE
            if not near:
                kept.append(at)
        kept.reverse()
        self._steps, self._lsns = [self._steps[at] for at in kept], [self._lsns[at] for at in kept]
