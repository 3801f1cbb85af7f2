"""What a caller asks of a store, as the engine and the wire take it. Without numba and RocksDB."""

import math
from dataclasses import dataclass

from rockbed.config import SECONDS_MAX, number_problems
from rockbed.errors import InvalidConfig
from rockbed.types import F32, I64

STEP_MAX = 1 << 62  # of a global step


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks, and the how-manieth time: what makes a repeated push recognisable."""

    client: str
    number: int


@dataclass(frozen=True, slots=True)
class Gradients:
    """A group's share of a push. keys: int64[n]; grads: float32[n, dim]; step: the trainer's global step from 1, None =
    the group's latest, or each row's own."""

    group: int
    keys: I64
    grads: F32
    step: int | None = None


@dataclass(frozen=True, slots=True)
class PutRows:
    """Rows to be stored as they are. keys: int64[n], distinct; weights: float32[n, dim]; slots: float32[n, state] of
    the group's optimizer, None = as in a new row; update_num: int64[n], None = 0; update_time_ms: int64[n] since 1970,
    None = now."""

    keys: I64
    weights: F32
    slots: F32 | None = None
    update_num: I64 | None = None
    update_time_ms: I64 | None = None


PUT_MODES = ("replace", "keep")
"""What becomes of a row that exists already: it is replaced, or kept."""


def check_shrink(max_age_s: float | None, min_count: float | None, min_norm: float | None) -> None:
    """Raise InvalidConfig with every condition that cannot be."""
    given = (("max_age", max_age_s, SECONDS_MAX), ("min_count", min_count, 2**62), ("min_norm", min_norm, math.inf))
    problems = [
        problem
        for name, value, most in given
        if value is not None
        for problem in number_problems(name, value, least=0, most=most)
    ]
    if problems:
        raise InvalidConfig("shrink: " + "; ".join(problems))
