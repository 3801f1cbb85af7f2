"""A push of the gradients of features, and what it means for each group."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rockbed.addresses import address_of
from rockbed.bags import Bags
from rockbed.config import GroupConfig
from rockbed.device_arrays import on_device
from rockbed.server.bag_gradients import BagAddresses, BagGradients, BagSource
from rockbed.server.bags import CleanBags, clean_all
from rockbed.server.seen import Seen
from rockbed.storage import batch_kernels as k
from rockbed.storage.gpu.devices import Device
from rockbed.types import F32, I32, U32

_NONE = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class FeatureGradients:
    """The same as a device takes it: the features that the group has in a batch, at least one, as they were sent, and
    for each the array that holds the gradients of its bags, and their first column. dim: theirs; step, generation: of
    Gradients. Some of the arrays may be the device's.
    """

    group: int
    features: Sequence[Bags]
    given: Sequence[tuple[F32, int]]
    dim: int
    step: int | None
    generation: int = 0

    def in_memory(self, config: GroupConfig, device: Device | None) -> BagGradients:
        """The same as memory takes it. device: whose arrays some may be. Raises what check_arrays raises for those."""
        features, given = self.features, self.given
        if device is not None:
            features = [device.in_memory(each) for each in features]
            given = [self._down(device, array, column) for array, column in given]
        left = clean_all([(each, config) for each in features])
        return joined([CleanFeatures(left, given, [], self.dim, self.step)])[0]

    def _down(self, device: Device, array: F32, column: int) -> tuple[F32, int]:
        if not on_device(array):
            return array, column
        with device.queue():
            return device.down(array[:, column : column + self.dim]), 0


@dataclass(slots=True)
class CleanFeatures:
    """The features that a group has in a batch, at least one. given: for each, the array that holds the gradients of
    its bags, and their first column. seen: for each, or none. dim, step: of the group, of Gradients."""

    features: Sequence[CleanBags]
    given: Sequence[tuple[F32, int]]
    seen: Sequence[Seen]
    dim: int
    step: int | None


def joined(shares: Sequence[CleanFeatures]) -> list[BagGradients]:
    """What each of the groups is to apply."""
    if not shares:
        return []
    # one array, unless there are sequences
    arrays = list({id(array): array for share in shares for array, _ in share.given}.values())
    values = arrays[0].reshape(-1) if len(arrays) == 1 else np.concatenate([each.reshape(-1) for each in arrays])
    begins = dict(zip(map(id, arrays), accumulate((each.size for each in arrays), initial=0), strict=False))
    work: list[tuple[int, ...]] = []
    keys, bags = [0], [0]  # where each share begins, and the end of the last
    for share in shares:
        first, number = keys[-1], 0
        for each, (array, column) in zip(share.features, share.given, strict=True):
            n, count = each.keys.size, each.count
            place = begins[id(array)] + column, array.shape[1]
            work.append((each.addresses[1], first, n, bags[-1], number, count, *place))
            first, number = first + n, number + count
        keys.append(first)
        bags.append(bags[-1] + number)
    bag, sizes, at = np.empty(keys[-1], np.int32), np.empty(bags[-1], np.uint32), np.empty(bags[-1], np.int64)
    alone = np.empty(len(work), np.bool_)
    k.place_features(np.array(work, k.FEATURE), bag, sizes, at, alone)
    bag_address, at_address, values_address = address_of(bag), address_of(at), address_of(values)
    found, of_feature = [], iter(alone.tolist())
    for share, first, last, start, end in zip(shares, keys, keys[1:], bags, bags[1:], strict=False):
        source = BagSource(
            values, at[start:end], _spread([(each.scale, each.count) for each in share.features]), share.dim
        )
        addresses = bag_address + 4 * first, values_address, at_address + 8 * start
        single = [next(of_feature) for _ in share.features]
        found.append(_share(share, bag[first:last], sizes[start:end], source, addresses, alone=all(single)))
    return found


def _share(
    share: CleanFeatures, bag: I32, sizes: U32, grads: BagSource, addresses: tuple[int, int, int], *, alone: bool
) -> BagGradients:
    # alone: whether every bag has one key
    features = share.features
    first = features[0]
    limits = _NONE
    if any(each.max_norm for each in features):
        limits = np.concatenate([np.full(each.count, each.max_norm or 0, np.float32) for each in features])
    if len(features) == 1:
        keys, keys_address = first.keys, first.addresses[0]
    else:
        keys = np.concatenate([each.keys for each in features])
        keys_address = address_of(keys)
    weights = _spread([(each.weights, each.keys.size) for each in features])
    return BagGradients(
        first.group,
        keys,
        bag,
        sizes,
        weights,
        grads,
        limits,
        share.step,
        BagAddresses(keys_address, *addresses),
        alone and not (weights.size or grads.scale.size or limits.size),
        _one_of(share.seen),
        first.generation,
    )


def _spread(parts: Sequence[tuple[F32, int]]) -> F32:
    """float32[sum of sizes]: each part, 1 where it is empty; empty where all of them are. parts: with the size of each,
    where it is not empty."""
    if len(parts) == 1:
        return parts[0][0]
    if not any(part.size for part, _ in parts):
        return _NONE
    return np.concatenate([part if part.size else np.ones(size, np.float32) for part, size in parts])


def _one_of(seen: Sequence[Seen]) -> Seen | None:
    if not seen or not all(each.whole and each.left == seen[0].left for each in seen):
        return None
    if len(seen) == 1:
        return seen[0]
    return Seen(seen[0].table, seen[0].left, np.concatenate([each.rows for each in seen]))
