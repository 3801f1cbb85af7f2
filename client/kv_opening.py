"""`get_kv_variable`: a variable by its name, made or found again."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from rockbed.client.embedding import PyEmbedding, take_back
from rockbed.client.initializer import PyInitializer
from rockbed.client.kv_variable import KvVariable
from rockbed.client.optimizer import PyOptimizer
from rockbed.client.parameters import as_mapping
from rockbed.client.partitioners import Partitioner, parts_by
from rockbed.client.placement import Placement
from rockbed.client.storage import PyStorage
from rockbed.client.variable_keys import Keys, key_dtype_name
from rockbed.client.variable_scope import Reuse, check_reuse, current_scope
from rockbed.client.variables import collections_of, is_open, register, unregister
from rockbed.config import GroupConfig, Named, plain, whole_problems
from rockbed.errors import DimMismatch, GroupConflict, InvalidConfig, UnknownName, WrongDtype
from rockbed.server.admission import checked_admission
from rockbed.slots import SLOTS

DEFAULT_INITIALIZER = {"name": "random_uniform", "min": -0.05, "max": 0.05}
"""What rows begin with where nothing is said: as those of Keras' Embedding."""
DEFAULT_OPTIMIZER = {"name": "adagrad"}
COUNT_MAX = 2**31 - 1
_opening = threading.Lock()  # two threads that ask for one name get one variable, or an error

Storages = PyStorage | Sequence[PyStorage]
Rule = Mapping[str, Any] | str


def get_kv_variable(
    name: str,
    embedding_dim: int,
    key_dtype: Any = np.int64,
    value_dtype: Any = np.float32,
    initializer: PyInitializer | Rule | None = None,
    trainable: bool = True,
    collections: Sequence[str] | None = None,
    partitioner: Partitioner | None = None,
    constraint: tuple[float | None, float | None] | str | None = None,
    storage: Storages | None = None,
    optimizer: PyOptimizer | Rule | None = None,
    enter_threshold: int = 0,
    **settings: Any,
) -> KvVariable:
    """Take the variable of a name, or make it: one group of the name `scope/name` in each of its storages.

    embedding_dim: weights a row. key_dtype: numpy's int32, int64, uint64, or str. value_dtype: float32.
    initializer, optimizer: a PyInitializer, a PyOptimizer; or a name, or a mapping with a "name" and parameters. None =
        what the store has for this name, or for a new one DEFAULT_INITIALIZER and adagrad.
    trainable: False makes no rows and takes no gradients. collections: see `get_collection`.
    partitioner: into how many parts the rows are divided, by `fixed_size_partitioner` and its like; None = as the store
        has it, or for a new one as many as there are storages.
    constraint: (min, max) between which weights are kept after each update, None = no bound; "non_neg" = (0, None).
    storage: a PyStorage, or a list of them, over which the parts are spread in order; None = that of the scope.
    enter_threshold: a key gets a row at its so-manieth sighting in training lookups, repeats in one call counted. Until
        then lookups give what the row would begin with, and its gradients are dropped. 0 = at once.
    settings: by keyword what PyEmbedding takes besides; a `variable` stands beside what this keeps there. Of a variable
        that the store has, what is not given stays as it is (`admission=None`, `weight_min=None`, ... end it).

    The number of parts may be another one at each opening, where that moves no row to another storage; everything else
    as at the opening of a PyEmbedding. With `variable_scope(..., reuse=True)`, a variable that this process has open is
    given as it is, if what is asked for agrees with it.
    Raises InvalidConfig, UnknownName, WrongDtype, DimMismatch, GroupConflict, and what PyEmbedding raises.
    """
    scope = current_scope()
    check_reuse(scope.reuse)
    if not isinstance(name, str) or not name:
        raise InvalidConfig(f"the name of a variable is a str that is not empty, not {name!r}")
    asked = _Asked(
        name=scope.full_name(name),
        dim=embedding_dim,
        key_dtype=key_dtype_name(key_dtype),
        initializer=_initializer(scope.initializer if initializer is None else initializer),
        optimizer=_optimizer(optimizer),
        partitioner=scope.partitioner if partitioner is None else partitioner,
        storages=storages_of(scope.storage if storage is None else storage),
        trainable=trainable,
        collections=_collections(collections, trainable),
        built_on=dict(settings.pop("variable", None) or {}),
        settings={**settings, **_admission(enter_threshold, settings), **_bounds(constraint, settings)},
    )
    if _dtype_name(value_dtype) != "float32":
        raise InvalidConfig(f"value_dtype is {value_dtype!r}: weights are stored as float32, and nothing else")
    with _opening:
        return _reused_or_opened(asked, scope.reuse)


def _reused_or_opened(asked: "_Asked", reuse: bool | Reuse | None) -> KvVariable:
    there = asked.storages[0].variables.get(asked.name)
    if isinstance(there, KvVariable) and not all(each.exists() for each in there.embeddings):
        unregister(there)  # somebody has dropped it
    elif there is not None and is_open(there):
        if not reuse:
            raise InvalidConfig(
                f"variable {asked.name!r} exists already: give another name, or take it within "
                "variable_scope(..., reuse=True) or reuse=rockbed.AUTO_REUSE"
            )
        return asked.same(there)
    if reuse is True and asked.name not in asked.storages[0].names():
        raise UnknownName(
            f"there is no variable {asked.name!r} to be reused: make it first, or use reuse=rockbed.AUTO_REUSE"
        )
    variable = asked.opened()
    register(variable)
    return variable


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What was asked for, checked as far as it can be without the store."""

    name: str
    dim: int
    key_dtype: str
    initializer: PyInitializer | None
    optimizer: PyOptimizer | None
    partitioner: Partitioner | None
    storages: tuple[PyStorage, ...]
    trainable: bool
    collections: tuple[str, ...] | None
    settings: dict[str, Any]
    built_on: dict[str, Any]

    def same(self, variable: Any) -> KvVariable:
        """The open variable, if it is what was asked for."""
        if not isinstance(variable, KvVariable):
            raise GroupConflict(f"{self.name!r} is open as a {type(variable).__name__}: give another name")
        if self.dim != variable.dim:
            raise DimMismatch(f"variable {self.name!r} is open with rows of dim {variable.dim}, not {self.dim}")
        parts = variable.parts if self.partitioner is None else parts_by(self.partitioner, self.dim)
        config = variable.config
        problems = [
            f"{what} is {has!r}, not {wanted!r}"
            for what, has, wanted in (
                ("key_dtype", variable.key_dtype, self.key_dtype),
                ("its number of parts", variable.parts, parts),
                ("storage", variable.storages, self.storages),
                ("trainable", variable.trainable, self.trainable),
                ("variable", config.variable, {**(config.variable or {}), **self.built_on}),
                ("initializer", config.initializer, self._rule(self.initializer, config.initializer)),
                ("optimizer", config.optimizer, self._rule(self.optimizer, config.optimizer)),
                ("schedule", config.schedule, self._schedule(config)),
                (
                    "collections",
                    variable.collections,
                    variable.collections if self.collections is None else self.collections,
                ),
            )
            if has != wanted
        ]
        for setting, given in self.settings.items():
            has = getattr(config, {"ttl": "ttl_s"}.get(setting, setting), None)
            wanted = checked_admission(as_mapping(setting, given)) if setting == "admission" and given else plain(given)
            if has != wanted:
                problems.append(f"{setting} is {has!r}, not {wanted!r}")
        if problems:
            raise GroupConflict(f"variable {self.name!r} is open in this process: " + "; ".join(problems))
        return variable

    def opened(self) -> KvVariable:
        """The variable, made or found in its storages."""
        stored = [_stored(storage, self.name) for storage in self.storages]
        first = stored[0]
        if first is not None and (first.variable or {}).get("kind") != "kv":
            raise GroupConflict(
                f"{self.name!r} is the name of group {first.group}, which is no variable: give another name"
            )
        placement = self._placement(first)
        self._must_be_the_same_storages(stored)
        initializer = self.initializer or PyInitializer(first.initializer if first else DEFAULT_INITIALIZER)
        optimizer = self.optimizer or (_as_stored(first) if first else PyOptimizer(DEFAULT_OPTIMIZER))
        settings = {**(_settings_of(first) if first else {}), **self.settings}
        embeddings: list[PyEmbedding] = []
        try:
            self._open_all(embeddings, stored, placement, optimizer, initializer, settings)
        except BaseException:
            take_back(embeddings)
            raise
        return KvVariable(
            self.name,
            embeddings,
            Keys(self.name, self.key_dtype),
            placement,
            trainable=self.trainable,
            collections=(
                collections_of(None, trainable=self.trainable) if self.collections is None else self.collections
            ),
        )

    def _open_all(
        self,
        embeddings: list[PyEmbedding],
        stored: Sequence[GroupConfig | None],
        placement: Placement,
        optimizer: PyOptimizer,
        initializer: PyInitializer,
        settings: Mapping[str, Any],
    ) -> None:
        """Append the group of each storage."""
        for i, storage in enumerate(self.storages):
            variable = {**self.built_on, "kind": "kv", "key_dtype": self.key_dtype, "parts": placement.parts}
            if len(self.storages) > 1:
                variable |= {"storage": i, "storages": len(self.storages)}
            taken = stored[i] is None and any(each.group in storage.groups() for each in embeddings[:1])
            if not taken:
                opened = PyEmbedding(
                    storage, optimizer, initializer, self.dim, self.name, variable=variable, **settings
                )
                embeddings.append(opened)
            if taken or opened.group != embeddings[0].group:
                raise GroupConflict(
                    f"variable {self.name!r} is group {embeddings[0].group} in {self.storages[0]!r}, and cannot be "
                    f"that in {storage!r}, so its rows would begin differently there: give another name"
                )

    def _must_be_the_same_storages(self, stored: Sequence[GroupConfig | None]) -> None:
        """Raise GroupConflict where one of them has rows and another has never heard of the variable."""
        if None not in stored:
            return
        without = self.storages[stored.index(None)]
        for storage, config in zip(self.storages, stored, strict=True):
            # a process that was killed while it made the variable may leave some of the groups, without rows
            if config is not None and storage.stats()["groups"][config.group]["rows"]:
                raise GroupConflict(
                    f"{storage!r} has rows of variable {self.name!r}, and {without!r} does not know it: give the "
                    "storages that it was made on, in their order"
                )

    def _placement(self, stored: GroupConfig | None) -> Placement:
        """Where the rows lie. Raises InvalidConfig where they lie elsewhere now."""
        count = len(self.storages)
        was = None if stored is None or stored.variable is None else stored.variable
        before = None if was is None else Placement(was["parts"], was.get("storages", 1))
        parts = before.parts if before and before.storages == count else count
        if self.partitioner is not None:
            parts = parts_by(self.partitioner, self.dim)
        if parts < count:
            raise InvalidConfig(
                f"variable {self.name!r} would have {parts} parts on {count} storages: give it a part for each at least"
            )
        placement = Placement(parts, count)
        if before is not None and before != placement:
            raise InvalidConfig(
                f"variable {self.name!r} lies in {before.parts} parts on {before.storages} storages, and with {parts} "
                f"parts on {count} its rows would lie elsewhere: open it as it is, save it with rockbed.Saver, drop() "
                "it, and restore it as you want it"
            )
        return placement

    def _schedule(self, stored: GroupConfig) -> Named | None:
        if self.optimizer is None:
            return stored.schedule
        given = self.optimizer.schedule
        return None if given is None else {"name": given.name, **given.params()}

    def _rule(self, given: PyInitializer | PyOptimizer | None, stored: Named) -> Named:
        return stored if given is None else {"name": given.rule.name, **given.rule.params()}


# --- what was given ---


def _initializer(given: Any) -> PyInitializer | None:
    return given if given is None or isinstance(given, PyInitializer) else PyInitializer(_mapping(given))


def _optimizer(given: Any) -> PyOptimizer | None:
    return given if given is None or isinstance(given, PyOptimizer) else PyOptimizer(_mapping(given))


def _mapping(given: Any) -> Any:
    return {"name": given} if isinstance(given, str) else given


def _as_stored(config: GroupConfig) -> PyOptimizer:
    return PyOptimizer(config.optimizer, config.schedule)


def _settings_of(config: GroupConfig) -> dict[str, Any]:
    """A stored group's settings as PyEmbedding takes them by keyword."""
    others = {"group", "dim", "optimizer", "schedule", "initializer", "name", "variable"}
    names = (each.name for each in fields(GroupConfig))
    return {{"ttl_s": "ttl"}.get(name, name): getattr(config, name) for name in names if name not in others}


def storages_of(given: Any) -> tuple[PyStorage, ...]:
    """The storages that a caller, or a scope, gives. Raises InvalidConfig, WrongDtype."""
    if given is None:
        raise InvalidConfig("a variable needs a storage: give storage=, here or to variable_scope")
    storages = (given,) if isinstance(given, PyStorage) else tuple(given) if isinstance(given, list | tuple) else ()
    if not storages or not all(isinstance(each, PyStorage) for each in storages):
        raise WrongDtype(f"storage is {given!r}, not a PyStorage, nor a list of them")
    if len(set(map(id, storages))) < len(storages):
        raise InvalidConfig("a storage stands in the list twice: each part of a variable has one place")
    if len(storages) > SLOTS:
        raise InvalidConfig(f"{len(storages)} storages, {SLOTS} are the most")
    return storages


def _stored(storage: PyStorage, name: str) -> GroupConfig | None:
    return next((config for config in storage.groups().values() if config.name == name), None)


def _dtype_name(given: Any) -> str:
    try:
        return str(np.dtype(given).name)
    except TypeError:
        return repr(given)


def _collections(given: Any, trainable: bool) -> tuple[str, ...] | None:
    if not isinstance(trainable, bool):
        raise InvalidConfig(f"trainable is {trainable!r}, not True or False")
    if given is not None and (
        isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(each, str) for each in given)
    ):
        raise InvalidConfig(f"collections is {given!r}, not a list of names")
    return None if given is None else collections_of(given, trainable=trainable)


def _admission(enter_threshold: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    problems = whole_problems("enter_threshold", enter_threshold, 0, COUNT_MAX)
    if problems:
        raise InvalidConfig(problems[0])
    if enter_threshold == 0:
        return {}
    twice = sorted({"admission", "unadmitted_value"} & settings.keys())
    if twice:
        raise InvalidConfig(f"enter_threshold stands for admission and unadmitted_value: leave out {', '.join(twice)}")
    return {"admission": {"name": "min_count", "count": int(enter_threshold)}, "unadmitted_value": "initializer"}


def _bounds(constraint: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    if constraint is None:
        return {}
    bounds = (0.0, None) if constraint == "non_neg" else constraint
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise InvalidConfig(f"constraint is {constraint!r}, not (min, max) of weights, nor 'non_neg'")
    twice = sorted({"weight_min", "weight_max"} & settings.keys())
    if twice:
        raise InvalidConfig(f"constraint stands for weight_min and weight_max: leave out {', '.join(twice)}")
    return dict(zip(("weight_min", "weight_max"), bounds, strict=True))
