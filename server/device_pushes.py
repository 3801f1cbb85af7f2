"""Pushes to groups that keep rows on a device: gradients are summed and rows updated there, and the journal, which has
the sums, comes between."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rockbed.bags import Bags
from rockbed.device_arrays import on_device
from rockbed.requests import Gradients
from rockbed.server import push
from rockbed.server.device_calls import DeviceCall, tier_of
from rockbed.server.device_lookups import whole
from rockbed.server.feature_gradients import FeatureGradients
from rockbed.server.fetched import Fetched
from rockbed.server.group import Group
from rockbed.storage.entries import Section
from rockbed.storage.gpu.devices import Device
from rockbed.storage.gpu.fused import Absent, FarWeights, RowGradients
from rockbed.storage.gpu.launcher import DeviceArray
from rockbed.storage.gradient_kernels import squared_norms
from rockbed.types import F32, I64, U8, Bool

_log = logging.getLogger("rockbed")
_NONE: I64 = np.empty(0, np.int64)

DeviceShare = Gradients | FeatureGradients
"""A group's share of a push, as the device takes it."""


@dataclass(slots=True)
class DevicePrepared:
    """A group's share of a push, validated, with its rows pinned on the device: what push.Prepared is in memory.

    keys: int64[n], distinct; sums: float32[n, dim]; fresh: uint8[n], 1 for rows that have seen no push. rows: int32[n],
    grads: float32[n, dim] and rates, one or float32[n], on the device. created: rows of memory to undo.
    """

    group: Group
    keys: I64
    sums: F32
    fresh: U8
    rows: DeviceArray
    grads: DeviceArray
    rates: float | DeviceArray
    step: int
    created: I64 = field(default_factory=lambda: _NONE)
    counted: dict[str, int] = field(default_factory=dict)

    def section(self) -> Section:
        """What the journal says about it."""
        return Section(self.group.number, self.keys, self.fresh, self.sums, False, self.step)

    def apply(self, now_ms: int, lsn: int) -> None:
        """Update the rows, and let them be evicted again. With the group's lock held, and the journal written."""
        group, tier = self.group, tier_of(self.group)
        with tier.device.queue():
            tier.table.update(self.rows, self.grads, self.rates, step=self.step, now_ms=now_ms, lsn=lsn)
        tier.unpin()
        total, largest = squared_norms(self.sums)
        group.counters.updates += self.keys.size
        group.counters.gradient_square_sum += total
        group.gradient_norm.note(math.sqrt(largest))
        if self.step >= 0:
            group.stepped(self.step, lsn)

    def release(self, *, undo: bool) -> None:
        """With `undo`, let the rows be evicted again, and forget those that were created for this push."""
        if undo:  # a push that was applied must not fail here, where the caller would take it for one that was not
            tier_of(self.group).unpin()
            take_back(self.group, self.created, self.counted)


def take_back(group: Group, created: I64, counted: dict[str, int]) -> None:
    """Forget rows of memory that a push created, and put counters back. Where the device fails, the rows stay, here as
    there: new ones, as a lookup makes them."""
    for name, count in counted.items():
        setattr(group.counters, name, count)
    if created.size:
        try:
            tier_of(group).remove(group.table.header[created, 0])
        except Exception as error:  # of the push there is an error already, and other groups are still to be undone
            _log.warning("rockbed: group %d keeps %d new rows of a failed push: %s", group.number, created.size, error)
            return
        group.table.remove(created)
        group.counters.rows -= created.size
        group.counters.inserts -= created.size


class Push:
    """The share of a push that goes to groups on the device. Made anew for every try."""

    def __init__(self, device: Device, shares: Sequence[tuple[Group, DeviceShare, int]]) -> None:
        """shares: each with what push.validated gave for it."""
        self._device, self._shares = device, shares
        uses = sorted(_uses(shares), key=lambda use: use.column)  # as they lie in the batch
        parts = [(use.group, use.bags) for use in uses]
        self._call = DeviceCall(device, parts, [0.0] * len(parts))
        together = [use for use in uses if use.bags.combiner is not None]
        with device.queue():
            self._pooled = _side_by_side(device, together)
            self._sequences = [device.up(use.array) for use in uses if use.bags.combiner is None]

    def read_ahead(self) -> None:
        """Read from disk, before the locks are taken, what the push needs. Raises Moved, UnknownGroup."""
        absent: dict[Group, list[I64]] = {}
        with self._call.locked():
            for group, keys in self._call.keys_by_feature():
                rows, missing = tier_of(group).table.find(keys, touch=0)
                if missing and group.may_be_on_disk:
                    to_host = self._device.launcher.to_host
                    absent.setdefault(group, []).append(to_host(keys)[to_host(rows) < 0])
        for group, each in absent.items():
            self._call.read(group, np.unique(np.concatenate(each)))

    def prepare(self, now_ms: int) -> list[DevicePrepared]:
        """Find or create the row of each key, pin it, and sum the gradients of repeated keys. With the locks held.

        Raises Moved, NeedSpace, GradientNotFinite, DeviceOutOfMemory; then nothing is pinned or created.
        """
        call = self._call
        with call.locked():
            counted = {group.number: push.counted(group) for group in call.groups}
            try:
                call.expire(now_ms)
                found, absent = self._summed(now_ms)
                self._count(absent)
                return [
                    self._prepared(group, step, found.get(group.number), counted[group.number])
                    for group, _, step in self._shares
                ]
            except BaseException:
                for group in call.groups:
                    tier_of(group).unpin()
                    take_back(group, call.created.get(group.number, _NONE), counted[group.number])
                raise

    def _summed(self, now_ms: int) -> tuple[dict[int, RowGradients], list[Absent]]:
        call = self._call
        batch = call.batch()
        while True:
            try:
                found, absent = batch.gradients(self._pooled, self._sequences)
            except FarWeights as far:
                call.moderate(far.features)
                batch = call.batch()
                continue
            wanted = call.wanted(batch, absent)
            if not wanted:
                return {each.table.group: each for each in found}, absent
            for group, keys in call.unread(wanted).items():
                call.read(group, keys)
            call.bring(wanted, _may_be_created, now_ms)

    def _count(self, absent: Sequence[Absent]) -> None:
        for (group, bags), each in zip(self._call.parts, absent, strict=True):
            group.counters.push_keys += bags.keys.size
            if group.config.absent == "skip":
                group.counters.skipped_absent += each.keys + each.defaults
            else:
                group.counters.skipped_unadmitted += each.keys + each.defaults

    def _prepared(self, group: Group, step: int, found: RowGradients | None, counted: dict[str, int]) -> DevicePrepared:
        launcher, table = self._device.launcher, tier_of(group).table
        rows = launcher.empty(0, np.int32) if found is None else found.rows
        grads = launcher.empty((0, table.dim), np.float32) if found is None else found.grads
        sums = launcher.to_host(grads)
        keys, counts, fresh = table.headers(rows)
        push.must_be_finite(group, keys, sums)
        bad = push.not_finite_rows(sums)
        if bad.size:  # the group leaves them out
            group.counters.skipped_not_finite += bad.size
            good = np.ones(keys.size, np.bool_)
            good[bad] = False
            keys, counts, fresh, sums = keys[good], counts[good], fresh[good], sums[good]
            rows, grads = launcher.to_device(launcher.to_host(rows)[good]), launcher.to_device(sums)
            if not keys.size:  # there is no update that would
                table.unpin()
        rates: float | DeviceArray = float(group.optimizer.lr)
        if group.schedule is not None:
            steps = counts if step < 0 else np.full(counts.size, step - 1)
            rates = launcher.to_device(group.schedule.rate(group.optimizer.lr, steps).astype(np.float32))
        created = self._call.created.get(group.number, _NONE)
        return DevicePrepared(group, keys, sums, fresh, rows, grads, rates, step, created, counted)


@dataclass(frozen=True, slots=True)
class _Use:
    """A feature of a push; array[:, column : column + dim] is its gradient."""

    group: Group
    bags: Bags
    array: F32
    column: int


def _uses(shares: Sequence[tuple[Group, DeviceShare, int]]) -> list[_Use]:
    uses = []
    for group, share, _ in shares:
        if isinstance(share, Gradients):
            uses.append(_Use(group, whole(group, share.keys), share.grads, 0))
        else:
            each = zip(share.features, share.given, strict=True)
            uses += [_Use(group, bags, array, column) for bags, (array, column) in each]
    return uses


def _side_by_side(device: Device, uses: Sequence[_Use]) -> DeviceArray:
    """On the device, float32[samples, dims of all]: the array itself where it is there and holds nothing else."""
    if not uses:
        return device.launcher.empty((0, 0), np.float32)
    if sum(use.group.config.dim for use in uses) == uses[0].array.shape[1]:
        return device.up(uses[0].array)
    parts = [use.array[:, use.column : use.column + use.group.config.dim] for use in uses]
    if on_device(parts[0]):
        return device.launcher.side_by_side(parts)
    return device.launcher.to_device(np.concatenate(parts, axis=1))


def _may_be_created(group: Group, fetched: Fetched, counts: I64) -> Bool:
    create = np.full(counts.size, group.config.absent == "init")
    if group.admission is not None:
        create &= group.admission.is_admitted(fetched.keys)
    return create
