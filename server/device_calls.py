"""What lookups and pushes on the device share: a batch there, and the rows that it lacks brought up through memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from rockbed.bags import Bags
from rockbed.server.bags import TINIEST
from rockbed.server.fetched import Fetched, find_in
from rockbed.server.group import Group
from rockbed.server.tier import Moved, Tier
from rockbed.storage.gpu.devices import Device
from rockbed.storage.gpu.fused import Absent, DeviceBags, FusedBatch
from rockbed.storage.gpu.launcher import DeviceArray
from rockbed.types import F32, I64, U8, Bool

_PIECE_ROWS = 16_384  # rows brought up at a time
_SMALL = 1e-15
_NONE: I64 = np.empty(0, np.int64)

Wanted = Mapping[int, tuple[I64, I64]]
"""By group, keys that have no row on the device, distinct and ascending, and how often each is used."""

Create = Callable[[Group, Fetched, I64], Bool]
"""(group, what was read of keys, how often each is used) -> which of them may get a row."""


@dataclass
class _Known:
    """What a call knows of keys that the device lacked, ascending: their records on disk, read when `table.left` was
    `left`; whether each may be created, once that is decided; those that turned out to have no row."""

    left: int
    keys: I64
    found: I64
    records: U8
    decided: Bool = field(default_factory=lambda: np.empty(0, np.bool_))
    create: Bool = field(default_factory=lambda: np.empty(0, np.bool_))
    nothing: Bool = field(default_factory=lambda: np.empty(0, np.bool_))

    def add(self, fetched: Fetched) -> None:
        """Add what was read of other keys."""
        before, keys = self.keys.size, np.concatenate([self.keys, fetched.keys])
        order = np.argsort(keys)
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        self.found = place[np.concatenate([self.found, fetched.found + before])]
        self.records = np.concatenate([self.records, fetched.records])
        new = np.zeros(fetched.keys.size, np.bool_)
        self.decided = np.concatenate([self.decided, new])[order]
        self.create = np.concatenate([self.create, new])[order]
        self.nothing = np.concatenate([self.nothing, new])[order]
        self.keys = keys[order]

    def positions(self, keys: I64) -> tuple[I64, Bool]:
        """Where keys are, int64[n], and which of them are there at all."""
        return find_in(self.keys, keys)

    def part(self, at: I64) -> Fetched:
        """What was read of the keys at ascending positions."""
        return Fetched(self.keys, self.found, self.records).part(at)


class DeviceCall:
    """One fused batch on the device. Make it anew for another try of a call that has failed."""

    def __init__(self, device: Device, parts: Sequence[tuple[Group, Bags]], absent: Sequence[float]) -> None:
        """parts: the features, with their groups; absent: for each, every weight of a key that has no row."""
        self.device = device
        self.parts = parts
        self.groups = sorted({group.number: group for group, _ in parts}.values(), key=lambda group: group.number)
        self._absent = absent
        self._checked = [not bags.on_device for _, bags in parts]
        self._known: dict[int, _Known] = {}
        self.created: dict[int, I64] = {}  # by group, the rows of memory that this call has created
        with device.queue():
            self._arrays = [self._up(group, bags) for group, bags in parts]

    def _up(self, group: Group, bags: Bags) -> tuple[DeviceArray, DeviceArray, DeviceArray | None]:
        up, weights = self.device.up, bags.weights
        if weights is not None and not bags.on_device:
            weights = _moderate(group, bags, weights)
        return up(bags.keys), up(bags.offsets), None if weights is None else up(weights)

    def moderate(self, features: Sequence[int]) -> None:
        """Have features use weights of their own, where the device found those of the caller's arrays far from 1."""
        for i in features:
            group, lent = self.parts[i]
            bags = self.device.in_memory(lent)
            with self.device.queue():
                self._arrays[i] = self._up(group, bags)
            self._checked[i] = True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """With the locks of the groups and the device's. Raises UnknownGroup, Moved."""
        with ExitStack() as locks:
            for group in self.groups:
                locks.enter_context(group.lock)
                group.must_exist()
                if group.tier is None:
                    raise Moved
            locks.enter_context(self.device.queue())
            yield

    def batch(self) -> FusedBatch:
        """It, over the tables of this moment. With the locks held."""
        return FusedBatch(
            self.device.launcher,
            [
                DeviceBags(
                    name=bags.name,
                    table=tier_of(group).table,
                    keys=keys,
                    offsets=offsets,
                    weights=weights,
                    combiner=bags.combiner,
                    max_norm=None if bags.max_norm is None else max(bags.max_norm, TINIEST),
                    default_key=bags.default_key,
                    negative=bags.negative,
                    padding_key=group.config.padding_bits,
                    absent=absent,
                    checked=checked,
                )
                for (group, bags), (keys, offsets, weights), absent, checked in zip(
                    self.parts, self._arrays, self._absent, self._checked, strict=True
                )
            ],
        )

    def keys_by_feature(self) -> list[tuple[Group, DeviceArray]]:
        """The keys of each feature, int64[nnz], on the device."""
        return [(group, keys) for (group, _), (keys, _, _) in zip(self.parts, self._arrays, strict=True)]

    def expire(self, now_ms: int) -> None:
        """Leave what has expired to memory. With the locks held. Raises NeedSpace."""
        for group in self.groups:
            tier_of(group).expire(now_ms)

    # --- keys without a row on the device ---

    def wanted(self, batch: FusedBatch, found: Sequence[Absent]) -> Wanted:
        """The keys that have none and are not known to have none anywhere. With the locks held."""
        by_group: dict[int, list[tuple[I64, I64]]] = {}
        for i, ((group, _), absent) in enumerate(zip(self.parts, found, strict=True)):
            if absent.keys or absent.defaults:
                by_group.setdefault(group.number, []).append(batch.absent_keys(i, absent))
        wanted = {}
        for number, each in by_group.items():
            keys, inverse = np.unique(np.concatenate([keys for keys, _ in each]), return_inverse=True)
            counts = np.bincount(inverse, np.concatenate([counts for _, counts in each])).astype(np.int64)
            if number in self._known:
                at, there = self._known[number].positions(keys)
                left = ~(there & self._known[number].nothing[at])
                keys, counts = keys[left], counts[left]
            if keys.size:
                wanted[number] = keys, counts
        return wanted

    def unread(self, wanted: Wanted) -> dict[Group, I64]:
        """What of it was not looked for on the disk yet. With the locks held."""
        unread = {}
        for group in self.groups:
            if group.number in wanted:
                keys, known = wanted[group.number][0], self._known.get(group.number)
                new = keys if known is None else keys[~known.positions(keys)[1]]
                if new.size:
                    unread[group] = new
        return unread

    def read(self, group: Group, keys: I64) -> None:
        """Look for keys on the disk that were not looked for yet. keys: int64[n], distinct. Needs no lock."""
        left = group.table.left
        fetched = group.fetch(keys)
        self._known.setdefault(group.number, _Known(left, _NONE, _NONE, fetched.records[:0])).add(fetched)

    def bring(self, wanted: Wanted, create: Create, now_ms: int) -> None:
        """Bring the rows of keys that were read up, and pin them; those that may be are created.

        With the locks held. Raises NeedSpace, DeviceOutOfMemory; what was done stays.
        """
        for group in self.groups:
            keys, counts = wanted.get(group.number, (_NONE, _NONE))
            step = min(max(32, group.table.capacity // 4), _PIECE_ROWS)
            for start in range(0, keys.size, step):
                known = self._known[group.number]
                at, _ = known.positions(keys[start : start + step])
                fetched = group.fetched_now(known.keys[at], known.part(at), known.left)
                self._decide(known, group, at, fetched, counts[start : start + step], create)
                rows, fresh = group.place(fetched, known.create[at], now_ms)
                known.nothing[at] = rows < 0
                self.created[group.number] = np.concatenate([self.created.get(group.number, _NONE), rows[fresh]])
                tier_of(group).lift(rows[rows >= 0])

    @staticmethod
    def _decide(known: _Known, group: Group, at: I64, fetched: Fetched, counts: I64, create: Create) -> None:
        # once for each key: its occurrences are counted for it
        new = np.flatnonzero(~known.decided[at])
        if new.size:
            known.create[at[new]] = create(group, fetched.part(new), counts[new])
            known.decided[at[new]] = True


def _moderate(group: Group, bags: Bags, weights: F32) -> F32:
    """Weights for the same result whose sums and squares are float32: what is divided by them does not depend on their
    size, so the largest that counts in each bag can be 1."""
    if bags.combiner in (None, "sum") or not _any_far(weights):
        return weights
    pruned = np.zeros(weights.size, np.bool_) if bags.negative else bags.keys < 0
    if group.config.padding_bits is not None:
        pruned |= bags.keys == group.config.padding_bits
    weights = np.where(pruned, np.float32(0), weights)
    bag = np.repeat(np.arange(bags.offsets.size - 1), np.diff(bags.offsets))
    largest = np.full(bags.offsets.size - 1, TINIEST)
    np.maximum.at(largest, bag, weights)
    least = np.finfo(np.float32).smallest_normal  # a key that counts stays one
    return np.where(weights > 0, np.maximum(weights / largest[bag], least), 0).astype(np.float32)


def _any_far(weights: F32) -> bool:
    positive = weights[weights > 0]
    return bool(positive.size) and not (positive.min() > _SMALL and positive.max() < 1 / _SMALL)


def tier_of(group: Group) -> Tier:
    """The group's rows on the device, which it has. With its lock held."""
    assert group.tier is not None
    return group.tier
