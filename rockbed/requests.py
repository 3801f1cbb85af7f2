"""What a caller asks of a store, as the engine and the wire take it. Without numba and RocksDB."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rockbed.config import FLOAT32_MAX, GROUPS, SECONDS_MAX, GroupConfig, make_plain, number_problems, whole_problems
from rockbed.errors import InvalidConfig
from rockbed.slots import SLOTS
from rockbed.types import F32, I64, Bool

STEP_MAX = 1 << 62  # of a global step
CONNECTION = "auto-"
"""Begins the client ids that connections give themselves, which nobody uses again once they have ended."""


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks, and the how-manieth time: what makes a repeated push recognisable."""

    client: str
    number: int


@dataclass(frozen=True, slots=True)
class Lookup:
    """Rows that are wanted. keys: int64[n]; out: float32[n, dim], C-contiguous, to be filled with their weights.

    generation: which of the groups that have had this number one after another, here and in what follows; 0 = the one
    that has it now.
    """

    group: int
    keys: I64
    out: F32
    generation: int = 0


@dataclass(frozen=True, slots=True)
class OpenedGroup:
    """A group as whoever opens it is told. global_step: 0 where none was set; generation: as of Lookup, never 0;
    created: whether it was not there before."""

    config: GroupConfig
    global_step: int
    generation: int
    created: bool


@dataclass(frozen=True, slots=True)
class Gradients:
    """A group's share of a push. keys: int64[n]; grads: float32[n, dim]; step: the trainer's global step from 1, None =
    the group's latest, or each row's own; owned: nobody else can change the arrays."""

    group: int
    keys: I64
    grads: F32
    step: int | None = None
    owned: bool = False
    generation: int = 0


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


@dataclass(frozen=True, slots=True)
class AdaptiveKeys:
    """What is looked up in an adaptive variable.

    static, exact: the groups of its parts. keys: int64[n], ids; buckets: int64[n], the static row of each. mask:
    bool[n], True where the exact row is wanted; None = where the store finds the id frequent.
    """

    static: int
    exact: int
    keys: I64
    buckets: I64
    mask: Bool | None = None
    static_generation: int = 0
    exact_generation: int = 0

    def part(self, positions: slice) -> "AdaptiveKeys":
        """Some of it."""
        mask = None if self.mask is None else self.mask[positions]
        return replace(self, keys=self.keys[positions], buckets=self.buckets[positions], mask=mask)


PUT_MODES = ("replace", "keep")
"""What becomes of a row that exists already: it is replaced, or kept."""


def _condition_problems(max_age_s: float | None, min_count: float | None, min_norm: float | None) -> list[str]:
    given = (("max_age", max_age_s, SECONDS_MAX), ("min_count", min_count, 2**62), ("min_norm", min_norm, math.inf))
    return [
        problem
        for name, value, most in given
        if value is not None
        for problem in number_problems(name, value, least=0, most=most)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkOptions:
    """What shrink removes: see PyStorage.shrink. Raises InvalidConfig with every problem."""

    group: int | None = None  # None = all
    max_age_s: float | None = None
    min_count: float | None = None
    min_norm: float | None = None
    min_step: int | None = None
    returned: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        make_plain(self)
        problems = _condition_problems(self.max_age_s, self.min_count, self.min_norm)
        if self.min_step is not None:
            problems += whole_problems("min_step", self.min_step, 1, STEP_MAX)
        if self.group is None and (self.min_step is not None or self.returned):
            problems.append("min_step and returned are about one group: name it")
        if problems:
            raise InvalidConfig("shrink: " + "; ".join(problems))


def _groups_problems(groups: Any) -> list[str]:
    if groups is None:
        return []
    if not isinstance(groups, Sequence) or isinstance(groups, str | bytes) or not groups:
        return [f"groups is {groups!r}, not a list of group numbers, nor None for all"]
    problems = [problem for group in groups for problem in whole_problems("group", group, 0, GROUPS - 1)]
    if not problems and len(set(groups)) < len(groups):
        problems.append(f"groups is {groups!r}: each may stand there once")
    return problems


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What an export writes: see PyStorage.export. Raises InvalidConfig with every problem."""

    format: str = "parquet"
    groups: Sequence[int] | None = None  # None = all
    max_age_s: float | None = None  # rows last updated this long ago, or longer, are left out
    min_count: float | None = None  # rows updated less often are left out
    min_norm: float | None = None  # rows whose weights have a smaller L2 norm are left out
    min_abs: float | None = None  # rows all of whose weights are nearer to 0 than this are left out
    cutoff: float | None = None  # weights nearer to 0 than this are written as 0
    slots: bool = False  # write the optimizer's state too
    digests: bool = False  # write what a later export `since` this one compares its rows with
    since: str | None = None  # an export with digests, beside this one: only what has changed since

    def __post_init__(self) -> None:
        make_plain(self)
        problems = [*_groups_problems(self.groups), *_condition_problems(self.max_age_s, self.min_count, self.min_norm)]
        if not isinstance(self.format, str):
            problems.append(f"format is {self.format!r}, not a str")
        for name in ("min_abs", "cutoff"):
            if getattr(self, name) is not None:
                problems += number_problems(name, getattr(self, name), least=0, most=FLOAT32_MAX)
        for name in ("slots", "digests"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} is {getattr(self, name)!r}, not True or False")
        if self.since is not None and (not isinstance(self.since, str) or not self.since):
            problems.append(f"since is {self.since!r}, not the path of an export")
        if problems:
            raise InvalidConfig("export: " + "; ".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What an import writes: see PyStorage.import_. Raises InvalidConfig with every problem."""

    groups: Sequence[int] | None = None  # None = all
    mode: str = "replace"  # of PUT_MODES
    chain: bool = True  # of an export `since` another one, first what that one holds
    slots_from: int = 0  # only keys of these slots, from this one
    slots_to: int = SLOTS  # to before this one
    dry_run: bool = False  # check everything, store nothing

    def __post_init__(self) -> None:
        make_plain(self)
        problems = _groups_problems(self.groups)
        if self.mode not in PUT_MODES:
            problems.append(f"mode is {self.mode!r}, not one of {', '.join(map(repr, PUT_MODES))}")
        for name in ("chain", "dry_run"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} is {getattr(self, name)!r}, not True or False")
        slots = [*whole_problems("slots_from", self.slots_from, 0, SLOTS)]
        slots += whole_problems("slots_to", self.slots_to, 0, SLOTS)
        if not slots and self.slots_from >= self.slots_to:
            slots.append(f"there is no slot from {self.slots_from} to before {self.slots_to}")
        problems += slots
        if problems:
            raise InvalidConfig("import: " + "; ".join(problems))
