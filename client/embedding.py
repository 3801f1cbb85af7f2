"""`PyEmbedding`: one group of rows, looked up and trained by key."""

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from rockbed.client.arrays import checked_flag, checked_gradients, checked_keys, checked_output
from rockbed.client.initializer import PyInitializer
from rockbed.client.optimizer import PyOptimizer
from rockbed.client.parameters import Parameters, as_mapping
from rockbed.config import GroupConfig, Named
from rockbed.errors import InvalidConfig, RockbedError, WrongDtype
from rockbed.requests import STEP_MAX, Gradients, Lookup
from rockbed.server.admission import checked_admission
from rockbed.types import F32, I64, U64

if TYPE_CHECKING:
    from rockbed.client.request_ids import RequestId
    from rockbed.client.storage import PyStorage

_log = logging.getLogger("rockbed")


class PyEmbedding:
    """The rows of one group: `dim` float32 weights for each key, created when they are first looked up.

    >>> with PyStorage("./model") as storage:
    ...     optimizer, initializer = PyOptimizer(name="adagrad", gamma=0.05), PyInitializer(name="zeros")
    ...     users = PyEmbedding(storage, optimizer, initializer, dimension=8, group=1)
    ...     weights = users.lookup(np.array([17, 4, 17]))  # float32[3, 8]
    ...     users.apply_gradients(np.array([17, 4]), np.ones((2, 8), np.float32))
    """

    def __init__(
        self,
        storage: "PyStorage",
        optimizer: PyOptimizer,
        initializer: PyInitializer,
        dimension: int,
        group: int | str = 0,
        *,
        seed: int = 0,
        ttl: float | None = None,
        refresh: str = "push",
        duplicates: str = "sum",
        absent: str = "init",
        step: str = "row",
        admission: Parameters | Mapping[str, Any] | None = None,
        unadmitted_value: float | str = 0.0,
        miss_value: float | str = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        weight_min: float | None = None,
        weight_max: float | None = None,
        not_finite: str = "reject",
        padding_key: int | None = None,
        variable: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a group, or create it.

        dimension: weights a row, 1..4096. group: 0..65535, or a name, which the store keeps with the group: whoever
        opens it finds the same rows. A new name gets a number from 32768 on, the same in every store where that one is
        free. Both, the initializer, `seed` and the kind of optimizer are fixed when a group is created; everything
        else may differ at the next opening and applies from then on.

        seed: 0..2^64-1. A row's first value is a pure function of (seed, group, key).
        ttl: seconds that a row lives after it was last written; None = the storage's ttl, 0 = for ever.
        refresh: what renews that: "push", or "lookup" (training lookups as well as pushes).
        duplicates: gradients of a key that occurs several times in a push are "sum"med to one step, or are
            "sequential" steps in the order given.
        absent: a push to a key that has no row "init"ialises one and updates it, or "skip"s it (counted in stats).
        step: the t of schedules and bias corrections is the "row"'s own update count, or the "global" one that the
            trainer sets as `embedding.global_step`.
        admission: which new keys get a row: {"name": "min_count", "count": 3}, {"name": "counting_bloom", "count": 3,
            "capacity": 10**7, "fpr": 0.01}, {"name": "probability", "p": 0.1}; None = every key. Counted are
            training lookups.
        unadmitted_value, miss_value: what a lookup gives for a key that is not admitted yet, and what
            lookup(train=False) gives for a key without a row: a number for all weights, or "initializer" for the
            row that it would begin with.
        clip_value, clip_norm: each element of a (summed) gradient is clamped to +-clip_value, then the gradient of a
            row scaled down to the L2 norm clip_norm.
        weight_min, weight_max: weights are clamped to these after each update.
        not_finite: NaN or Inf in a gradient "reject"s the whole push, or "skip_row" drops that row's gradient
            (counted).
        padding_key: a key that stands for nothing: its lookup gives zeros, its gradient is ignored.
        variable: JSON of what you build on the group, kept with it and found in `config`; fixed as well, but for what
            stands under "parts". None leaves it as it is.

        Numbers may be numpy's. np.float32(0.1) is 0.10000000149011612, here and in rules: another setting than 0.1.
        Raises InvalidConfig (with every problem), UnknownName, DimMismatch, GroupConflict, ReadOnlyStorage,
        StorageClosed.
        """
        rules = isinstance(optimizer, PyOptimizer) and isinstance(initializer, PyInitializer)
        if not rules or not hasattr(storage, "backend"):
            raise WrongDtype(
                f"PyEmbedding takes a PyStorage, a PyOptimizer and a PyInitializer, not {type(storage).__name__}, "
                f"{type(optimizer).__name__} and {type(initializer).__name__}"
            )
        self.config = GroupConfig(
            group=0 if isinstance(group, str) else group,
            dim=dimension,
            optimizer=_named(optimizer.rule),
            initializer=_named(initializer.rule),
            schedule=None if optimizer.schedule is None else _named(optimizer.schedule),
            seed=seed,
            ttl_s=ttl,
            refresh=refresh,
            duplicates=duplicates,
            absent=absent,
            step=step,
            admission=None if admission is None else checked_admission(as_mapping("admission", admission)),
            unadmitted_value=unadmitted_value,
            miss_value=miss_value,
            clip_norm=clip_norm,
            clip_value=clip_value,
            weight_min=weight_min,
            weight_max=weight_max,
            not_finite=not_finite,
            padding_key=padding_key,
            name=group if isinstance(group, str) else None,
            variable=None if variable is None else dict(variable),
        )
        self.storage = storage
        opened = storage.backend.open_group(self.config, by_name=isinstance(group, str))
        self.config, self._step = opened.config, opened.global_step
        self.generation = opened.generation
        """Which of the groups that have had this number one after another."""
        self.created = opened.created
        """Whether the group was not there before."""

    def alter(self, *, optimizer: PyOptimizer | None = None, **settings: Any) -> None:
        """Change settings of the group for good, while it is used: its optimizer's parameters and schedule, and by
        their names those that PyEmbedding takes by keyword, but for seed. Others who have the group open go on with the
        new ones.

        >>> users.alter(optimizer=PyOptimizer(name="adagrad", gamma=0.01), ttl=86400)  # doctest: +SKIP

        Raises InvalidConfig, UnknownName, GroupConflict (another kind of optimizer), PermissionDenied (on a server with
        tokens it takes the role admin), ReadOnlyStorage; then nothing was changed.
        """
        fixed = sorted(settings.keys() & {"group", "dim", "initializer", "seed", "schedule", "name"})
        if fixed:
            raise InvalidConfig(f"{', '.join(fixed)} cannot be altered (a schedule comes with its optimizer)")
        if "ttl" in settings:
            settings["ttl_s"] = settings.pop("ttl")
        if settings.get("admission") is not None:
            settings["admission"] = checked_admission(as_mapping("admission", settings["admission"]))
        if optimizer is not None:
            settings["optimizer"] = _named(optimizer.rule)
            settings["schedule"] = None if optimizer.schedule is None else _named(optimizer.schedule)
        unknown = sorted(settings.keys() - {each.name for each in fields(GroupConfig)})
        if unknown:
            raise InvalidConfig(f"{', '.join(unknown)}: no such setting; help(rockbed.PyEmbedding) has them all")
        backend = self.storage.backend
        # of the settings as they are now: others may have altered some since the group was opened here
        config = replace(backend.groups().get(self.group, self.config), **settings)
        backend.alter_group(config, self.generation)
        self.config = config

    @property
    def dim(self) -> int:
        """float32 weights a row."""
        return self.config.dim

    @property
    def group(self) -> int:
        """The group's number."""
        return self.config.group

    @property
    def name(self) -> str | None:
        """The group's name in the store's catalogue, if it has one."""
        return self.config.name

    @property
    def global_step(self) -> int:
        """The step, from 1, that schedules and bias corrections use with step="global". Set it before each push.

        At first the one of the group's last push, 0 if there was none.
        """
        return self._step

    @global_step.setter
    def global_step(self, step: int) -> None:
        if isinstance(step, bool) or not isinstance(step, int | np.integer) or not 1 <= step <= STEP_MAX:
            raise InvalidConfig(f"global_step is {step!r}: steps are whole numbers from 1 to 2^62")
        if self.config.step != "global":
            raise InvalidConfig(
                f"group {self.group} counts steps by row: open it with step='global' to set global_step"
            )
        self._step = int(step)

    @overload
    def lookup(self, keys: I64 | U64, weights: None = None, *, train: bool = True) -> F32: ...
    @overload
    def lookup(self, keys: I64 | U64, weights: F32, *, train: bool = True) -> None: ...
    def lookup(self, keys: I64 | U64, weights: F32 | None = None, *, train: bool = True) -> F32 | None:
        """The weights of each key.

        keys: int64[n] or uint64[n], any values, in any order, repeats allowed. weights: float32[n, dim] or
        float32[n * dim], contiguous, filled in place (then None is returned); without it a new float32[n, dim] is
        returned.
        train: a key without a row gets one (if the group admits it) and occurrences count. With train=False nothing
        changes, and such a key gives the group's miss_value.
        Raises WrongDtype, WrongShape, InvalidConfig (train is neither True nor False), ReadOnlyStorage (train=True on a
        read-only storage), StorageClosed, the disk's errors.
        """
        sent, train = checked_keys(keys), checked_flag("train", train)
        out = (
            np.empty((sent.size, self.dim), np.float32) if weights is None else checked_output(weights, sent, self.dim)
        )
        self.storage.backend.lookup(Lookup(self.group, sent, out, self.generation), train=train)
        return out if weights is None else None

    def lookup_async(self, keys: I64 | U64, weights: F32 | None = None, *, train: bool = True) -> "Future[F32 | None]":
        """As `lookup`, in a thread: a concurrent.futures.Future of its result (`await asyncio.wrap_future(it)`).

        What the arrays lack is raised at once. Neither array may be changed until the future is done. One that has not
        begun when the storage is closed raises StorageClosed.
        """
        sent, train = checked_keys(keys), checked_flag("train", train)
        if weights is not None:
            checked_output(weights, sent, self.dim)
        return self.storage.ahead.lookup(lambda: self.lookup(sent, weights, train=train))

    def prefetch(self, keys: I64 | U64) -> tuple[int, int]:
        """Bring rows from disk into memory ahead of their use. Creates none, counts as no lookup, renews no TTL.

        keys: as for lookup. Returns how many of the distinct keys have their row in memory then, and how many have no
        row. Raises what lookup raises.
        """
        return self.storage.backend.prefetch(self.group, checked_keys(keys), self.generation)

    def prefetch_async(self, keys: I64 | U64) -> "Future[tuple[int, int]]":
        """As `prefetch`, in a thread."""
        return self.storage.ahead.lookup(self.prefetch, checked_keys(keys))

    def apply_gradients_async(
        self, keys: I64 | U64, gradients: F32, *, request: "RequestId | None" = None
    ) -> "Future[bool]":
        """As `apply_gradients`, in a thread: a concurrent.futures.Future, done when the push is durable.

        What the arrays lack is raised at once. They may not be changed until the future is done. Pushes of a storage
        are applied in the order in which they were asked for, and `close` waits for them.
        """
        return self.storage.apply_gradients_async([(self, keys, gradients)], request=request)

    def apply_gradients(self, keys: I64 | U64, gradients: F32, *, request: "RequestId | None" = None) -> None:
        """Update the rows of keys with the group's optimizer. Durable when it returns.

        keys: as for lookup. gradients: float32[n, dim] or float32[n * dim]. request: (client id, number from 1) makes
        the call repeatable: a request that has been applied is acknowledged and not applied again.
        Raises WrongDtype, WrongShape, GradientNotFinite, BatchTooLarge, ReadOnlyStorage, StorageClosed, StorageFull
        and the disk's other errors. Then nothing was applied.
        """
        self.storage.apply_gradients([(self, keys, gradients)], request=request)

    def checked(self, keys: Any, gradients: Any) -> Gradients:
        """The embedding's share of a push. Raises WrongDtype, WrongShape, InvalidConfig."""
        sent = checked_keys(keys)
        step = self.step_to_send()
        grads = checked_gradients(gradients, sent.size, self.dim)
        return Gradients(self.group, sent, grads, step, generation=self.generation)

    def step_to_send(self) -> int | None:
        """The global step that goes with a push, None where rows count their own. Raises InvalidConfig."""
        if self.config.step != "global":
            return None
        if self.global_step < 1:
            raise InvalidConfig(
                f"group {self.group} has step='global': set embedding.global_step before the first push"
            )
        return self.global_step

    def drop(self) -> int:
        """Drop the group with all of its rows: as PyStorage.drop_group, which takes whichever has the number now."""
        self.storage.columns.clear()
        return self.storage.backend.drop_group(self.group, self.generation)

    def exists(self) -> bool:
        """Whether the group that was opened is still there: nobody has dropped it, or put a store without it in the
        place."""
        return self.storage.backend.generation(self.group) == self.generation

    def __repr__(self) -> str:
        named = "" if self.name is None else f", name={self.name!r}"
        return f"PyEmbedding(group={self.group}{named}, dim={self.dim}, optimizer={self.config.optimizer['name']!r})"


def take_back(embeddings: Iterable[PyEmbedding]) -> None:
    """Drop the groups that were created by opening these, unless somebody has put rows into them since: what was to be
    opened along with them cannot be."""
    for each in embeddings:
        if not each.created:
            continue
        try:
            if each.exists() and not each.storage.stats()["groups"][each.group]["rows"]:
                each.drop()
        except RockbedError as error:  # on a server it takes the role admin; what is left is empty, and may be opened
            _log.warning("rockbed: the new group of %r, without rows, is not taken back: %s", each, error)


def _named(rule: Any) -> Named:
    return {"name": rule.name, **rule.params()}
