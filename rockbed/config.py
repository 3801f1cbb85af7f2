"""Settings of a store and of a group: frozen, checked as a whole, with their units in their names."""

import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from rockbed.errors import InvalidConfig

Named = dict[str, Any]
"""A rule by name with its parameters, {"name": "adagrad", "gamma": 0.05}: what is stored and compared."""

GROUPS = 1 << 16
DIM_MAX = 4096
NAMED_GROUPS = 1 << 15
"""Numbers from this one on are given to groups that are opened by their names alone."""
NAME_BYTES_MAX = 255
VARIABLE_BYTES_MAX = 4096
SEED_MAX = 2**64 - 1
SECONDS_MAX = 1e11  # three thousand years: as milliseconds it can be added to any time
DEVICE_MEMORY = 1 << 30  # bytes of a device that a store takes where it is not told
FLOAT32_MAX = 3.4028234663852886e38
FLOAT32_TINY = 1.1754943508222875e-38
"""The smallest normal float32: a divisor or a limit below it may be flushed to 0 where it is needed most."""


_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> list[str]:
    return [] if value in choices else [f"{name} is {value!r}, not one of {', '.join(map(repr, choices))}"]


def whole_problems(name: str, value: Any, low: int, high: int) -> list[str]:
    """What is wrong with a whole number; empty when nothing is."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        return [f"{name} is {value!r}, not an int"]
    return [] if low <= int(value) <= high else [f"{name} is {value}, outside {low}..{high}"]


def number_problems(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, most: float = math.inf
) -> list[str]:
    """What is wrong with a finite number, numpy's too; empty when nothing is."""
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            number = float(value)  # numpy's would compare with the limits in their own precision
    if not math.isfinite(number):
        return [f"{name} is {value!r}, not a finite number"]
    if above is not None and not number > above:
        return [f"{name} is {value}, not above {above:g}"]
    if least is not None and not number >= least:
        return [f"{name} is {value}, below {least:g}"]
    return [] if number <= most else [f"{name} is {value}, above {most:g}"]


def _float32(name: str, value: Any, *, least: float = -FLOAT32_MAX) -> list[str]:
    return number_problems(name, value, least=least, most=FLOAT32_MAX)


def plain(value: Any) -> Any:
    """A number of numpy's as Python's, which JSON can hold and which compare as they are stored; anything else as it
    is. np.float32(0.1) becomes 0.10000000149011612."""
    if isinstance(value, Integral) and not isinstance(value, int):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, int):
        return float(value)  # np.float64 is a float too
    return value


def make_plain(settings: Any) -> None:
    """`plain` for all fields of a frozen dataclass."""
    for each in fields(settings):
        object.__setattr__(settings, each.name, plain(getattr(settings, each.name)))


def _value_or_initializer(name: str, value: Any) -> list[str]:
    return [] if value == "initializer" else [p + ' (nor "initializer")' for p in _float32(name, value)]


def _named_problems(name: str, value: Any, *, optional: bool) -> list[str]:
    if value is None and optional:
        return []
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return []
    return [f'{name} is {value!r}, not {{"name": ..., its parameters}}']


def name_problems(name: Any) -> list[str]:
    """What is wrong with the name of a group; empty when nothing is."""
    if not isinstance(name, str) or not 1 <= len(name.encode(errors="replace")) <= NAME_BYTES_MAX:
        return [f"name is {name!r}, not a str of 1 to {NAME_BYTES_MAX} bytes of UTF-8"]
    if not name.isprintable() or name != name.strip():
        return [f"name is {name!r}: it may hold printable characters, and no space at its ends"]
    return []


def _variable_problems(value: Any) -> list[str]:
    try:
        fits = isinstance(value, dict) and len(json.dumps(value, allow_nan=False)) <= VARIABLE_BYTES_MAX
        same = fits and json.loads(json.dumps(value)) == value
    except (TypeError, ValueError, RecursionError):
        same = False
    return [] if same else [f"variable is {value!r}, not a dict of at most {VARIABLE_BYTES_MAX} bytes of JSON"]


def _raise(what: str, problems: list[str]) -> None:
    if problems:
        raise InvalidConfig(f"{what}: " + "; ".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupConfig:
    """What a group of rows is and how it learns. Stored with the rows and compared whenever the group is opened.

    Fixed for the life of the group: dim, initializer, seed, name, the kind of optimizer. The rest may change from one
    opening to the next; a change is recorded in the journal, so a replay applies it at the same place.
    """

    group: int  # 0..65535
    dim: int  # float32 weights a row
    optimizer: Named
    initializer: Named
    schedule: Named | None = None
    seed: int = 0  # 0..2**64-1; with group and key it decides a row's first value
    ttl_s: float | None = None  # seconds since a row was last written; None = the store's, 0 = for ever
    refresh: str = "push"  # what renews the TTL: "push", or "lookup" (training lookups too)
    duplicates: str = "sum"  # of a key in one push: "sum" them to one step, or "sequential" steps
    absent: str = "init"  # a push to a key without a row: "init" one, or "skip" (counted)
    step: str = "row"  # the t of schedules and bias corrections: the "row"'s own, or a "global" one set by the trainer
    admission: Named | None = None  # which new keys get a row; None = all
    unadmitted_value: float | str = 0.0  # what a lookup of an unadmitted key gives: a number, or "initializer"
    miss_value: float | str = 0.0  # what lookup(train=False) of an absent key gives: a number, or "initializer"
    clip_norm: float | None = None  # a gradient's L2 norm is scaled down to this
    clip_value: float | None = None  # each element of a gradient is clamped to +- this, before clip_norm
    weight_min: float | None = None  # weights are clamped after each update
    weight_max: float | None = None
    not_finite: str = "reject"  # NaN or Inf in a gradient: "reject" the whole push, or "skip_row" (counted)
    padding_key: int | None = None  # a key that stands for nothing: zeros, no row, no gradient
    name: str | None = None  # in the store's catalogue, where no two groups have the same
    variable: Named | None = None  # what clients built on the group, fixed, but for its "parts" and "threshold"

    def __post_init__(self) -> None:
        make_plain(self)
        problems = [
            *whole_problems("group", self.group, 0, GROUPS - 1),
            *whole_problems("dimension", self.dim, 1, DIM_MAX),
            *whole_problems("seed", self.seed, 0, SEED_MAX),
            *_choice("refresh", self.refresh, ("push", "lookup")),
            *_choice("duplicates", self.duplicates, ("sum", "sequential")),
            *_choice("absent", self.absent, ("init", "skip")),
            *_choice("step", self.step, ("row", "global")),
            *_choice("not_finite", self.not_finite, ("reject", "skip_row")),
            *_value_or_initializer("unadmitted_value", self.unadmitted_value),
            *_value_or_initializer("miss_value", self.miss_value),
        ]
        for name in ("optimizer", "initializer", "schedule", "admission"):
            problems += _named_problems(name, getattr(self, name), optional=name in ("schedule", "admission"))
        if self.ttl_s is not None:
            problems += number_problems("ttl", self.ttl_s, least=0, most=SECONDS_MAX)
        for name in ("clip_norm", "clip_value"):
            if getattr(self, name) is not None:
                problems += _float32(name, getattr(self, name), least=FLOAT32_TINY)
        bounds = [b for b in ("weight_min", "weight_max") if getattr(self, b) is not None]
        for name in bounds:
            problems += _float32(name, getattr(self, name))
        if len(bounds) == 2 and not problems and not self.weight_min < self.weight_max:  # type: ignore[operator]
            problems.append(f"weight_min {self.weight_min} is not below weight_max {self.weight_max}")
        if self.padding_key is not None:
            problems += whole_problems("padding_key", self.padding_key, -(2**63), 2**64 - 1)
        if self.name is not None:
            problems += name_problems(self.name)
        if self.variable is not None:
            problems += _variable_problems(self.variable)
        _raise(f"group {self.group if self.name is None else self.name!r}", problems)

    @property
    def padding_bits(self) -> int | None:
        """The padding key as the bits of an int64."""
        padding = self.padding_key
        return padding if padding is None or padding < 2**63 else padding - 2**64

    def to_json(self) -> dict[str, Any]:
        """The config as JSON values; `from_json` builds an equal one."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "GroupConfig":
        """The reverse of `to_json`."""
        return cls(**stored)

    def to_bytes(self) -> bytes:
        """The config as a line of JSON."""
        return json.dumps(self.to_json(), sort_keys=True).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """How a store is opened. None of it is stored: every opening says it anew."""

    ttl_s: float = 0  # seconds since a row was last written; 0 = for ever; a group may have its own
    memory_budget: int = 1 << 30  # bytes of rows, headers and index in memory, all groups together
    block_cache_bytes: int = 32 << 20  # RocksDB's cache of blocks read from disk, beside the budget
    fsync: str = "interval"  # of the journal: "never", "interval", "always" (before a push is answered)
    fsync_interval_s: float = 1.0
    write_back_interval_s: float = 30.0  # a pushed row reaches rows/ after this time at the latest (plus the writing)
    journal_bytes_max: int = 2 << 30  # write-back begins at half of it; at all of it pushes wait
    sweep_rows_s: int = 20_000  # rows a second that the sweeper looks at for expiry; 0 = no sweeper
    read_only: bool = False
    repair: bool = False  # cut a damaged journal off at the damage instead of refusing to open
    device: str | None = (
        None  # "cuda:N" keeps hot rows in that GPU's memory, above those in memory; None or "cpu": none
    )
    device_memory: int | None = None  # bytes of the device for rows and index, all groups together; None: DEVICE_MEMORY

    def __post_init__(self) -> None:
        make_plain(self)
        problems = [
            *number_problems("ttl", self.ttl_s, least=0, most=SECONDS_MAX),
            *whole_problems("memory_budget", self.memory_budget, 64 << 10, 1 << 44),
            *whole_problems("block_cache_bytes", self.block_cache_bytes, 0, 1 << 50),
            *_choice("fsync", self.fsync, ("never", "interval", "always")),
            *number_problems("fsync_interval", self.fsync_interval_s, above=0, most=SECONDS_MAX),
            *number_problems("write_back_interval", self.write_back_interval_s, above=0, most=SECONDS_MAX),
            *whole_problems("journal_bytes_max", self.journal_bytes_max, 1 << 20, 1 << 50),
            *whole_problems("sweep_rows_s", self.sweep_rows_s, 0, 1 << 40),
        ]
        if self.device is not None and not (isinstance(self.device, str) and _DEVICE.fullmatch(self.device)):
            problems.append(f"device is {self.device!r}, not 'cuda:0' (or another number), 'cuda', 'cpu' or None")
        if self.device_memory is not None:
            problems += whole_problems("device_memory", self.device_memory, 4 << 10, 1 << 44)
            if self.device in (None, "cpu"):
                problems.append("device_memory is for a device: give one as well, 'cuda:0' say")
        for name in ("read_only", "repair"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} is {getattr(self, name)!r}, not True or False")
        if self.read_only is True and self.repair is True:
            problems.append("repair writes to the store, read_only forbids it: give one of them")
        _raise("storage", problems)
