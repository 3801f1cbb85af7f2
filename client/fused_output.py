"""`FusedOutput`: what a fused lookup found."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rockbed.bags import Bags
from rockbed.client.arrays import checked_floats, described
from rockbed.client.lending import must_be_in_memory
from rockbed.client.padding import Places, checked_length
from rockbed.errors import UnknownName, WrongShape
from rockbed.types import F32, I64, AnyArray, Bool

if TYPE_CHECKING:
    from rockbed.client.fused import FusedEmbedding


class FusedOutput:
    """What a fused lookup found.

    pooled: float32[B, D], what features with a combiner gave, side by side in their order; np.asarray(out) is it.
    sequences: by name, float32[nnz, dim], a row for each key of a feature without a combiner. Of a batch with arrays of
    a GPU they are there, too (CuPy's; for others by `__dlpack__` and `__cuda_array_interface__`).
    out[name]: a feature's columns of `pooled`, float32[B, dim], as a view, or its sequence.
    fused: the FusedEmbedding that was asked. batch: what it was asked for, by feature in their order; an output holds
    on to the arrays of the batch, for `apply_gradients`.
    """

    __slots__ = ("_handle", "batch", "fused", "pooled", "sequences")

    def __init__(
        self,
        fused: "FusedEmbedding",
        batch: Sequence[Bags],
        pooled: F32,
        sequences: dict[str, F32],
        handle: bytes | None,
    ) -> None:
        self.pooled = pooled
        self.sequences = sequences
        self.fused = fused
        self.batch = batch
        self._handle = handle

    @property
    def kept(self) -> bool:
        """Whether the batch was kept for a push, by the server or in this process."""
        return self._handle is not None

    def __getitem__(self, name: str) -> F32:
        if name in self.sequences:
            return self.sequences[name]
        if name not in self.fused.columns:
            raise UnknownName(f"there is no feature {name!r}: the features are {quoted(self.fused.names)}")
        return self.pooled[:, self.fused.columns[name]]

    def padded(self, name: str, length: int | None = None, *, keep: str = "first") -> tuple[F32, Bool]:
        """A sequence as a rectangle, for models that attend over it: float32[B, L, dim], the rows of each bag from 0 on
        and zeros behind them, and bool[B, L], where there are rows.

        length: L; None = the most keys of a bag. keep: of a bag with more keys than that its "first" ones or its
        "last". The gradient goes back by `unpadded`.
        Raises UnknownName for what is no sequence, InvalidConfig, WrongDtype (of a batch with arrays of a GPU).
        """
        rows, length = self._sequence(name), checked_length(length, keep)
        places = Places.of(self._offsets(name), length, keep)
        return places.padded(rows), places.mask

    def unpadded(self, name: str, gradient: F32, *, keep: str = "first") -> F32:
        """The gradient of a sequence, float32[nnz, dim], for `apply_gradients`: from that of what `padded` gave.

        gradient: float32[B, L, dim]; where there is no row it counts for nothing, and a key that was left out gets
        zeros. keep: as `padded` was told. Raises as `padded` does, WrongShape.
        """
        dim = self._sequence(name).shape[1]
        checked_length(None, keep)
        what = f"the gradient of {name!r}"
        if isinstance(gradient, np.ndarray) and gradient.ndim != 3:
            raise WrongShape(f"{what} must be float32[{len(self)}, L, {dim}], not {described(gradient)}")
        length = gradient.shape[1] if isinstance(gradient, np.ndarray) else 0
        floats = checked_floats(what, gradient, (len(self), length, dim))
        return Places.of(self._offsets(name), length, keep).unpadded(floats)

    def _sequence(self, name: str) -> F32:
        if name not in self.sequences:
            raise UnknownName(
                f"there is no sequence {name!r}: features without a combiner are {quoted(self.sequences) or 'none'}"
            )
        must_be_in_memory("a padded sequence", self.sequences[name])
        return self.sequences[name]

    def _offsets(self, name: str) -> I64:
        return next(each.offsets for each in self.batch if each.name == name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        return np.array(self.pooled, dtype, copy=copy)

    __iter__ = None  # it has names, and its rows are those of `pooled`

    def __contains__(self, name: object) -> bool:
        return name in self.sequences or name in self.fused.columns

    def __len__(self) -> int:
        return len(self.pooled)

    def __repr__(self) -> str:
        sequences = "".join(f", {name}: float32{list(rows.shape)}" for name, rows in self.sequences.items())
        kept = ", kept" if self.kept else ""
        return f"FusedOutput(pooled: float32{list(self.pooled.shape)}{sequences}{kept})"


def quoted(names: Iterable[Any]) -> str:
    """Names as messages have them."""
    return ", ".join(map(repr, names))
