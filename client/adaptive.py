"""`AdaptiveEmbedding`: rare ids share the rows of buckets, frequent ones have rows of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rockbed.client.arrays import checked_flag, checked_floats, described
from rockbed.client.embedding import PyEmbedding, take_back
from rockbed.client.hashing import hash_buckets
from rockbed.client.initializer import PyInitializer
from rockbed.client.optimizer import PyOptimizer
from rockbed.client.parameters import Parameters, as_mapping
from rockbed.client.request_ids import RequestId
from rockbed.client.variable_keys import Keys, key_dtype_name
from rockbed.config import Named, name_problems, whole_problems
from rockbed.errors import InvalidBackward, InvalidConfig, WrongDtype, WrongShape
from rockbed.requests import AdaptiveKeys
from rockbed.server.adaptive_counts import EXACT, SLOTS, STATIC
from rockbed.server.frequency import Threshold, make_frequency
from rockbed.types import F32, I64, AnyArray, Bool

if TYPE_CHECKING:
    from rockbed.client.storage import PyStorage

_OWN = ("absent", "group", "miss_value", "padding_key", "unadmitted_value", "variable")
Share = tuple[PyEmbedding, I64, F32]
"""A group's share of a push: keys and their gradients."""


class AdaptiveEmbedding:
    """A static table of buckets, and exact rows for the ids that are worth one.

    >>> with PyStorage("./model") as storage:
    ...     optimizer, initializer = PyOptimizer(name="adagrad", gamma=0.05), PyInitializer(name="zeros")
    ...     items = AdaptiveEmbedding(storage, optimizer, initializer, 8, "item", 1000, threshold=Frequency(enter=3))
    ...     found = items.lookup(np.array([17, 4, 17]))  # found.rows is float32[3, 8]
    ...     found.apply_gradients(np.ones((3, 8), np.float32))

    static, exact: the PyEmbedding of each part, to inspect and change them; an exact row that `exact.lookup` itself
    makes, with train=True, is no copy of anything. docs/adaptive.md has what it does, and why.
    """

    def __init__(
        self,
        storage: "PyStorage",
        optimizer: PyOptimizer,
        initializer: PyInitializer,
        dimension: int,
        name: str,
        buckets: int,
        *,
        key_dtype: Any = np.int64,
        threshold: Threshold | Mapping[str, Any] | None = None,
        slots: str = "copy",
        ttl: float | None = None,
        refresh: str = "push",
        admission: Parameters | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """Open the groups "<name>/static" and "<name>/exact", or create them.

        buckets: rows of the static part; that of an id is `hash_buckets(id, buckets)`. key_dtype: of ids, int64, int32,
        uint64 or str. threshold: from which count on the store takes an id for frequent, a Frequency (exact counts), a
        BloomFrequency (less memory) or {"name": "frequency", "enter": ..., "leave": ..., "half_life": ...}; None = each
        lookup says by a mask which ids are exact. slots: an exact row begins with the weights of its static row and a
        "copy" of its slots and update count, or "fresh" ones. ttl, refresh, admission: of exact rows, as PyEmbedding's;
        static rows stay for ever. An id that is not admitted yet has the row of its bucket. settings: others of
        PyEmbedding, for both parts.
        All but the threshold, and what PyEmbedding lets change, is fixed when they are created.
        Raises InvalidConfig, UnknownName, and what PyEmbedding raises.
        """
        problems = [*name_problems(name), *whole_problems("buckets", buckets, 1, 1 << 62)]
        if slots not in SLOTS:
            problems.append(f"slots is {slots!r}, not one of {', '.join(map(repr, SLOTS))}")
        own = sorted(settings.keys() & set(_OWN))
        if own:
            problems.append(f"{', '.join(own)} cannot be given: the parts of an adaptive embedding have theirs")
        if problems:
            raise InvalidConfig(f"adaptive embedding {name!r}: {'; '.join(problems)}")
        of_exact = {"part": EXACT, "slots": slots, "threshold": _named(threshold)}
        self.name, self.buckets, self.storage = name, int(buckets), storage
        self.keys = Keys(name, key_dtype_name(key_dtype))
        kind = {"kind": "adaptive", "buckets": self.buckets, "key_dtype": self.keys.kind}
        rules = storage, optimizer, initializer, dimension
        static = partial(
            PyEmbedding,
            *rules,
            f"{name}/static",
            ttl=0,
            miss_value="initializer",
            variable={**kind, "part": STATIC},
            **settings,
        )
        exact = partial(
            PyEmbedding,
            *rules,
            f"{name}/exact",
            ttl=ttl,
            refresh=refresh,
            admission=admission,
            # a gradient of a row that was removed since its lookup is dropped: a row begins as a copy or not at all
            absent="skip",
            variable={**kind, **of_exact},
            **settings,
        )
        # What the exact part is given the static one takes too, and not the reverse: opened in this order neither is
        # made where the other cannot be. One that is there already goes first, as what it is made of is fixed.
        static_first = hasattr(storage, "backend") and f"{name}/static" in storage.names()
        opened: list[PyEmbedding] = []
        try:
            for part in (static, exact) if static_first else (exact, static):
                opened.append(part())
        except BaseException:
            take_back(opened)
            raise
        self.static, self.exact = opened if static_first else opened[::-1]

    @property
    def dim(self) -> int:
        """float32 weights a row."""
        return self.exact.dim

    @property
    def threshold(self) -> Named | None:
        """From which count on the store takes an id for frequent, None where masks say so: as of the opening, or the
        last `alter` here."""
        found: Named | None = (self.exact.config.variable or {})["threshold"]
        return found

    def has_threshold(self) -> bool:
        """Whether the store finds ids frequent by now: others may have given it a threshold."""
        if self.threshold is None:
            self.exact.config = self.storage.backend.groups().get(self.exact.group, self.exact.config)
        return self.threshold is not None

    @property
    def global_step(self) -> int:
        """As PyEmbedding.global_step, of both parts: at first the later one of their last pushes."""
        return max(self.static.global_step, self.exact.global_step)

    @global_step.setter
    def global_step(self, step: int) -> None:
        self.static.global_step = self.exact.global_step = step

    def alter(self, **settings: Any) -> None:
        """Change settings of both parts for good, as PyEmbedding.alter does; `threshold`, ttl, refresh and admission of
        the exact one alone. Raises InvalidConfig, and what PyEmbedding.alter raises."""
        own = sorted(settings.keys() & set(_OWN))
        if own:
            raise InvalidConfig(f"{', '.join(own)} cannot be altered: the parts of an adaptive embedding have theirs")
        of_exact = settings.keys() & {"ttl", "refresh", "admission"}
        exact: dict[str, Any] = {name: settings.pop(name) for name in of_exact}
        if "threshold" in settings:
            exact["variable"] = {**(self.exact.config.variable or {}), "threshold": _named(settings.pop("threshold"))}
        self.exact.alter(**settings, **exact)
        if settings:
            self.static.alter(**settings)

    def lookup(self, ids: Any, mask: Any = None, *, train: bool = True) -> "AdaptiveRows":
        """The row of each id: the exact one where the mask is 1 or, without a mask, the store finds the id frequent;
        else that of its bucket.

        ids: one axis, or a list, of the embedding's key_dtype, repeats allowed. mask: n integers of 0 and 1, or bool.
        With a mask nothing is counted by the threshold.
        train: a wanted exact row that is not there begins as a copy of the static one; ids are counted. With False
        nothing changes, and an id without an exact row gives its static one.
        Raises WrongDtype, WrongShape (a mask of another length), InvalidConfig (other values in it; or there is
        neither a mask nor a threshold), and what PyEmbedding.lookup raises.
        """
        train = checked_flag("train", train)
        keys, shape = self.keys.of(ids)
        if len(shape) != 1:
            raise WrongShape(f"ids must have one axis, not {list(shape)}")
        wanted = None if mask is None else checked_mask(mask, keys.size)
        if wanted is None and not self.has_threshold():
            raise InvalidConfig(
                f"adaptive embedding {self.name!r} has no threshold, and the lookup no mask: give one of {keys.size} "
                "values, 1 for the ids whose rows are exact, or open it with threshold=Frequency(enter=...)"
            )
        return self.lookup_keys(keys.copy(), wanted, train=train)  # the caller's may change before the gradient comes

    def lookup_keys(self, keys: I64, mask: Bool | None, *, train: bool) -> "AdaptiveRows":
        """As `lookup`, of keys int64[n] as `keys` makes them of ids, and bool[n]."""
        asked = AdaptiveKeys(
            self.static.group,
            self.exact.group,
            keys,
            self._buckets_of(keys),
            mask,
            self.static.generation,
            self.exact.generation,
        )
        out = np.empty((keys.size, self.dim), np.float32)
        used, migrated = self.storage.backend.adaptive_lookup(asked, out, train=train)
        return AdaptiveRows(self, replace(asked, mask=used), out, migrated, train)

    def _buckets_of(self, keys: I64) -> I64:
        if self.keys.kind == "string":  # hashed already
            return (keys.view(np.uint64) % np.uint64(self.buckets)).astype(np.int64)
        return hash_buckets(keys.view(np.uint64) if self.keys.kind == "uint64" else keys, self.buckets)

    def report(self) -> "AdaptiveReport":
        """What the embedding holds, and the memory that it saves. Raises what PyStorage.stats raises."""
        groups = self.storage.stats()["groups"]
        static, exact = groups[self.static.group], groups[self.exact.group]
        counts = exact["adaptive"]
        return AdaptiveReport(
            ids_seen=counts["ids_seen"],
            ids_exact=counts.get("ids_frequent", exact["rows"]),
            migrated=counts["migrated"],
            returned_rows=max(0, exact["rows"] - counts.get("ids_frequent", exact["rows"])),
            static_rows=static["rows"],
            exact_rows=exact["rows"],
            row_bytes=counts["row_bytes"],
            counts_bytes=counts["counts_bytes"],
        )

    def drop_returned(self) -> int:
        """Remove the exact rows of ids that are not frequent any more, durably. Returns how many.

        Their ids have the rows of their buckets already. Raises InvalidConfig (there is no threshold), and what
        PyStorage.shrink raises.
        """
        return self.storage.shrink(group=self.exact.group, returned=True).rows_removed

    def __repr__(self) -> str:
        return f"AdaptiveEmbedding({self.name!r}, dim={self.dim}, buckets={self.buckets}, threshold={self.threshold})"


class AdaptiveRows:
    """What a lookup of an adaptive embedding found.

    rows: float32[n, dim]; np.asarray(it) is the same. mask: bool[n], True where it is the exact row. migrated: how many
    exact rows were made by the lookup.
    """

    def __init__(self, of: AdaptiveEmbedding, asked: AdaptiveKeys, rows: F32, migrated: int, train: bool) -> None:
        assert asked.mask is not None
        self.rows, self.migrated = rows, migrated
        self.mask: Bool = asked.mask
        self._of, self._asked = of, asked
        self._why_not = "" if train else "it was looked up with train=False"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        return np.array(self.rows, dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.rows)

    def shares(self, gradients: F32) -> list[Share]:
        """The gradient of `rows`, float32[n, dim], as shares of a push: to the exact rows where the mask is true, to
        the static ones elsewhere."""
        exact, static = np.flatnonzero(self.mask), np.flatnonzero(~self.mask)
        both = (self._of.exact, self._asked.keys, exact), (self._of.static, self._asked.buckets, static)
        return [(part, keys[at], gradients[at]) for part, keys, at in both if at.size]

    def apply_gradients(self, gradients: F32, *, request: RequestId | None = None) -> bool:
        """Update the rows, all or nothing, durably when it returns. Once: they have changed then.

        gradients: float32[n, dim]; those of one row are summed. request: as of PyStorage.apply_gradients, and so is
        what is returned. Raises InvalidBackward, and what PyEmbedding.apply_gradients raises; then nothing was applied.
        """
        if self._why_not:
            raise InvalidBackward(f"no gradient can be applied to these rows of {self._of!r}: {self._why_not}")
        checked = checked_floats("gradients", gradients, self.rows.shape)
        applied = self._of.storage.apply_gradients(self.shares(checked), request=request)
        self._why_not = "one has been, and the rows have changed since: look up again"
        return applied

    def __repr__(self) -> str:
        return f"AdaptiveRows(float32{list(self.rows.shape)}, {int(self.mask.sum())} of them exact)"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveReport:
    """What an adaptive embedding holds.

    ids_seen: distinct ids of training lookups, estimated by HyperLogLog in 16 KiB (standard error 0.8 %). ids_exact:
    those that are frequent by the threshold, of a BloomFrequency an estimate; without one, those with an exact row.
    migrated: exact rows made so far. returned_rows: exact rows of ids that are not frequent any more. static_rows,
    exact_rows: rows that exist. row_bytes: of a record, with its header and slots. counts_bytes: of the threshold's
    counts.
    """

    ids_seen: int
    ids_exact: int
    migrated: int
    returned_rows: int
    static_rows: int
    exact_rows: int
    row_bytes: int
    counts_bytes: int

    @property
    def static_bytes(self) -> int:
        """Of the static rows that exist."""
        return self.static_rows * self.row_bytes

    @property
    def exact_bytes(self) -> int:
        """Of the exact rows."""
        return self.exact_rows * self.row_bytes

    @property
    def full_bytes(self) -> int:
        """Of one row for each id seen, which a table without buckets would hold."""
        return self.ids_seen * self.row_bytes

    @property
    def saved_bytes(self) -> int:
        """How much less than that it is, counts included; below 0 where buckets outnumber the ids."""
        return self.full_bytes - self.static_bytes - self.exact_bytes - self.counts_bytes


def mask_array(mask: Any) -> Any:
    """A list as an array, others as they are. Raises WrongShape for a list of lists of several lengths."""
    try:
        return np.asarray(mask) if isinstance(mask, list | tuple) else mask
    except ValueError as error:
        raise WrongShape(f"a mask must have a value for each id: {error}") from None


def checked_mask(mask: Any, n: int) -> Bool:
    """bool[n]. Raises WrongDtype, WrongShape, InvalidConfig."""
    array = mask_array(mask)
    if not isinstance(array, np.ndarray) or (array.dtype.kind not in "biu" and array.size):
        raise WrongDtype(f"a mask must be integers of 0 and 1, or bool, not {described(array)}")
    if array.shape != (n,):
        raise WrongShape(f"a mask must have a value for each of the {n} ids, not {described(array)}")
    if array.size and not ((array == 0) | (array == 1)).all():
        wrong = array[(array != 0) & (array != 1)][0]
        raise InvalidConfig(f"a mask holds {wrong}: it has 1 for the ids whose rows are exact, 0 for the others")
    found: Bool = np.ascontiguousarray(array.astype(np.bool_))
    return found


def _named(threshold: Threshold | Mapping[str, Any] | None) -> Named | None:
    if threshold is None:
        return None
    if not isinstance(threshold, Threshold):
        threshold = make_frequency(as_mapping("threshold", threshold))
    return {"name": threshold.name, **threshold.params()}
