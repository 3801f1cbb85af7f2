"""Which groups keep rows on the store's device, how they share it, and who works where the rows are."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from rockbed.config import DEVICE_MEMORY, StoreConfig
from rockbed.server import device_lookups, lookups
from rockbed.server.bag_gradients import BagGradients
from rockbed.server.device_pushes import DeviceShare, Push
from rockbed.server.feature_gradients import FeatureGradients
from rockbed.server.group import Group
from rockbed.server.push import Share
from rockbed.server.space import with_space
from rockbed.server.tier import Moved, Tier, stays_in_memory
from rockbed.storage.gpu.devices import Device
from rockbed.storage.gpu.table import MIN_ROWS, row_bytes
from rockbed.types import F32, I64

if TYPE_CHECKING:
    from rockbed.server.engine import Engine

_Result = TypeVar("_Result")


def opened(config: StoreConfig) -> Device | None:
    """The device that a store is to use, if it is to use one. Raises DeviceUnavailable."""
    if config.device in (None, "cpu"):
        return None
    return Device(config.device, DEVICE_MEMORY if config.device_memory is None else config.device_memory)


# --- which groups ---


def changing(engine: "Engine") -> AbstractContextManager[object]:
    """What has to be held, before `groups_lock`, by whoever calls `attach` or `detach`."""
    return nullcontext() if engine.device is None else engine.write_back.mutex


def attach(engine: "Engine", group: Group) -> None:
    """Have a group that someone uses keep rows on the device, if there is one, its settings allow it, and an equal
    share for each such group is enough. Raises BatchTooLarge, and what writing back raises."""
    if engine.device is None or group.tier is not None or stays_in_memory(group.config):
        return
    others = [each for each in engine.groups.values() if each.tier is not None]
    share = engine.device.budget_bytes // (len(others) + 1)
    if any(share < MIN_ROWS * row_bytes(each.table.width) for each in (group, *others)):
        return
    for each in others:
        _give(engine, each, share)
    with group.lock:
        group.tier = Tier(group, engine.device, share)


def detach(engine: "Engine", group: Group) -> None:
    """Have a group keep its rows in memory alone. Raises BatchTooLarge, and what writing back raises."""
    _give(engine, group, None)


def let_go(group: Group) -> None:
    """Take a group that is not used any more off the device, whatever memory lacks of it."""
    with group.lock:
        if group.tier is not None:
            group.tier.forget()
            group.tier = None


def reopen(engine: "Engine", numbers: Iterable[int]) -> None:
    """Attach the groups that were in use before a store was opened anew, those that are still there."""
    with changing(engine), engine.groups_lock:
        for number in sorted(numbers):
            if number in engine.groups:
                attach(engine, engine.groups[number])


def _give(engine: "Engine", group: Group, share: int | None) -> None:
    """Leave a group that is on the device so many bytes of it, where it has more; None: take it off."""

    def give() -> None:
        with group.lock:
            if group.tier is not None and (share is None or share < group.tier.budget_bytes):
                group.tier.empty()  # a table does not shrink: it begins anew
                group.tier = None if share is None else Tier(group, group.tier.device, share)

    with_space(engine, give, "taking rows off the device")


# --- where a call goes ---


def where_rows_are(call: Callable[[], _Result]) -> _Result:
    """What `call` returns, which is tried again when rows have moved to the device or from it meanwhile."""
    while True:
        try:
            return call()
        except Moved:
            continue


def lookup(engine: "Engine", group: Group, keys: I64, out: F32, *, train: bool) -> None:
    """See lookups.lookup."""
    device = engine.device
    if device is None:
        lookups.lookup(group, keys, out, train=train)
        return

    def call() -> None:
        if group.tier is None:
            lookups.lookup(group, keys, out, train=train)
        else:
            device_lookups.lookup(engine, device, group, keys, out, train=train)

    where_rows_are(call)


def prefetch(engine: "Engine", group: Group, keys: I64) -> tuple[int, int]:
    """See lookups.prefetch."""

    def call() -> tuple[int, int]:
        if engine.device is None or group.tier is None:
            return lookups.prefetch(group, keys)
        return device_lookups.prefetch(engine, engine.device, group, keys)

    return where_rows_are(call)


def split(
    engine: "Engine", parts: Sequence[tuple[Group, Share | FeatureGradients, int]]
) -> tuple[list[tuple[Group, Share, int]], Push | None]:
    """The shares of a push that go to memory, and what becomes of the others."""
    in_memory: list[tuple[Group, Share, int]] = []
    above: list[tuple[Group, DeviceShare, int]] = []
    for group, share, step in parts:
        if group.tier is not None and not isinstance(share, BagGradients):
            above.append((group, share, step))
        elif isinstance(share, FeatureGradients):
            in_memory.append((group, share.in_memory(group.config, engine.device), step))
        else:
            in_memory.append((group, share, step))
    return in_memory, Push(engine.device, above) if above and engine.device is not None else None
