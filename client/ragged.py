"""`Ragged`: bags of keys, of any number each, for one feature of a fused batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from rockbed.bags import KEYS_MAX, check_arrays
from rockbed.client.arrays import checked_floats, checked_integers, checked_keys, described
from rockbed.client.lending import check_lent, must_be_in_memory
from rockbed.client.sparse import SparseTensor
from rockbed.config import whole_problems
from rockbed.device_arrays import dtype_of, on_device, shape_of
from rockbed.errors import BatchTooLarge, InvalidConfig, WrongDtype, WrongShape
from rockbed.types import F32, I64, U64, AnyArray, Bool


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ragged:
    """B bags of keys, one after the other (CSR): bag b has keys[offsets[b]:offsets[b + 1]], no key or any number.

    keys: int64[nnz] or uint64[nnz]. offsets: int64[B + 1] (int32 is taken too), from 0 to nnz, never falling.
    weights: float32[nnz], finite, for combiners; None = 1 each.
    The arrays are kept, not copied, unless their layout asks for it: leave them alone until the batch has been pushed.
    For a storage with a device all of them may be that device's, of any library (docs/gpu.md); their values are looked
    at when they are used.

    >>> bags = Ragged(np.array([7, 8, 9]), np.array([0, 2, 2, 3]))  # [7, 8], [], [9]
    >>> len(bags), bags.nnz
    (3, 3)

    Raises WrongDtype, WrongShape, BatchTooLarge (2^31 keys or more), InvalidConfig (a weight is NaN or infinite).
    """

    keys: I64 | U64
    offsets: I64
    weights: F32 | None = None

    def __post_init__(self) -> None:
        if any(map(on_device, (self.keys, self.offsets, self.weights))):
            check_lent(self.keys, self.offsets, self.weights)
            return
        if isinstance(self.keys, np.ndarray) and self.keys.size > KEYS_MAX:  # before anything as large is made of it
            raise BatchTooLarge(f"{self.keys.size} keys, {KEYS_MAX} are the most of a batch: send smaller batches")
        object.__setattr__(self, "keys", _as_sent(checked_keys(self.keys), self.keys))
        object.__setattr__(self, "offsets", checked_integers("offsets", self.offsets, 1))
        if self.weights is not None:
            object.__setattr__(self, "weights", _checked_weights(self.weights, self.keys))
        check_arrays(self.keys, self.offsets, self.weights)

    @classmethod
    def from_lengths(cls, keys: I64 | U64, lengths: I64, weights: F32 | None = None) -> "Ragged":
        """Of how many keys each bag has.

        keys, weights: as of a Ragged. lengths: int64[B] (int32 is taken too), of sum nnz.
        Raises as Ragged does, and WrongShape for negative lengths.
        """
        must_be_in_memory("from_lengths", keys, lengths, weights)
        counts = checked_integers("lengths", lengths, 1)
        if counts.size and counts.min() < 0:
            raise WrongShape(f"lengths has {counts.min()}: no bag has fewer than 0 keys")
        return cls(keys, _offsets(counts), weights)

    @classmethod
    def from_coo(
        cls, indices: I64, values: I64 | U64, dense_shape: Sequence[int] | I64, weights: F32 | None = None
    ) -> "Ragged":
        """Of a sparse tensor's triples, as TensorFlow's SparseTensor has them.

        indices: int64[nnz, rank] (int32 is taken too), rank >= 2, in row-major order; values: the keys, int64[nnz] or
        uint64[nnz]; dense_shape: rank sizes. All axes but the last are flattened to the bags, whose number is the
        product of their sizes; the last one is a key's place in its bag. weights: float32[nnz], the values of the
        sparse tensor of weights.
        Raises as Ragged does, and WrongShape for indices out of order or out of the shape.
        """
        must_be_in_memory("from_coo", indices, values, weights)
        keys = checked_keys(values)
        sizes: Any = dense_shape  # an array of them is taken, too
        places = SparseTensor(indices, keys, sizes)
        return cls(_as_sent(keys, values), places.offsets(), weights)

    @classmethod
    def from_padded(cls, array: I64 | U64, padding_key: int = -1, weights: F32 | None = None) -> "Ragged":
        """Of a rectangle in which one key stands for nothing, wherever in its row it is.

        array: int64[B, L] or uint64[B, L]. padding_key: -2^63..2^64 - 1; numbers of the same 64 bits are the same
        (-1 and 2^64 - 1, say), as for a group's padding_key. weights: float32[B, L]; those of padding are ignored.
        Raises as Ragged does.
        """
        must_be_in_memory("from_padded", array, weights)
        if isinstance(array, np.ndarray) and array.ndim != 2:
            raise WrongShape(f"a padded array must have two axes, [B, L], not {described(array)}")
        keys = checked_keys(array.reshape(-1) if isinstance(array, np.ndarray) else array)
        problems = whole_problems("padding_key", padding_key, -(2**63), 2**64 - 1)
        if problems:
            raise InvalidConfig(problems[0])
        kept: Bool = keys != signed(padding_key)
        if weights is not None:
            weights = checked_floats("weights", weights, array.shape).reshape(-1)[kept]
        return cls(_as_sent(keys[kept], array), _offsets(kept.reshape(array.shape).sum(axis=1)), weights)

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int]], weights: Iterable[Sequence[float]] | None = None) -> "Ragged":
        """Of a list of keys for each bag, and if need be a list of as many weights.

        Keys are int64, or, where one is 2^63 or more, uint64. For tests and small batches: Python looks at each key,
        the other constructors at whole arrays. Raises as Ragged does.
        """
        bags = _listed("lists", lists)
        keys = _keys_of([key for bag in bags for key in bag])
        offsets = _offsets(np.array([len(bag) for bag in bags], np.int64))
        if weights is None:
            return cls(keys, offsets)
        weighted = _listed("weights", weights)
        if [len(bag) for bag in bags] != [len(bag) for bag in weighted]:
            raise WrongShape("weights must be lists of the same lengths as those of the keys: each key has one weight")
        numbers = [weight for bag in weighted for weight in bag]
        wrong = next((each for each in numbers if isinstance(each, bool) or not isinstance(each, Real)), None)
        if wrong is not None:
            raise WrongDtype(f"weights must be numbers, not {wrong!r}")
        return cls(keys, offsets, np.array(numbers, np.float32))

    @property
    def nnz(self) -> int:
        """How many keys there are in all bags."""
        return shape_of(self.keys)[0]

    @property
    def on_device(self) -> bool:
        """Whether the arrays are in the memory of a GPU."""
        return on_device(self.keys)

    @property
    def bits(self) -> I64:
        """The keys as int64; those on a GPU as they were sent."""
        lent: Any = self.keys
        return lent if self.on_device else self.keys.view(np.int64)

    @property
    def unsigned(self) -> bool:
        """Whether the keys are uint64, none of which is negative."""
        if isinstance(self.keys, np.ndarray):
            return self.keys.dtype.kind == "u"
        return dtype_of(self.keys) == "uint64"

    def __len__(self) -> int:
        return shape_of(self.offsets)[0] - 1

    def __repr__(self) -> str:
        weighted = "" if self.weights is None else ", weighted"
        where = " on a GPU" if self.on_device else ""
        return f"Ragged({len(self)} bags, {self.nnz} {dtype_of(self.keys)} keys{weighted}{where})"


def _listed(name: str, bags: Any) -> list[list[Any]]:
    if not isinstance(bags, Iterable):
        raise WrongDtype(f"{name} must be a list of lists, not a {type(bags).__name__}")
    listed = list(bags)
    wrong = next((each for each in listed if not isinstance(each, Iterable) or isinstance(each, str | bytes)), None)
    if wrong is not None:
        raise WrongDtype(f"{name} must be a list of lists, one for each bag, not of {wrong!r}")
    return [list(each) for each in listed]


def signed(key: int) -> int:
    """The int64 of the same bits as a key given as one of int64 or uint64."""
    key = int(key)
    return key if key < 2**63 else key - 2**64


def _as_sent(bits: I64, keys: I64 | U64) -> I64 | U64:
    """The bits of keys as numbers of the dtype that the keys have."""
    return bits.view(np.uint64) if keys.dtype == np.dtype(np.uint64) else bits


def _offsets(counts: AnyArray) -> I64:
    offsets = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _checked_weights(weights: Any, keys: I64 | U64) -> F32:
    if isinstance(weights, np.ndarray) and weights.ndim == 1 and weights.size != keys.size:
        raise WrongShape(f"{weights.size} weights for {keys.size} keys: each key has one")
    return checked_floats("weights", weights, keys.shape)


def _keys_of(keys: list[Any]) -> I64 | U64:
    wrong = next((key for key in keys if isinstance(key, bool) or not isinstance(key, Integral)), None)
    if wrong is not None:
        raise WrongDtype(f"keys must be whole numbers, not {wrong!r}")
    low, high = min(keys, default=0), max(keys, default=0)
    if low < -(2**63) or high >= 2**64 or (low < 0 and high >= 2**63):
        raise WrongDtype(f"keys from {low} to {high} fit neither int64 nor uint64")
    return np.array(keys, np.int64) if high < 2**63 else np.array(keys, np.uint64)
