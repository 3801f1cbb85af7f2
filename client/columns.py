"""Feature columns: which ids a feature has, and what they become. `input_layer` looks them up."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rockbed.client.adaptive import AdaptiveEmbedding
from rockbed.client.combining import check_combining
from rockbed.client.embedding import PyEmbedding
from rockbed.client.initializer import PyInitializer
from rockbed.client.optimizer import PyOptimizer
from rockbed.client.variable_keys import Keys, key_dtype_name
from rockbed.client.variable_options import EmbeddingVariableOption, GlobalStepEvict, L2WeightEvict, TimeEvict
from rockbed.config import DIM_MAX, name_problems, whole_problems
from rockbed.errors import InvalidConfig, UnknownGroup, WrongDtype
from rockbed.server.adaptive_counts import SLOTS
from rockbed.server.frequency import Threshold

if TYPE_CHECKING:
    from rockbed.client.storage import PyStorage


@dataclass(frozen=True, slots=True)
class CategoricalColumn:
    """The ids of a feature. buckets: of the static table of an adaptive column, None for a plain one."""

    key: str
    dtype: str
    options: EmbeddingVariableOption
    buckets: int | None = None


def categorical_column_with_embedding(
    key: str, dtype: Any = np.int64, partition_num: int | None = None, ev_option: EmbeddingVariableOption | None = None
) -> CategoricalColumn:
    """A feature whose ids have a row each.

    key: of the feature in what input_layer is given. dtype: of its ids, int64, int32, uint64 or str. partition_num: 1
    or None, as a storage divides its rows itself. ev_option: how rows come and go. Raises InvalidConfig.
    """
    return _categorical(key, dtype, partition_num, ev_option, None)


def categorical_column_with_adaptive_embedding(
    key: str,
    hash_bucket_size: int,
    dtype: Any = np.int64,
    partition_num: int | None = None,
    ev_option: EmbeddingVariableOption | None = None,
) -> CategoricalColumn:
    """A feature whose ids share the rows of hash_bucket_size buckets, but for those that have rows of their own: see
    AdaptiveEmbedding. The others: as of `categorical_column_with_embedding`. ev_option is about the rows of their own.
    Raises InvalidConfig."""
    problems = whole_problems("hash_bucket_size", hash_bucket_size, 1, 1 << 62)
    if ev_option is not None and ev_option.init_option and ev_option.init_option.default_value_no_permission != 0:
        problems.append("default_value_no_permission: an id that is not admitted has the row of its bucket; leave it 0")
    if problems:
        raise InvalidConfig(f"column {key!r}: {'; '.join(problems)}")
    return _categorical(key, dtype, partition_num, ev_option, int(hash_bucket_size))


def _categorical(
    key: str, dtype: Any, partition_num: int | None, option: EmbeddingVariableOption | None, buckets: int | None
) -> CategoricalColumn:
    problems = [f"its key {problem}" for problem in name_problems(key)]
    if partition_num not in (None, 1):
        problems.append(f"partition_num is {partition_num!r}: a storage divides its rows itself; leave it out")
    if option is not None and not isinstance(option, EmbeddingVariableOption):
        problems.append(f"ev_option is a {type(option).__name__}, not an EmbeddingVariableOption")
    if problems:
        raise InvalidConfig(f"column {key!r}: {'; '.join(problems)}")
    return CategoricalColumn(key, key_dtype_name(dtype), option or EmbeddingVariableOption(), buckets)


class EmbeddingColumn:
    """A categorical column, and what the rows of a sample become: float32[B, dimension].

    use_fused_lookup: set it to True to have the rows found and combined where they are, together with those of the
    other columns for which it is set. Not for an adaptive column, whose rows are found in one call of its own.
    """

    def __init__(
        self,
        categorical: CategoricalColumn,
        dimension: int,
        combiner: str,
        initializer: PyInitializer,
        max_norm: float | None,
        name: str,
        adaptive: dict[str, Any],
    ) -> None:
        self.categorical, self.dimension, self.name = categorical, dimension, name
        self.combiner, self.initializer, self.max_norm = combiner, initializer, max_norm
        self.keys = Keys(name, categorical.dtype)
        self._adaptive, self._fused = adaptive, False

    @property
    def key(self) -> str:
        """Of the feature."""
        return self.categorical.key

    @property
    def is_adaptive(self) -> bool:
        return self.categorical.buckets is not None

    @property
    def use_fused_lookup(self) -> bool:
        return self._fused

    @use_fused_lookup.setter
    def use_fused_lookup(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise InvalidConfig(f"use_fused_lookup is {value!r}, not True or False")
        if value and self.is_adaptive:
            raise InvalidConfig(
                f"column {self.name!r} is adaptive: its rows come from two tables, in one call of its own, and are not "
                "fused with those of other columns"
            )
        self._fused = value

    def open(self, storage: "PyStorage", optimizer: PyOptimizer) -> PyEmbedding | AdaptiveEmbedding:
        """The rows of the column in a storage, created where they are not there; each time the same for the same
        optimizer. Raises what PyEmbedding raises, and InvalidConfig where the storage lacks what storage_option asks.
        """
        if not hasattr(storage, "columns") or not isinstance(optimizer, PyOptimizer):
            raise WrongDtype(
                f"a column is opened in a PyStorage with a PyOptimizer, not in a {type(storage).__name__} with a "
                f"{type(optimizer).__name__}"
            )
        found: PyEmbedding | AdaptiveEmbedding | None = storage.columns.get((self, optimizer))
        if found is None:
            found = storage.columns[self, optimizer] = self._opened(storage, optimizer)
        return found

    def _opened(self, storage: "PyStorage", optimizer: PyOptimizer) -> PyEmbedding | AdaptiveEmbedding:
        option, evict = self.categorical.options, self.categorical.options.evict_option
        if option.storage_option is not None and option.storage_option.storage_size:
            budget, wanted = storage.stats()["memory_budget"], option.storage_option.storage_size[0]
            if budget < wanted:
                raise InvalidConfig(
                    f"column {self.name!r} asks for {wanted} bytes of memory (storage_size), the storage has a "
                    f"memory_budget of {budget}: open it with a larger one"
                )
        settings: dict[str, Any] = {"step": "global"} if isinstance(evict, GlobalStepEvict) else {}
        settings["admission"] = None if option.filter_option is None else option.filter_option.admission()
        settings["ttl"] = evict.seconds if isinstance(evict, TimeEvict) else None
        if self.categorical.buckets is not None:
            kind = {"key_dtype": self.categorical.dtype, **self._adaptive}
            return AdaptiveEmbedding(
                storage,
                optimizer,
                self.initializer,
                self.dimension,
                self.name,
                self.categorical.buckets,
                **kind,
                **settings,
            )
        if option.init_option is not None:
            settings["unadmitted_value"] = option.init_option.default_value_no_permission
        variable = {"kind": "column", "key_dtype": self.categorical.dtype}
        return PyEmbedding(
            storage, optimizer, self.initializer, self.dimension, self.name, variable=variable, **settings
        )

    def evict(self, storage: "PyStorage", global_step: int | None = None) -> int:
        """Remove the rows that the column's evict_option is done with, durably; of an adaptive column, exact ones.
        Returns how many.

        global_step: the present one, for GlobalStepEvict alone. Call it where a checkpoint is taken, say: nothing else
        removes rows by steps or weights.
        Raises InvalidConfig (there is no such option, or the step is missing), UnknownGroup (not opened in this storage
        so far), and what PyStorage.shrink raises.
        """
        option = self.categorical.options.evict_option
        if option is None or isinstance(option, TimeEvict):
            how = "no evict_option" if option is None else "rows that expire by themselves (TimeEvict)"
            raise InvalidConfig(f"column {self.name!r} has {how}: there is nothing to call evict for")
        by_step = isinstance(option, GlobalStepEvict)
        if by_step != (global_step is not None):
            raise InvalidConfig(
                f"column {self.name!r}: evict takes a global_step with GlobalStepEvict, and only then, not "
                f"{global_step!r} with {option!r}"
            )
        name = f"{self.name}/exact" if self.is_adaptive else self.name
        group = storage.names().get(name)
        if group is None:
            raise UnknownGroup(f"column {self.name!r} has no rows in {storage!r} yet: open it, or look it up")
        if isinstance(option, L2WeightEvict):
            return storage.shrink(group=group, min_norm=option.min_norm).rows_removed
        problems = whole_problems("global_step", global_step, 1, 1 << 62)
        if problems:
            raise InvalidConfig(f"column {self.name!r}: {problems[0]}")
        assert global_step is not None
        oldest = int(global_step) - option.steps_to_live
        return storage.shrink(group=group, min_step=oldest).rows_removed if oldest > 0 else 0

    def __repr__(self) -> str:
        kind = f", {self.categorical.buckets} buckets" if self.is_adaptive else ""
        return f"EmbeddingColumn({self.name!r}, {self.categorical.dtype} ids, dim={self.dimension}{kind})"


def embedding_column(
    categorical_column: CategoricalColumn,
    dimension: int,
    combiner: str = "mean",
    initializer: PyInitializer | None = None,
    max_norm: float | None = None,
    *,
    name: str | None = None,
    threshold: Threshold | None = None,
    slots: str | None = None,
) -> EmbeddingColumn:
    """What a feature's ids become: their rows combined, `dimension` floats a sample.

    combiner: "mean", "sum" or "sqrtn". initializer: what rows begin as; None = truncate_normal with a deviation of
    1 / sqrt(dimension), as TensorFlow's. max_norm: a row of a larger L2 norm is scaled down to it before it is
    combined. name: of the rows in the store; None = "<key>_embedding". threshold, slots: of an adaptive column, as
    AdaptiveEmbedding's.
    Raises InvalidConfig (with every problem), WrongDtype.
    """
    if not isinstance(categorical_column, CategoricalColumn):
        raise WrongDtype(
            f"embedding_column takes a CategoricalColumn (categorical_column_with_embedding gives one, say), not a "
            f"{type(categorical_column).__name__}"
        )
    key, option = categorical_column.key, categorical_column.options.init_option
    own = None if option is None else option.initializer
    problems = whole_problems("dimension", dimension, 1, DIM_MAX)
    if name is not None:
        problems += name_problems(name)
    if initializer is not None and not isinstance(initializer, PyInitializer):
        problems.append(f"initializer is a {type(initializer).__name__}, not a PyInitializer")
    if own is not None and initializer is not None:
        problems.append("initializer is given, and another one by init_option: give one of them")
    if categorical_column.buckets is None and (threshold is not None or slots is not None):
        problems.append("threshold and slots are for columns made by categorical_column_with_adaptive_embedding")
    if threshold is not None and not isinstance(threshold, Threshold):
        problems.append(f"threshold is {threshold!r}, not a Frequency or a BloomFrequency")
    if slots is not None and slots not in SLOTS:
        problems.append(f"slots is {slots!r}, not one of {', '.join(map(repr, SLOTS))}")
    if problems:
        raise InvalidConfig(f"column {key!r}: {'; '.join(problems)}")
    check_combining(combiner, max_norm)
    first = own or initializer or PyInitializer(name="truncate_normal", stddev=1 / math.sqrt(dimension))
    adaptive = {"threshold": threshold, "slots": slots or "copy"}
    return EmbeddingColumn(
        categorical_column, int(dimension), combiner, first, max_norm, name or f"{key}_embedding", adaptive
    )
