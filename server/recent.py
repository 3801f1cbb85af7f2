"""The largest value of late."""

import time
from collections.abc import Callable

PERIOD_S = 60.0


class RecentMaximum:
    """The largest of the values noted in the last one to two minutes, 0 if there was none.

    Not since it was last asked for: of several who ask, each sees every peak, if it asks once a minute. The caller
    locks.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._now = self._before = 0.0  # of this period, and of the one before

    def note(self, value: float) -> None:
        """value: 0 or more."""
        self._turn()
        self._now = max(self._now, value)

    def value(self) -> float:
        """The largest."""
        self._turn()
        return max(self._now, self._before)

    def _turn(self) -> None:
        passed = self._clock() - self._began
        if passed >= PERIOD_S:
            self._before = self._now if passed < 2 * PERIOD_S else 0.0
            self._now = 0.0
            self._began += passed - passed % PERIOD_S
