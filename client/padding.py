"""Sequences as rectangles: where in float[B, L, dim] the row of each key lies."""

from dataclasses import dataclass

import numpy as np

from rockbed.config import whole_problems
from rockbed.errors import InvalidConfig
from rockbed.types import F32, I64, Bool

_LENGTH_MAX = 2**31 - 1
_KEEPS = ("first", "last")


@dataclass(frozen=True, slots=True)
class Places:
    """at: int64[nnz], the place of each key in a rectangle of B * L rows, B * L for a key that is left out. mask:
    bool[B, L], where there is a key."""

    at: I64
    mask: Bool

    @classmethod
    def of(cls, offsets: I64, length: int | None, keep: str) -> "Places":
        """Of bags that begin on the left. offsets: int64[B + 1]; length: L, None = the most keys of a bag; keep: of a
        larger bag, its "first" keys or its "last"."""
        sizes = np.diff(offsets)
        wide = int(sizes.max(initial=0)) if length is None else length
        bag = np.repeat(np.arange(sizes.size), sizes)
        column = np.arange(bag.size) - offsets[bag]
        if keep == "last":
            column -= np.maximum(sizes - wide, 0)[bag]
        inside = (column >= 0) & (column < wide)
        at = np.where(inside, bag * wide + column, sizes.size * wide)
        return cls(at, np.arange(wide) < sizes[:, None])

    def padded(self, rows: F32) -> F32:
        """rows: float32[nnz, dim] -> float32[B, L, dim], zeros where there is no key."""
        bags, wide = self.mask.shape
        out = np.zeros((bags * wide + 1, rows.shape[1]), np.float32)
        out[self.at] = rows
        return out[:-1].reshape(bags, wide, rows.shape[1])

    def unpadded(self, padded: F32) -> F32:
        """The reverse, for gradients: float32[nnz, dim], zeros for a key that is left out."""
        bags, wide, dim = padded.shape
        out = np.zeros((self.at.size, dim), np.float32)
        inside = self.at < bags * wide
        out[inside] = padded.reshape(-1, dim)[self.at[inside]]
        return out


def checked_length(length: int | None, keep: str) -> int | None:
    """The length of a rectangle, which may be numpy's. Raises InvalidConfig for what is none, and for keep other than
    "first" and "last"."""
    problems = [] if length is None else whole_problems("length", length, 1, _LENGTH_MAX)
    if keep not in _KEEPS:
        problems.append(f"keep is {keep!r}, not one of {', '.join(map(repr, _KEEPS))}")
    if problems:
        raise InvalidConfig("; ".join(problems))
    return None if length is None else int(length)
