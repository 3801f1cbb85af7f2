"""A fused batch as the engine and the wire take it: for each feature, bags of keys of one group. Without numba."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from rockbed.config import FLOAT32_MAX, number_problems, whole_problems
from rockbed.device_arrays import on_device
from rockbed.errors import BatchTooLarge, InvalidConfig, WrongShape
from rockbed.types import F32, I64, AnyArray

COMBINERS = ("sum", "mean", "sqrtn")
"""How the rows of a bag become one: sum(w e), sum(w e) / sum(w), sum(w e) / sqrt(sum(w^2)), in the names of
TensorFlow's embedding_lookup_sparse."""

KEYS_MAX = 2**31 - 1  # of one batch: positions are int32 where they are stored
BAGS_MAX = 2**31 - 2
FEATURES_MAX = 10_000  # of one batch: each costs a tenth of a millisecond whatever it holds


# Not frozen, as others that there are for each feature of a batch: a frozen one takes 0.1 us a field to make.
@dataclass(slots=True)
class Bags:
    """One feature's share of a batch of B samples.

    name: for messages. keys: int64[nnz], the bits of uint64 ones. offsets: int64[B + 1]: bag b has the keys
    offsets[b]..offsets[b + 1] - 1. weights: float32[nnz], finite; None = 1 each. They are numpy's, or all of them a
    device's (an embedded store's); what holds for the values of those is found out by whoever reads them.
    combiner: of COMBINERS, or None for a sequence, whose rows are not pooled: one row a key, zeros for a pruned one.
    max_norm: rows of a larger L2 norm are scaled down to it before they are combined; None = as they are.
    default_key: what an empty bag holds (with weight 1), as bits; None = its result is zeros. Bags are empty after
    pruning, too.
    negative: whether keys below 0 are keys as any others; otherwise they are pruned. Pruned as well are the padding key
    of the group and, unless the combiner is "sum", keys of weights <= 0.
    generation: of the group, as of requests.Lookup.
    """

    name: str
    group: int
    keys: I64
    offsets: I64
    weights: F32 | None = None
    combiner: str | None = "mean"
    max_norm: float | None = None
    default_key: int | None = None
    negative: bool = False
    generation: int = 0

    @property
    def on_device(self) -> bool:
        """Whether the arrays are in the memory of a GPU."""
        return on_device(self.keys)


def copied(batch: Sequence[Bags]) -> list[Bags]:
    """The same, with arrays of its own; features that share one, as those with one key a sample may their offsets, do
    so in the copy."""
    copies: dict[int, AnyArray] = {}

    def copy(array: Any) -> Any:
        if id(array) not in copies:
            copies[id(array)] = array.copy()
        return copies[id(array)]

    return [
        Bags(
            each.name,
            each.group,
            copy(each.keys),
            copy(each.offsets),
            None if each.weights is None else copy(each.weights),
            each.combiner,
            each.max_norm,
            each.default_key,
            each.negative,
            each.generation,
        )
        for each in batch
    ]


def check_bags(batch: Sequence[Bags], *, contents: bool = True) -> int:
    """Raise WrongShape, InvalidConfig, BatchTooLarge for what no engine takes. Returns B, 0 without features.

    contents: what is in the arrays, too (`check_contents`); an engine looks at that when it is to use it, whoever has
    done so before.
    """
    if len(batch) > FEATURES_MAX:
        raise BatchTooLarge(f"{len(batch)} features in one fused batch, {FEATURES_MAX} are the most: use several")
    for each in batch:
        weights = None if each.weights is None else each.weights.size
        check_settings(each.name, each.combiner, each.max_norm, each.default_key, weights=weights is not None)
        check_sizes(each.keys.size, each.offsets.size, weights, _prefix(each.name))
    if contents:
        check_contents(batch)
    sizes = [each.offsets.size - 1 for each in batch]
    if len(set(sizes)) > 1:
        raise WrongShape(
            f"the features of a batch differ in the number of bags: {_short(batch)}. Give each an offset for every "
            "sample, also for those without keys"
        )
    total = sum(each.keys.size for each in batch)
    if total > KEYS_MAX:
        raise BatchTooLarge(f"{total} keys in one fused batch, {KEYS_MAX} are the most: send smaller batches")
    bags = sum(sizes)  # numbered as keys are, and each may be filled with one
    if total + bags > KEYS_MAX:
        raise BatchTooLarge(
            f"{total} keys in {bags} bags of one fused batch, {KEYS_MAX} keys and bags are the most: send smaller ones"
        )
    return batch[0].offsets.size - 1 if batch else 0


def check_contents(batch: Iterable[Bags]) -> None:
    """Raise what check_arrays raises for arrays of the features that are in memory; those of a device are looked at
    there."""
    for each in batch:
        if not each.on_device:
            check_arrays(each.keys, each.offsets, each.weights, _prefix(each.name))


def refuse(name: str, keys: AnyArray, offsets: I64, weights: F32 | None) -> NoReturn:
    """Raise what check_arrays raises for a feature's arrays in which a kernel has found something wrong."""
    check_arrays(keys, offsets, weights, _prefix(name))
    raise WrongShape(
        f"{_prefix(name)}its offsets or weights changed while they were read: leave the arrays of a batch alone until "
        "it has been pushed"
    )


def _prefix(name: str) -> str:
    return f"feature {name!r}: "


def check_settings(
    name: str, combiner: str | None, max_norm: float | None, default_key: int | None, *, weights: bool = False
) -> None:
    """Raise InvalidConfig with everything that a feature cannot be. weights: whether it is sent with weights."""
    problems = setting_problems(combiner, max_norm, default_key, weights=weights)
    if problems:
        raise InvalidConfig(_prefix(name) + "; ".join(problems))


def setting_problems(
    combiner: str | None, max_norm: float | None, default_key: int | None, *, weights: bool = False
) -> list[str]:
    """What is wrong with a feature's settings; empty when nothing is. weights: whether it is sent with weights."""
    problems = []
    if combiner is not None and combiner not in COMBINERS:
        problems.append(f"combiner is {combiner!r}, not one of {', '.join(map(repr, COMBINERS))}, nor None")
    if max_norm is not None:
        problems += number_problems("max_norm", max_norm, above=0, most=FLOAT32_MAX)
    if default_key is not None:
        problems += whole_problems("default_key", default_key, -(2**63), 2**64 - 1)
    if combiner is None and default_key is not None:
        problems.append("default_key is for bags; a sequence (combiner=None) has a row for each key and none else")
    if combiner is None and weights:
        problems.append("weights are for combining; a sequence (combiner=None) takes none")
    return problems


def check_arrays(keys: AnyArray, offsets: I64, weights: F32 | None, prefix: str = "") -> None:
    """Raise for offsets and weights that do not go with the keys, whatever their dtypes. prefix: of the messages.

    Raises WrongShape, BatchTooLarge, InvalidConfig (weights that are not finite).
    """
    nnz = keys.size
    check_sizes(nnz, offsets.size, None if weights is None else weights.size, prefix)
    if offsets[0] != 0 or offsets[-1] != nnz:
        raise WrongShape(
            f"{prefix}offsets run from {offsets[0]} to {offsets[-1]}, with {nnz} keys they run from 0 to {nnz}"
        )
    falls = offsets[1:] < offsets[:-1]
    if np.count_nonzero(falls):  # takes less time than any()
        at = int(falls.argmax())
        raise WrongShape(f"{prefix}offsets[{at + 1}] = {offsets[at + 1]} after {offsets[at]}: offsets never fall")
    if weights is None:
        return
    finite = np.isfinite(weights)
    if not finite.all():
        at = int(np.argmin(finite))
        raise InvalidConfig(
            f"{prefix}weights[{at}] is {weights[at]}: weights are finite numbers (a key that is not to count is left "
            "out)"
        )


def check_sizes(keys: int, offsets: int, weights: int | None, prefix: str = "") -> None:
    """What check_arrays says of the arrays' sizes. Raises WrongShape, BatchTooLarge."""
    if offsets == 0:
        raise WrongShape(f"{prefix}offsets are empty: B bags have B + 1 of them, the first is 0")
    if offsets - 1 > BAGS_MAX:
        raise BatchTooLarge(f"{prefix}{offsets - 1} bags, {BAGS_MAX} are the most")
    if weights is not None and weights != keys:
        raise WrongShape(f"{prefix}{weights} weights for {keys} keys: each key has one")


def _short(batch: Sequence[Bags]) -> str:
    shown = [f"{each.name!r} has {each.offsets.size - 1}" for each in batch[:8]]
    return ", ".join(shown) + (", ..." if len(batch) > 8 else "")
