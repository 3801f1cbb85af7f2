"""One feature's share of a batch as the kernels take it: pruned, filled, and with the scale of each bag."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rockbed.addresses import Addresses, address_of
from rockbed.bags import Bags, refuse
from rockbed.config import GroupConfig
from rockbed.storage import bag_kernels as k
from rockbed.storage import batch_kernels, sent_kernels
from rockbed.types import F32, I64

_COMBINERS = {None: k.SUM, "sum": k.SUM, "mean": k.MEAN, "sqrtn": k.SQRTN}
_DIVIDING = ("mean", "sqrtn")
_NO_FLOATS = np.empty(0, np.float32)
_NO_KEYS = np.empty(0, np.int64)
TINIEST = float(np.finfo(np.float32).smallest_subnormal)  # 0 is no limit to the kernels


@dataclass(slots=True)
class CleanBags:
    """Bags of which every key counts, but for the group's padding key where they are not `pruned`.

    keys: int64[n]; offsets: int64[bags + 1]; weights: float32[n], what rows are multiplied by, or empty = 1 each;
    scale: float32[bags], what the sum over a bag is multiplied by, or empty = 1. At most one of the two is not empty.
    """

    group: int
    keys: I64
    offsets: I64
    weights: F32
    scale: F32
    max_norm: float | None
    pooled: bool  # False for a sequence, whose every key is a bag of its own
    generation: int = 0
    pruned: bool = True
    _addresses: tuple[int, int, int, int] | None = None

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """Where keys, offsets, weights and scale begin, see rockbed.addresses."""
        if self._addresses is None:
            ints = address_of(self.keys), address_of(self.offsets)
            self._addresses = *ints, address_of(self.weights), address_of(self.scale)
        return self._addresses

    @property
    def count(self) -> int:
        """How many bags there are."""
        return self.offsets.size - 1

    @property
    def are_rows(self) -> bool:
        """Whether what is wanted is the row of each key, and no sum."""
        return not self.pooled and self.keys.size == self.count

    @classmethod
    def of_keys(cls, group: int, keys: I64) -> "CleanBags":
        """Each key on its own, also those that a batch would be rid of. The padding key has no row."""
        offsets = np.arange(keys.size + 1)
        return cls(group, keys, offsets, _NO_FLOATS, _NO_FLOATS, None, pooled=False, pruned=False)


def clean_all(parts: Sequence[tuple[Bags, GroupConfig]]) -> list[CleanBags]:
    """What is left of features' shares, each with the settings of its group. Their sizes have been checked, what is in
    their arrays is here: raises what check_arrays raises."""
    places = Addresses()  # features with one key a sample often share their offsets
    sent = [
        (
            *(places.of(bags.keys), bags.keys.size, places.of(bags.offsets), bags.offsets.size - 1),
            *((0, 0) if bags.weights is None else (places.of(bags.weights), bags.weights.size)),
            *(bags.negative, bags.combiner in _DIVIDING, config.padding_key is not None, config.padding_bits or 0),
            bags.default_key is not None,
        )
        for bags, config in parts
    ]
    found = np.empty(len(parts), np.uint8)
    batch_kernels.examine_all(np.array(sent, batch_kernels.SENT), found)
    return [
        _clean(bags, config, bits, (of[0], of[2], of[4], 0))  # none has a scale
        for (bags, config), bits, of in zip(parts, found.tolist(), sent, strict=True)
    ]


def _clean(bags: Bags, config: GroupConfig, found: int, places: tuple[int, int, int, int]) -> CleanBags:
    """found: bits of sent_kernels.examine. places: `addresses` of the arrays as they were sent."""
    keys, offsets = bags.keys, bags.offsets
    weights = _NO_FLOATS if bags.weights is None else bags.weights
    if found & sent_kernels.WRONG:
        refuse(bags.name, keys, offsets, bags.weights)
    if bags.combiner is None:
        offsets = np.arange(keys.size + 1)
    combiner = _COMBINERS[bags.combiner]
    if found & sent_kernels.UNCLEAN:
        padding = _NO_KEYS if config.padding_bits is None else np.array([config.padding_bits])
        default = _NO_KEYS if bags.default_key is None else _one(bags.default_key)
        room = keys.size + (offsets.size - 1 if default.size else 0)
        kept, ends = np.empty(room, np.int64), np.empty_like(offsets)
        kept_weights = np.empty(room if weights.size else 0, np.float32)
        positive = bags.combiner in _DIVIDING
        n = sent_kernels.prune(
            keys, offsets, weights, bags.negative, positive, padding, default, kept, ends, kept_weights
        )
        keys, offsets, weights = kept[:n], ends, kept_weights[:n]
    scale = _NO_FLOATS
    if bags.combiner in _DIVIDING and weights.size:
        given, weights = weights, np.empty_like(weights)
        k.shares(offsets, given, combiner, weights)
    elif bags.combiner in _DIVIDING and found & sent_kernels.LONG:
        scale = np.empty(offsets.size - 1, np.float32)
        k.scales(offsets, combiner, scale)
    max_norm = None if bags.max_norm is None else max(bags.max_norm, TINIEST)
    pooled = bags.combiner is not None
    as_sent = keys is bags.keys and offsets is bags.offsets and not weights.size and not scale.size
    known = places if as_sent else None
    return CleanBags(bags.group, keys, offsets, weights, scale, max_norm, pooled, bags.generation, _addresses=known)


def _one(key: int) -> I64:
    return np.array([key & (2**64 - 1)], np.uint64).view(np.int64)
