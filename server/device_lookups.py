"""Lookups of groups that keep rows on a device."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rockbed.bags import Bags
from rockbed.errors import BatchTooLarge, DeviceOutOfMemory
from rockbed.server.device_calls import DeviceCall, Wanted
from rockbed.server.fetched import Fetched
from rockbed.server.fitting import must_take
from rockbed.server.group import SPACE_TRIES, Group
from rockbed.server.lookups import admitted
from rockbed.server.tier import Moved
from rockbed.storage.gpu.devices import Device
from rockbed.storage.gpu.fused import Absent, FarWeights
from rockbed.storage.gpu.launcher import DeviceArray
from rockbed.storage.hot import NeedSpace
from rockbed.types import F32, I64, Bool

if TYPE_CHECKING:
    from rockbed.server.engine import Engine

Results = tuple[DeviceArray, list[DeviceArray]]
"""On the device: float32[samples, dims of the features with a combiner], and float32[nnz, dim] for each other one."""


def whole(group: Group, keys: I64) -> Bags:
    """Keys as a feature whose every key gives its row. keys: int64[n]."""
    return Bags("keys", group.number, keys, np.array([0, keys.size]), combiner=None, negative=True)


def lookup(engine: "Engine", device: Device, group: Group, keys: I64, out: F32, *, train: bool) -> None:
    """As lookups.lookup. Raises Moved where the group's rows are in memory by now."""
    must_take(group.config, keys.size, out)

    def look_up(piece: slice) -> None:
        call = _Lookup(engine, device, [(group, whole(group, keys[piece]))], 0, train=train)
        call.run()
        with device.queue():
            out[piece] = device.launcher.to_host(call.sequences[0])

    _in_pieces(group, keys.size, look_up)


def prefetch(engine: "Engine", device: Device, group: Group, keys: I64) -> tuple[int, int]:
    """As lookups.prefetch, up to the device. Raises Moved."""
    distinct = np.unique(keys)
    sought = distinct[group.not_padding(distinct, np.arange(distinct.size))]
    nowhere = [distinct.size - sought.size]  # the padding key, and those of each piece

    def look_up(piece: slice) -> None:
        call = _Lookup(engine, device, [(group, whole(group, sought[piece]))], 0, train=False, counted=False)
        nowhere.append(call.run()[0].keys)

    _in_pieces(group, sought.size, look_up)
    return distinct.size - sum(nowhere), sum(nowhere)


def pool(
    engine: "Engine",
    device: Device,
    parts: Sequence[tuple[Group, Bags]],
    size: int,
    *,
    train: bool,
    into: Results | None = None,
) -> Results:
    """The results of features of `size` samples. into: arrays that they are to fill; None = new ones.

    Raises Moved, DeviceOutOfMemory (a group has no room there for so many rows at once), BatchTooLarge.
    """
    call = _Lookup(engine, device, parts, size, train=train, into=into)
    call.run()
    return call.pooled, call.sequences


def _in_pieces(group: Group, n: int, call: Callable[[slice], None]) -> None:
    """Make calls for as many keys at a time as are sure to have room together."""
    start = 0
    while start < n:
        step = _room(group)
        try:
            call(slice(start, start + step))
        except DeviceOutOfMemory:
            if _room(group) >= step:
                raise
            continue  # a group was opened meanwhile, and this one has less room now
        start += step


def _room(group: Group) -> int:
    with group.lock:
        if group.tier is None:
            raise Moved
        return group.tier.capacity


class _Unread(Exception):
    """Internal: keys that nobody has looked for on the disk yet."""

    def __init__(self, keys: dict[Group, I64]) -> None:
        super().__init__()
        self.keys = keys


class _Lookup:
    def __init__(
        self,
        engine: "Engine",
        device: Device,
        parts: Sequence[tuple[Group, Bags]],
        size: int,
        *,
        train: bool,
        counted: bool = True,
        into: Results | None = None,
    ) -> None:
        """counted: in the groups' counters. into: as of `pool`."""
        self._engine, self._parts, self._train, self._counted = engine, parts, train, counted
        self._first = counted
        self._now_ms = engine.now_ms()
        self._call = DeviceCall(device, parts, [_absent_value(group, train=train) for group, _ in parts])
        self.pooled, self.sequences = into or self._room(device, size)

    def _room(self, device: Device, size: int) -> Results:
        width = sum(group.config.dim for group, bags in self._parts if bags.combiner is not None)
        shapes = [(bags.keys.size, group.config.dim) for group, bags in self._parts if bags.combiner is None]
        with device.queue():
            empty = device.launcher.empty
            return empty((size, width), np.float32), [empty(shape, np.float32) for shape in shapes]

    def run(self) -> list[Absent]:
        """Fill `pooled` and `sequences`. Returns what has no row, by feature."""
        # whenever memory is full, the rows of one piece at least have got through it
        tries = SPACE_TRIES * (1 + sum(-(-bags.keys.size // 256) for _, bags in self._parts))
        while True:
            try:
                with self._call.locked():
                    return self._fill()
            except _Unread as unread:
                for group, keys in unread.keys.items():
                    self._call.read(group, keys)
            except FarWeights as far:
                self._call.moderate(far.features)
            except NeedSpace as need:
                if tries <= 0:
                    raise BatchTooLarge(
                        f"{need.rows} rows more do not fit into the memory budget, through which rows get to the device"
                    ) from None
                tries -= self._engine.make_space(need)

    def _fill(self) -> list[Absent]:
        call, results = self._call, (self.pooled, self.sequences)
        call.expire(self._now_ms)
        batch = call.batch()
        absent = batch.pool(*results)
        self._count(absent)
        wanted = call.wanted(batch, absent)
        if wanted:
            self._must_be_read(wanted)
            try:
                # pinned: what is there must not make room for what comes
                wanted = call.wanted(batch, batch.pool(*results, pin=True))
                while wanted:
                    self._must_be_read(wanted)
                    call.bring(wanted, self._create, self._now_ms)
                    absent = batch.pool(*results, pin=True)
                    wanted = call.wanted(batch, absent)
            finally:
                batch.unpin()
        self._count_absent(absent)
        return absent

    def _must_be_read(self, wanted: Wanted) -> None:
        unread = self._call.unread(wanted)
        if unread:  # the locks are let go of for that
            raise _Unread(unread)

    def _create(self, group: Group, fetched: Fetched, counts: I64) -> Bool:
        if self._train:
            return admitted(group, fetched, counts, self._now_ms)
        return np.zeros(counts.size, np.bool_)

    def _count(self, absent: Sequence[Absent]) -> None:
        if self._first:
            for (group, bags), each in zip(self._parts, absent, strict=True):
                group.count_lookup(bags.keys.size, bags.keys.size - each.keys)
        self._first = False

    def _count_absent(self, absent: Sequence[Absent]) -> None:
        if self._counted:
            for (group, _), each in zip(self._parts, absent, strict=True):
                if self._train:
                    group.counters.not_admitted += each.keys + each.defaults
                else:
                    group.counters.misses += each.keys + each.defaults


def _absent_value(group: Group, *, train: bool) -> float:
    value = group.config.unadmitted_value if train else group.config.miss_value
    if isinstance(value, str):
        raise Moved  # it was altered: such groups stay in memory
    return value
