"""A push, in the two halves between which the journal is written: `prepare` and `combine` can fail and be undone,
`updates.apply` cannot fail.

`replaying` does the same from a journal entry.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from rockbed.errors import DimMismatch, GradientNotFinite, InvalidConfig
from rockbed.parallel import GRAIN, spread
from rockbed.requests import STEP_MAX, Gradients
from rockbed.server import summing, updates
from rockbed.server.bag_gradients import BagGradients, BagSums
from rockbed.server.feature_gradients import FeatureGradients
from rockbed.server.fetched import Fetched
from rockbed.server.group import Group
from rockbed.server.seen import Seen
from rockbed.storage import gradient_kernels
from rockbed.storage import hot_kernels as k
from rockbed.storage.entries import BagSection, Section
from rockbed.types import F32, I64, U8

_COUNTERS = ("push_keys", "skipped_absent", "skipped_unadmitted", "skipped_not_finite")  # changed by pushes only
_NONE: I64 = np.empty(0, np.int64)
_NO_GRADIENTS: F32 = np.empty((0, 0), np.float32)
_Combined = tuple[I64, I64, F32 | BagSums]

Share = Gradients | BagGradients
"""A group's share of a push: gradients by key, or of bags of keys. Those of a device: device_pushes."""


def validated(parts: "Sequence[tuple[Group, Share | FeatureGradients]]") -> list[int]:
    """For each share of a push the global step to apply it with, or -1 where rows count their own.

    Raises DimMismatch, InvalidConfig (step), GradientNotFinite; not all gradients are looked at before `combine_all`.
    """
    for group, given in parts:
        dim = group.config.dim
        if isinstance(given, Gradients):
            if given.grads.shape != (given.keys.size, dim):
                raise DimMismatch(
                    f"group {group.number} stores rows of dim {dim}, the gradients have shape {given.grads.shape} for "
                    f"{given.keys.size} keys: send float32[{given.keys.size}, {dim}] (dim is fixed when a group is "
                    "created)"
                )
        elif given.dim != dim:  # the gradients were laid out for a group that was dropped since
            raise DimMismatch(
                f"group {group.number} stores rows of dim {dim}, the gradients are of dim {given.dim}: the group was "
                "dropped and made anew meanwhile; open it again"
            )
        if isinstance(given, Gradients) and not is_summed_in_memory(group):  # those are looked at there
            problem = _not_finite(group, given.keys, given.grads)
            if problem is not None:
                with group.lock:
                    group.counters.rejected_not_finite += 1
                raise problem
    return [_step(group, given.step) for group, given in parts]


def _step(group: Group, step: int | None) -> int:
    if group.config.step != "global":
        if step is not None:
            raise InvalidConfig(f"group {group.number} counts steps by row: a push to it takes no global step")
        return -1
    step = group.global_step if step is None else step
    if not 1 <= step <= STEP_MAX:
        raise InvalidConfig(
            f"group {group.number} has step='global' and the push says {step}: set embedding.global_step, from 1 "
            "to 2^62, before the first push"
        )
    return step


def must_be_finite(group: Group, keys: I64, grads: F32) -> None:
    """Raise GradientNotFinite if the group rejects such gradients and there is one. grads: float32[n, dim]. With the
    lock held, by this thread or for it."""
    problem = _not_finite(group, keys, grads)
    if problem is not None:
        group.counters.rejected_not_finite += 1
        raise problem


def _not_finite(group: Group, keys: I64, grads: F32) -> GradientNotFinite | None:
    if group.config.not_finite != "reject":
        return None
    bad = group.not_padding(keys, not_finite_rows(grads))
    if not bad.size:
        return None
    row = grads[bad[0]]
    return GradientNotFinite(
        f"group {group.number}: {bad.size} of {len(keys)} gradients hold NaN or Inf, the first for key {keys[bad[0]]} "
        f"({row[~np.isfinite(row)][0]}). Nothing was applied; mend the loss, or open the group with "
        "not_finite='skip_row'"
    )


def not_finite_rows(grads: F32) -> I64:
    """The rows of float32[n, dim], C-contiguous, that hold NaN or Inf: int64[m]."""
    bits = grads.view(np.int32)
    if gradient_kernels.all_finite(bits.reshape(-1)):
        return _NONE
    found = np.empty(grads.shape[0], np.int64)
    return found[: gradient_kernels.not_finite(bits, found)]


def is_summed_in_memory(group: Group) -> bool:
    """Whether the gradients of a key are added up, and that on the CPU: only their sums are used again."""
    return group.config.duplicates != "sequential" and group.tier is None


@dataclass(slots=True)
class Prepared:
    """A group's share of a push, validated, with its rows in memory: they stay there while the group's lock is held.

    rows: int64[m], distinct unless `sequential`; grads: float32[m, dim], or still to be summed: as `combine` leaves
    them. created: rows made for the push; step: the global one, or -1; counted: counters as they were before.
    """

    group: Group
    rows: I64
    keys: I64
    grads: F32 | BagSums
    created: I64
    step: int = -1
    counted: dict[str, int] = field(default_factory=dict)
    fresh: U8 | None = None  # of the rows, as of entries.Section, where it is known

    def combine(self, given: Share) -> None:
        """`combine_all` for gradients that are not summed. With the lock held, if need be by a thread that waits for
        this one. Raises GradientNotFinite."""
        if isinstance(given, BagGradients):
            combined = _bags_in_turn(self.group, given, self.rows)
        else:
            combined = _in_turn(self.group, given.keys, self.rows, given.grads, owned=given.owned)
        self.rows, self.keys, self.grads = combined

    def section(self) -> Section | BagSection:
        """What the journal says about it."""
        group, sums, fresh = self.group, self.grads, self.fresh
        if fresh is None:
            fresh = np.empty(self.rows.size, np.uint8)
            k.fresh_rows(group.table.flags, self.rows, fresh)
        if isinstance(sums, BagSums):
            bags = sums.inverse, sums.sizes, sums.weights, sums.grads.values.reshape(-1, sums.dim)
            return BagSection(group.number, self.keys, fresh, *bags, self.step)
        return Section(group.number, self.keys, fresh, sums, self.sequential, self.step)

    @property
    def sequential(self) -> bool:
        """Whether gradients of a key are applied one after the other, not summed."""
        return self.group.config.duplicates == "sequential"

    def apply(self, now_ms: int, lsn: int) -> None:
        """Update the rows. With the lock held, and the journal written."""
        group = self.group
        updates.apply(group, self.rows, self.grads, self.sequential, self.step, now_ms, lsn)
        if self.step >= 0:
            group.stepped(self.step, lsn)

    def release(self, *, undo: bool) -> None:
        """With `undo`, forget the rows that were created for this push. With the lock held."""
        if not undo:
            return
        group = self.group
        group.table.remove(self.created)
        group.counters.rows -= self.created.size
        group.counters.inserts -= self.created.size
        for name, count in self.counted.items():
            setattr(group.counters, name, count)


def counted(group: Group) -> dict[str, int]:
    """The counters that a push changes before it is sure to be applied, as they are."""
    return {name: getattr(group.counters, name) for name in _COUNTERS}


def read_ahead(group: Group, keys: I64, seen: Seen | None = None) -> tuple[Fetched, int]:
    """Read from disk, before the locks are taken, what a push needs. Returns it with `table.left` of before."""
    if not group.may_be_on_disk or (seen and seen.holds(group.table)):
        return group.fetch(_NONE), group.table.left
    absent = _NONE
    with group.lock.shared:
        left = group.table.left
        rows, missing = group.table.find(keys)
        if missing:
            absent = np.unique(keys[group.not_padding(keys, np.flatnonzero(rows < 0))])
    return group.fetch(absent), left


def seen_of(group: Group, given: Share) -> Seen | None:
    """Where the keys of a share were found lately."""
    return given.seen if isinstance(given, BagGradients) else group.latest_lookups.take(given.keys)


def _find(group: Group, keys: I64, seen: Seen | None) -> tuple[I64, int]:
    if seen is None or not seen.holds(group.table):
        return group.table.find(keys)
    return seen.rows.copy(), 0


def prepare(
    group: Group, given: Share, step: int, seen: Seen | None, ahead: tuple[Fetched, int], now_ms: int
) -> Prepared:
    """Find or create the row of each key: `combine` comes next. With the lock held.

    step, seen, ahead: what `validated`, `seen_of` and `read_ahead` gave. Raises NeedSpace; then nothing is created.
    """
    config, counters = group.config, group.counters
    if group.tier is not None:  # since the caller looked
        group.tier.empty()
    keys = given.keys
    rows, missing = _find(group, keys, seen)
    created, before = _NONE, counted(group)
    missing += group.hide_padding(keys, rows)
    missing += group.expire(keys, rows, now_ms, restart=config.absent == "init")
    if missing:
        rows, created = _place(group, keys, rows, *ahead, now_ms)
    counters.push_keys += keys.size
    return Prepared(group, rows, keys, _NO_GRADIENTS, created, step, before)


def _place(group: Group, keys: I64, rows: I64, ahead: Fetched, left: int, now_ms: int) -> tuple[I64, I64]:
    config, counters = group.config, group.counters
    positions = group.not_padding(keys, np.flatnonzero(rows < 0))
    distinct, inverse = np.unique(keys[positions], return_inverse=True)
    fetched = group.fetched_now(distinct, ahead, left)
    create = np.full(distinct.size, config.absent == "init")
    if group.admission is not None:
        create &= group.admission.is_admitted(distinct)
    with group.table.pinned(rows):
        placed, made = group.place(fetched, create, now_ms)
    rows = rows.copy()
    rows[positions] = placed[inverse]
    dropped = int((rows[positions] < 0).sum())
    if config.absent == "skip":
        counters.skipped_absent += dropped
    else:
        counters.skipped_unadmitted += dropped
    return rows, placed[made]


def combine_all(parts: Sequence[tuple[Prepared, Share]]) -> None:
    """Bring the gradients of each row together. With the locks of all groups held. Raises GradientNotFinite."""
    bags: list[tuple[Prepared, BagGradients]] = []
    by_key: list[tuple[Prepared, Share]] = []  # with a gradient for each key
    in_turn: list[tuple[Prepared, Share]] = []
    for mine, given in parts:
        if mine.sequential:
            in_turn.append((mine, given))
        # of many bags the sums are worth more than one thread
        elif isinstance(given, BagGradients) and not (given.alone and given.keys.size < GRAIN):
            bags.append((mine, given))
        else:
            by_key.append((mine, given))
    _take(bags, summing.bags_by_row([(mine.group.table, mine.rows, of) for mine, of in bags]))
    _take(by_key, summing.by_row([(mine.group.table, mine.rows, of) for mine, of in by_key]))
    spread([(given.keys.size, partial(mine.combine, given)) for mine, given in in_turn])


def _take(parts: Sequence[tuple[Prepared, Share]], found: Sequence[summing.Summed]) -> None:
    for (mine, given), of in zip(parts, found, strict=True):
        mine.rows, mine.keys, mine.grads, mine.fresh = of.rows, of.keys, of.grads, of.fresh
        if of.finite or isinstance(of.grads, BagSums):
            continue
        if isinstance(given, Gradients):
            must_be_finite(mine.group, given.keys, given.grads)
        mine.rows, mine.keys, mine.grads = _finite(mine.group, of.rows, of.keys, of.grads)
        mine.fresh = None  # of fewer rows, perhaps


def _bags_in_turn(group: Group, given: BagGradients, rows: I64) -> _Combined:
    keys, grads = given.keys.copy(), given.per_key(group.table.data, rows)
    must_be_finite(group, keys[rows >= 0], grads[rows >= 0])  # finite gradients can be infinite times their weights
    return _in_turn(group, keys, rows, grads, owned=True)


def _in_turn(group: Group, keys: I64, rows: I64, grads: F32, *, owned: bool) -> _Combined:
    keep = rows >= 0
    if group.config.not_finite == "skip_row":
        bad = not_finite_rows(grads)
        group.counters.skipped_not_finite += int(keep[bad].sum())
        keep[bad] = False
    if not keep.all():
        rows, keys, grads = rows[keep], keys[keep], grads[keep]
    elif not owned:
        keys, grads = keys.copy(), grads.copy()
    return rows, keys, grads


def _finite(group: Group, rows: I64, keys: I64, sums: F32) -> tuple[I64, I64, F32]:
    must_be_finite(group, keys, sums)  # finite gradients can have an infinite sum
    bad = not_finite_rows(sums)  # the group leaves them out
    if not bad.size:
        return rows, keys, sums
    group.counters.skipped_not_finite += bad.size
    good = np.ones(rows.size, np.bool_)
    good[bad] = False
    return rows[good], keys[good], sums[good]
