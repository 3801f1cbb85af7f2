"""A push of gradients of pooled rows: what each bag's gradient means for the rows in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np

from rockbed.bags import Bags
from rockbed.config import GroupConfig
from rockbed.device_arrays import on_device
from rockbed.parallel import in_parts
from rockbed.server.bags import CleanBags, clean
from rockbed.server.seen import Seen
from rockbed.storage import bag_kernels as k
from rockbed.storage.gpu.devices import Device
from rockbed.types import F32, I32, I64, U32

_NONE = np.empty(0, np.float32)
_LARGEST = 3e38  # of a float32, less what a sum may be rounded up by


@dataclass(slots=True)
class BagSource:
    """Where the gradients of bags lie: that of bag b is scale[b] * values[at[b] : at[b] + dim].

    values: float32, one axis; at: int64[bags]; scale: float32[bags], or empty = 1.
    """

    values: F32
    at: I64
    scale: F32
    dim: int

    @classmethod
    def of(cls, grads: F32) -> "BagSource":
        """grads: float32[bags, dim], contiguous."""
        bags, dim = grads.shape
        return cls(grads.reshape(-1), np.arange(0, bags * dim, max(dim, 1)), _NONE, dim)

    @property
    def arguments(self) -> tuple[F32, I64, F32]:
        """What the kernels take."""
        return self.values, self.at, self.scale

    @property
    def nbytes(self) -> int:
        """Of the gradients alone."""
        return 4 * self.dim * self.at.size

    def together(self) -> "BagSource":
        """The same in an array of their own."""
        grads = np.empty((self.at.size, self.dim), np.float32)
        k.take_gradients(*self.arguments, grads)
        return BagSource.of(grads)


@dataclass(slots=True)
class BagGradients:
    """A group's share of a push of pooled rows.

    keys: int64[n], every one counts. bag: int32[n], the bag of each; sizes: uint32[bags]. weights: float32[n], or
    empty = 1 each. grads: of the sum over a bag. limits: float32[bags], its max_norm or 0; empty = no bag has one.
    step, generation: as of Gradients. seen: where the keys were found lately. `keys` and `grads` may be the caller's.
    """

    group: int
    keys: I64
    bag: I32
    sizes: U32
    weights: F32
    grads: BagSource
    limits: F32
    step: int | None
    seen: Seen | None = None
    generation: int = 0

    @property
    def dim(self) -> int:
        return self.grads.dim

    def per_key(self, data: F32, rows: I64) -> F32:
        """The gradient that each position sends to its row, float32[n, dim]."""
        out = np.empty((self.keys.size, self.grads.dim), np.float32)
        k.repeat_bags(self.bag, self.weights, *self.grads.arguments, self.limits, data, rows, out)
        return out


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
        return joined([clean(each, config) for each in features], given, [], self.dim, self.step)

    def _down(self, device: Device, array: F32, column: int) -> tuple[F32, int]:
        if not on_device(array):
            return array, column
        with device.queue():
            return device.down(array[:, column : column + self.dim]), 0


@dataclass(slots=True)
class BagSums:
    """The summed gradients of distinct rows, not summed yet.

    inverse: int32[n], the number of the row of each position, or -1. bag, sizes, weights, grads, limits: as of
    BagGradients. order, starts: the positions of each row, see bag_kernels.by_number.
    """

    inverse: I32
    bag: I32
    sizes: U32
    weights: F32
    grads: BagSource
    limits: F32
    order: I32 = field(repr=False)
    starts: I64 = field(repr=False)

    @classmethod
    def of(
        cls, inverse: I32, count: int, bag: I32, sizes: U32, weights: F32, grads: BagSource, limits: F32
    ) -> "BagSums":
        """inverse has the numbers 0..count - 1."""
        starts, order = np.zeros(count + 1, np.int64), np.empty(inverse.size, np.int32)
        k.by_number(inverse, starts, order)
        return cls(inverse, bag, sizes, weights, grads, limits, order, starts)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.starts.size - 1

    @property
    def dim(self) -> int:
        return self.grads.dim

    def for_journal(self) -> "BagSums | None":
        """The same with arrays of its own, where a journal takes fewer bytes for it than for the sums; None elsewhere.

        None as well where the sums depend on the rows, or may turn out not to be finite.
        """
        size = self.inverse.nbytes + self.sizes.nbytes + self.weights.nbytes + self.grads.nbytes
        if self.limits.size or size >= 4 * self.dim * self.count:
            return None
        own = replace(self, grads=self.grads.together())
        return own if own._surely_finite() else None

    def _surely_finite(self) -> bool:
        weight = float(np.abs(self.weights).max()) if self.weights.size else 1.0
        most = int(np.diff(self.starts).max())
        return k.largest(self.grads.values) * max(weight, 1.0) * most < _LARGEST

    def part(self, low: int, high: int, data: F32, rows: I64, out: F32) -> None:
        """out = the sums of the rows low..high - 1, float32[high - low, dim]. data[rows]: all of the rows as they were
        looked up."""
        where = self.order, self.starts, self.bag, self.weights
        k.sum_bags(*where, *self.grads.arguments, self.limits, data, rows, low, high, out)

    def all(self, data: F32, rows: I64) -> F32:
        """All of the sums, float32[count, dim]. data, rows: as of `part`."""
        sums = np.empty((self.count, self.dim), np.float32)
        in_parts(self.count, lambda part: self.part(part.start, part.stop, data, rows, sums[part]))
        return sums


def joined(
    features: Sequence[CleanBags],
    given: Sequence[tuple[F32, int]],
    seen: Sequence[Seen],
    dim: int,
    step: int | None,
) -> BagGradients:
    """A group's share of a push from the features that it has in a batch, at least one.

    given: for each, the array that holds the gradients of its bags, and their first column. seen: for each, or none.
    """
    first, count = features[0], sum(each.count for each in features)
    keys = first.keys if len(features) == 1 else np.concatenate([each.keys for each in features])
    arrays = list({id(array): array for array, _ in given}.values())  # one, unless there are sequences
    values = arrays[0].reshape(-1) if len(arrays) == 1 else np.concatenate([each.reshape(-1) for each in arrays])
    starts = dict(zip(map(id, arrays), accumulate((each.size for each in arrays), initial=0), strict=False))
    bag, sizes, places = np.empty(keys.size, np.int32), np.empty(count, np.uint32), np.empty(count, np.int64)
    bags = at = 0
    for each, (array, column) in zip(features, given, strict=True):
        end = at + each.keys.size
        k.place_bags(each.offsets, bags, starts[id(array)] + column, array.shape[1], bag[at:end], sizes, places)
        bags, at = bags + each.count, end
    weights = _spread([(each.weights, each.keys.size) for each in features])
    scale = _spread([(each.scale, each.count) for each in features])
    limits = _NONE
    if any(each.max_norm for each in features):
        limits = np.concatenate([np.full(each.count, each.max_norm or 0, np.float32) for each in features])
    grads = BagSource(values, places, scale, dim)
    generation = first.generation
    return BagGradients(first.group, keys, bag, sizes, weights, grads, limits, step, _one_of(seen), generation)


def _spread(parts: Sequence[tuple[F32, int]]) -> F32:
    """float32[sum of sizes], a copy of each part, 1 where it is empty; empty where all of them are. parts: with the
    size of each, where it is not empty."""
    if not any(part.size for part, _ in parts):
        return _NONE
    return np.concatenate([part if part.size else np.ones(size, np.float32) for part, size in parts])


def _one_of(seen: Sequence[Seen]) -> Seen | None:
    if not seen or not all(each.whole and each.left == seen[0].left for each in seen):
        return None
    if len(seen) == 1:
        return seen[0]
    return Seen(seen[0].table, seen[0].left, np.concatenate([each.rows for each in seen]))
