"""Which rows are worth keeping: what shrink removes and an export leaves out."""

from dataclasses import dataclass

import numpy as np

from rockbed.server.group import Group
from rockbed.server.scanning import Rows
from rockbed.types import I64

REASONS = ("expired", "age", "count", "norm")


@dataclass(frozen=True, slots=True)
class Conditions:
    """A row that meets any of them is not kept; None is met by none."""

    max_age_ms: int | None
    min_count: float | None
    min_norm: float | None

    @classmethod
    def of(cls, max_age_s: float | None, min_count: float | None, min_norm: float | None) -> "Conditions":
        """From what a caller gave, already checked."""
        return cls(None if max_age_s is None else round(max_age_s * 1000), min_count, min_norm)

    def reasons(self, group: Group, rows: Rows, now_ms: int) -> I64:
        """The index in REASONS for each row, -1 where it stays: int64[n]."""
        reason = np.full(rows.keys.size, -1, np.int64)
        # the first reason wins, so they are written from the last to the first
        if self.min_norm is not None:
            weights = rows.data[:, : group.config.dim].astype(np.float64)
            reason[np.sqrt((weights**2).sum(axis=1)) < self.min_norm] = 3
        if self.min_count is not None:
            reason[rows.update_num < self.min_count] = 2
        if self.max_age_ms is not None:
            reason[now_ms - rows.update_time >= self.max_age_ms] = 1
        reason[rows.update_time <= group.oldest_ms(now_ms)] = 0
        return reason
