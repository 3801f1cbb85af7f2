"""Which rows are worth keeping: what shrink removes and an export leaves out."""

from dataclasses import dataclass

import numpy as np

from rockbed.errors import InvalidConfig
from rockbed.server.group import Group
from rockbed.server.scanning import Rows
from rockbed.types import I64

REASONS = ("expired", "age", "count", "norm", "step", "returned")


@dataclass(frozen=True, slots=True)
class Conditions:
    """A row that meets any of them is not kept; None is met by none."""

    max_age_ms: int | None
    min_count: float | None
    min_norm: float | None
    min_step: int | None = None
    returned: bool = False

    @classmethod
    def of(
        cls,
        max_age_s: float | None,
        min_count: float | None,
        min_norm: float | None,
        min_step: int | None = None,
        *,
        returned: bool = False,
    ) -> "Conditions":
        """From what a caller gave, already checked."""
        max_age_ms = None if max_age_s is None else round(max_age_s * 1000)
        return cls(max_age_ms, min_count, min_norm, min_step, returned)

    @property
    def possible(self) -> tuple[str, ...]:
        """The reasons that there can be."""
        of_one_group = ("step",) * (self.min_step is not None) + ("returned",) * self.returned
        return (*REASONS[:4], *of_one_group)

    def must_fit(self, group: Group) -> None:
        """Raise InvalidConfig where the group has not what a condition goes by."""
        if self.min_step is not None and group.config.step != "global":
            raise InvalidConfig(f"min_step: group {group.number} counts steps by row, not with step='global'")
        if self.returned and (group.adaptive is None or group.adaptive.frequencies is None):
            raise InvalidConfig(
                f"returned: group {group.number} is not the exact part of an adaptive variable with a threshold"
            )

    def reasons(self, group: Group, rows: Rows, now_ms: int) -> I64:
        """The index in REASONS for each row, -1 where it stays: int64[n]. With the lock held where `returned`."""
        reason = np.full(rows.keys.size, -1, np.int64)
        # the first reason wins, so they are written from the last to the first
        if self.returned and group.adaptive is not None and group.adaptive.frequencies is not None:
            reason[~group.adaptive.frequencies.frequent(rows.keys)] = 5
        if self.min_step is not None:
            reason[rows.lsn < group.step_marks.lsn_of(self.min_step)] = 4
        if self.min_norm is not None:
            weights = rows.data[:, : group.config.dim].astype(np.float64)
            reason[np.sqrt((weights**2).sum(axis=1)) < self.min_norm] = 3
        if self.min_count is not None:
            reason[rows.update_num < self.min_count] = 2
        if self.max_age_ms is not None:
            reason[now_ms - rows.update_time >= self.max_age_ms] = 1
        reason[rows.update_time <= group.oldest_ms(now_ms)] = 0
        return reason
