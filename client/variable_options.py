"""Which ids get a row, what it begins as and when it goes, by the names of DeepRec's EmbeddingVariableOption."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rockbed.client.initializer import PyInitializer
from rockbed.config import FLOAT32_MAX, SECONDS_MAX, make_plain, number_problems, whole_problems
from rockbed.errors import InvalidConfig
from rockbed.requests import STEP_MAX
from rockbed.server.admission import checked_admission

_OVER_DISK = ("DRAM_LEVELDB", "DRAM_SSDHASH")


def _must(what: str, problems: list[str]) -> None:
    if problems:
        raise InvalidConfig(f"{what}: {'; '.join(problems)}")


@dataclass(frozen=True, slots=True)
class CounterFilter:
    """An id gets a row at its filter_freq-th occurrence in training lookups; 0 and 1: at once. Raises InvalidConfig."""

    filter_freq: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        _must("CounterFilter", whole_problems("filter_freq", self.filter_freq, 0, 1 << 62))

    def admission(self) -> dict[str, Any] | None:
        """As PyEmbedding takes it."""
        return {"name": "min_count", "count": self.filter_freq} if self.filter_freq > 1 else None


@dataclass(frozen=True, slots=True)
class CBFFilter:
    """As CounterFilter, counted in a counting Bloom filter for max_element_size ids at the given false positive
    probability; with neither of these, exactly. counter_type: unsigned; filter_freq must fit into it, and the counters
    are the narrowest into which it does. Raises InvalidConfig."""

    filter_freq: int = 0
    max_element_size: int = 0
    false_positive_probability: float = -1.0
    counter_type: Any = np.uint64

    def __post_init__(self) -> None:
        make_plain(self)
        problems = whole_problems("filter_freq", self.filter_freq, 0, 1 << 62)
        problems += whole_problems("max_element_size", self.max_element_size, 0, 1 << 62)
        problems += number_problems("false_positive_probability", self.false_positive_probability)
        if not problems and (self.false_positive_probability > 0) != (self.max_element_size > 0):
            problems.append("max_element_size and false_positive_probability go together: give both above 0, or none")
        try:
            counters = np.dtype(self.counter_type)
        except TypeError:
            counters = np.dtype(object)
        if counters.kind != "u":
            problems.append(f"counter_type is {self.counter_type!r}, not an unsigned integer type")
        elif not problems and self.filter_freq > np.iinfo(counters).max:
            problems.append(
                f"filter_freq is {self.filter_freq}, counters of {counters} stop at {np.iinfo(counters).max}"
            )
        _must("CBFFilter", problems)
        self.admission()

    def admission(self) -> dict[str, Any] | None:
        """As PyEmbedding takes it."""
        if self.filter_freq <= 1:
            return None
        if not self.max_element_size:
            return {"name": "min_count", "count": self.filter_freq}
        shape = {"capacity": self.max_element_size, "fpr": self.false_positive_probability}
        return checked_admission({"name": "counting_bloom", "count": self.filter_freq, **shape})


@dataclass(frozen=True, slots=True)
class GlobalStepEvict:
    """EmbeddingColumn.evict removes rows whose last update is more than steps_to_live global steps ago. The column's
    rows then learn by the global step, which input_layer is told. Raises InvalidConfig."""

    steps_to_live: int

    def __post_init__(self) -> None:
        make_plain(self)
        _must("GlobalStepEvict", whole_problems("steps_to_live", self.steps_to_live, 1, STEP_MAX))


@dataclass(frozen=True, slots=True)
class L2WeightEvict:
    """EmbeddingColumn.evict removes rows for which sum(w^2) / 2 is below the threshold. Raises InvalidConfig."""

    l2_weight_threshold: float

    def __post_init__(self) -> None:
        make_plain(self)
        problems = number_problems("l2_weight_threshold", self.l2_weight_threshold, above=0, most=FLOAT32_MAX)
        _must("L2WeightEvict", problems)

    @property
    def min_norm(self) -> float:
        """The same as an L2 norm."""
        return math.sqrt(2 * self.l2_weight_threshold)


@dataclass(frozen=True, slots=True)
class TimeEvict:
    """Rows live so many seconds after their last update, as PyEmbedding's ttl: invisible from then on, without a call.
    Raises InvalidConfig."""

    seconds: float

    def __post_init__(self) -> None:
        make_plain(self)
        _must("TimeEvict", number_problems("seconds", self.seconds, above=0, most=SECONDS_MAX))


@dataclass(frozen=True, slots=True)
class InitializerOption:
    """initializer: what rows begin as; None = the embedding column's. default_value_no_permission: what a lookup gives
    for an id that is not admitted yet. default_value_dim, DeepRec's number of different first rows, cannot be given:
    every id has a first row of its own. Raises InvalidConfig."""

    initializer: PyInitializer | None = None
    default_value_dim: None = None
    default_value_no_permission: float = 0.0

    def __post_init__(self) -> None:
        make_plain(self)
        problems = number_problems("default_value_no_permission", self.default_value_no_permission)
        if self.initializer is not None and not isinstance(self.initializer, PyInitializer):
            problems.append(f"initializer is a {type(self.initializer).__name__}, not a PyInitializer")
        if self.default_value_dim is not None:
            problems.append(
                f"default_value_dim is {self.default_value_dim!r}: every id has a first row of its own here, not one "
                "of so many; leave it out"
            )
        _must("InitializerOption", problems)


@dataclass(frozen=True, slots=True)
class StorageOption:
    """What the storage must be like; a column does not change it.

    storage_type: "DRAM_LEVELDB" or "DRAM_SSDHASH", rows in memory over a table on disk, which every storage is; others
    it cannot be. storage_size: [bytes], the memory_budget that the storage has at the least. storage_path and
    cache_strategy cannot be given: rows are in the storage's own directory, and leave memory by CLOCK. Raises
    InvalidConfig.
    """

    storage_type: str | None = None
    storage_path: None = None
    storage_size: tuple[int, ...] | list[int] | None = None
    cache_strategy: None = None

    def __post_init__(self) -> None:
        problems = []
        if self.storage_type is not None and self.storage_type not in _OVER_DISK:
            problems.append(
                f"storage_type is {self.storage_type!r}: rows are in memory, over a table on disk, which is "
                f"{' or '.join(_OVER_DISK)}"
            )
        if self.storage_path is not None:
            problems.append(f"storage_path is {self.storage_path!r}: rows are where PyStorage(path) says; leave it out")
        if self.cache_strategy is not None:
            problems.append(f"cache_strategy is {self.cache_strategy!r}: rows leave memory by CLOCK; leave it out")
        if self.storage_size is not None:
            if not isinstance(self.storage_size, tuple | list) or len(self.storage_size) != 1:
                problems.append(f"storage_size is {self.storage_size!r}, not [bytes]: only memory has a limit")
            else:
                problems += whole_problems("storage_size[0]", self.storage_size[0], 1, 1 << 62)
        _must("StorageOption", problems)


Filter = CounterFilter | CBFFilter
Evict = GlobalStepEvict | L2WeightEvict | TimeEvict


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingVariableOption:
    """How the rows of a column come and go. Raises InvalidConfig."""

    filter_option: Filter | None = None
    evict_option: Evict | None = None
    init_option: InitializerOption | None = None
    storage_option: StorageOption | None = None

    def __post_init__(self) -> None:
        kinds: dict[str, Any] = {
            "filter_option": Filter,
            "evict_option": Evict,
            "init_option": InitializerOption,
            "storage_option": StorageOption,
        }
        given = {name: getattr(self, name) for name in kinds}
        wrong = [name for name, value in given.items() if value is not None and not isinstance(value, kinds[name])]
        _must("EmbeddingVariableOption", [f"{name} is a {type(given[name]).__name__}" for name in wrong])
