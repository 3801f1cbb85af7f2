"""Fused lookups of which some arrays are a device's: results are there too, and groups in memory get copies."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rockbed.bags import Bags, check_bags
from rockbed.server import device_lookups, fused, tiers
from rockbed.storage.gpu.devices import Device
from rockbed.storage.gpu.launcher import DeviceArray
from rockbed.types import F32

if TYPE_CHECKING:
    from rockbed.server.engine import Engine
    from rockbed.server.group import Group


def lookup(
    engine: "Engine",
    device: Device,
    batch: Sequence[Bags],
    pooled: DeviceArray,
    sequences: Sequence[DeviceArray],
    *,
    train: bool,
) -> None:
    """As fused.lookup, of arrays of the device. Raises what that raises."""
    size = check_bags(batch)
    engine.check_open()
    if train:
        engine.must_be_writable("look up with train=True (absent keys would get rows); pass train=False")
    groups = [engine.group(each.group, each.generation) for each in batch]
    places = fused.places_of(batch, groups, size, pooled, sequences)

    def look_up() -> None:
        above = [i for i, group in enumerate(groups) if group.tier is not None]
        if len(above) == len(batch):
            parts = list(zip(groups, batch, strict=True))
            device_lookups.pool(engine, device, parts, size, train=train, into=(pooled, list(sequences)))
            return
        rest = [i for i in range(len(batch)) if i not in above]
        below = [(groups[i], device.in_memory(batch[i])) for i in rest]
        if above:  # first: where its kernels find that a batch is wrong, memory must not have made rows for it
            parts = [(groups[i], batch[i]) for i in above]
            found = device_lookups.pool(engine, device, parts, size, train=train)
            with device.queue():
                fused.put(found, parts, [places[i] for i in above])
        found = _from_memory(engine, device, below, size, train=train)
        with device.queue():
            fused.put(found, below, [places[i] for i in rest])

    tiers.where_rows_are(look_up)


def _from_memory(
    engine: "Engine", device: Device, parts: "Sequence[tuple[Group, Bags]]", size: int, *, train: bool
) -> device_lookups.Results:
    width = sum(group.config.dim for group, bags in parts if bags.combiner is not None)
    pooled = np.empty((size, width), np.float32)
    sequences: list[F32] = [
        np.empty((bags.keys.size, group.config.dim), np.float32) for group, bags in parts if bags.combiner is None
    ]
    fused.lookup(engine, [bags for _, bags in parts], pooled, sequences, train=train)
    with device.queue():
        return device.up(pooled), [device.up(each) for each in sequences]
