"""The gradients of several fused lookups in one push: one change of the store, one step of every optimizer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rockbed.bags import Bags, check_bags
from rockbed.client.feature import Feature
from rockbed.client.fused import global_steps
from rockbed.client.fused_output import FusedOutput
from rockbed.client.ragged import signed
from rockbed.client.request_ids import RequestId, checked_request
from rockbed.client.storage import PyStorage
from rockbed.errors import InvalidConfig
from rockbed.types import F32, I64, AnyArray


@dataclass(frozen=True, slots=True)
class OutputGradient:
    """The gradient of what one fused lookup gave.

    pooled: float32[B, D], None where no pooled feature has one. sequences: by name, float32[nnz, dim], of those that
    have one. They may be arrays of the storage's device, as it has borrowed them. A feature without a gradient is left
    out of the push: its rows see no step, not one with zeros.
    """

    out: FusedOutput
    pooled: F32 | None
    sequences: Mapping[str, F32]

    def whole(self) -> bool:
        """Whether every feature has a gradient."""
        return (self.pooled is not None or self.out.fused.dim == 0) and self.sequences.keys() == set(self.out.sequences)

    def in_memory(self) -> "OutputGradient":
        """The same with arrays of memory: copies of those that are a device's. Raises what check_arrays raises."""
        out, device = self.out, self.out.fused.storage.backend.device
        if device is None:
            return self
        batch = [device.in_memory(each) for each in out.batch]
        with device.queue():
            pooled = None if self.pooled is None else device.down(self.pooled)
            sequences = {name: device.down(each) for name, each in self.sequences.items()}
        return OutputGradient(FusedOutput(out.fused, batch, out.pooled, out.sequences, None), pooled, sequences)


@dataclass(frozen=True, slots=True)
class Share:
    """A feature's bags and the gradient of what they gave, float32[B or nnz, dim]. padding_key: of its group."""

    bags: Bags
    gradient: F32
    padding_key: int | None

    @property
    def pooled(self) -> bool:
        return self.bags.combiner is not None


def push_together(gradients: Sequence[OutputGradient], request: RequestId | None = None) -> bool:
    """Update the rows of all features of lookups of one storage, all or nothing. Durable when it returns.

    gradients: one or more. Lookups of one FusedEmbedding become one batch, those of others features beside them.
    request and what is returned and raised: as of FusedEmbedding.apply_gradients.
    """
    first = gradients[0]
    if len(gradients) == 1 and first.whole():
        return first.out.fused.apply_gradients(first.out, first.pooled, first.sequences, request=request)
    return push_shares(first.out.fused.storage, shares_of(gradients), steps_of(gradients), request)


def shares_of(gradients: Sequence[OutputGradient]) -> list[Share]:
    """The shares of all features that have a gradient, arrays that another process can have."""
    return list(_merged([each.in_memory() for each in gradients]))


def steps_of(gradients: Sequence[OutputGradient]) -> dict[int, int]:
    """By group, the global step of those that have one. Raises InvalidConfig."""
    return global_steps(feature for each in gradients for feature in each.out.fused.features)


def push_shares(
    storage: PyStorage, shares: Sequence[Share], steps: Mapping[int, int], request: RequestId | None = None
) -> bool:
    """Push shares, whatever lookups they come from. steps: by group."""
    size = max([1, *(each.bags.offsets.size - 1 for each in shares if each.pooled)])  # 1: for sequences without bags
    padded = [_padded(each, size) for each in shares]
    pooled = [each.gradient for each in padded if each.pooled]
    batch = [each.bags for each in padded]
    check_bags(batch)
    return storage.backend.fused_apply_gradients(
        batch,
        None,
        np.concatenate(pooled, axis=1) if pooled else np.empty((size, 0), np.float32),
        [each.gradient for each in padded if not each.pooled],
        steps,
        checked_request(request),
    )


def _merged(gradients: Sequence[OutputGradient]) -> Iterator[Share]:
    """The share of each feature, its lookups one after the other."""
    of_fused: dict[int, list[OutputGradient]] = {}
    for each in gradients:
        of_fused.setdefault(id(each.out.fused), []).append(each)
    for parts in of_fused.values():
        fused = parts[0].out.fused
        for i, feature in enumerate(fused.features):
            for negative in (False, True):  # whether such keys count depends on the dtype that they came with
                found = [
                    (part.out.batch[i], gradient)
                    for part in parts
                    if (gradient := _gradient_of(part, feature)) is not None and part.out.batch[i].negative == negative
                ]
                if found:
                    bags, floats = zip(*found, strict=True)
                    padding_key = feature.embedding.config.padding_key
                    yield Share(_one_after_the_other(bags), np.concatenate(floats), padding_key)


def _gradient_of(part: OutputGradient, feature: Feature) -> F32 | None:
    if feature.combiner is None:
        return part.sequences.get(feature.name)
    return None if part.pooled is None else part.pooled[:, part.out.fused.columns[feature.name]]


def _one_after_the_other(bags: Sequence[Bags]) -> Bags:
    ends = np.cumsum([0, *(each.keys.size for each in bags)])
    offsets = [each.offsets[1:] + end for each, end in zip(bags, ends[:-1], strict=True)]
    weights: F32 | None = None
    if any(each.weights is not None for each in bags):
        weights = np.concatenate(
            [np.ones(each.keys.size, np.float32) if each.weights is None else each.weights for each in bags]
        )
    keys = np.concatenate([each.keys for each in bags])
    return replace(bags[0], keys=keys, offsets=np.concatenate([[0], *offsets]).astype(np.int64), weights=weights)


def _padded(share: Share, size: int) -> Share:
    """The same with so many bags, as all of a batch have: what is added is empty, and so has no gradient."""
    bags, nnz = share.bags, share.bags.keys.size
    if not share.pooled:  # what its bags are makes no difference
        offsets: I64 = np.full(size + 1, nnz, np.int64)
        offsets[0] = 0
        return replace(share, bags=replace(bags, offsets=offsets))
    added = size - (bags.offsets.size - 1)
    if added == 0:
        return share
    if bags.default_key is not None:
        bags = filled(bags, share.padding_key)
    offsets = np.concatenate([bags.offsets, np.full(added, bags.keys.size, np.int64)])
    gradient = np.concatenate([share.gradient, np.zeros((added, share.gradient.shape[1]), np.float32)])
    return replace(share, bags=replace(bags, offsets=offsets), gradient=gradient)


def filled(bags: Bags, padding_key: int | None) -> Bags:
    """The same bags, pruned, with the default key written into those that are empty: new ones can be added then.

    padding_key: of the group. Raises InvalidConfig where it is the default key too: written into a bag, it would be
    pruned.
    """
    assert bags.default_key is not None
    if padding_key is not None and signed(padding_key) == bags.default_key:
        raise InvalidConfig(
            f"feature {bags.name!r} has the group's padding_key as its default_key: it cannot be pushed together with "
            "features of more bags"
        )
    kept = np.ones(bags.keys.size, bool)
    if not bags.negative:
        kept &= bags.keys >= 0
    if padding_key is not None:
        kept &= bags.keys != signed(padding_key)
    if bags.weights is not None and bags.combiner != "sum":
        kept &= bags.weights > 0
    ends: I64 = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    ends = ends[bags.offsets]
    counts = np.diff(ends)
    at = ends[:-1][counts == 0]

    def inserted(values: AnyArray, value: float) -> AnyArray:
        return np.insert(values[kept], at, value)

    return replace(
        bags,
        keys=inserted(bags.keys, bags.default_key),
        offsets=np.concatenate([[0], np.cumsum(np.maximum(counts, 1))]).astype(np.int64),
        weights=None if bags.weights is None else inserted(bags.weights, 1.0),
        default_key=None,
        negative=True,
    )
