"""A push of gradients of pooled rows: what each bag's gradient means for the rows in it."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from rockbed.parallel import in_parts
from rockbed.server.seen import Seen
from rockbed.storage import bag_kernels as k
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


class BagAddresses(NamedTuple):
    """Where arrays of BagGradients begin, see rockbed.addresses: those that parts of other arrays are used for."""

    keys: int
    bag: int
    values: int
    at: int


@dataclass(slots=True)
class BagGradients:
    """A group's share of a push of pooled rows.

    keys: int64[n], every one counts. bag: int32[n], the bag of each; sizes: uint32[bags]. weights: float32[n], or
    empty = 1 each. grads: of the sum over a bag. limits: float32[bags], its max_norm or 0; empty = no bag has one.
    step, generation: as of Gradients. seen: where the keys were found lately. alone: whether every bag has one key, and
    its gradient is that of its row, as it is. `keys` and `grads` may be the caller's.
    """

    group: int
    keys: I64
    bag: I32
    sizes: U32
    weights: F32
    grads: BagSource
    limits: F32
    step: int | None
    addresses: BagAddresses
    alone: bool
    seen: Seen | None = None
    generation: int = 0

    @property
    def dim(self) -> int:
        return self.grads.dim

    def are_fewer_than(self, rows: int) -> bool:
        """Whether a journal takes fewer bytes for these gradients than for their sums by row. rows: distinct ones.

        False as well where the sums depend on the rows.
        """
        size = 4 * self.keys.size + self.sizes.nbytes + self.weights.nbytes + self.grads.nbytes
        return not self.limits.size and size < 4 * self.dim * rows

    def per_key(self, data: F32, rows: I64) -> F32:
        """The gradient that each position sends to its row, float32[n, dim]."""
        out = np.empty((self.keys.size, self.grads.dim), np.float32)
        k.repeat_bags(self.bag, self.weights, *self.grads.arguments, self.limits, data, rows, out)
        return out


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
        """The same with arrays of its own; None where the sums may turn out not to be finite."""
        own = replace(self, weights=self.weights.copy(), grads=self.grads.together())
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
