"""`EmbeddingCollection`: all sparse features of a model, in one call each way."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rockbed.client.feature import Feature
from rockbed.client.padding import checked_length
from rockbed.client.ragged import Ragged
from rockbed.client.torch.padding import padded
from rockbed.client.torch.rows import RowModule
from rockbed.client.torch.tensors import (
    keys_array,
    lent,
    must_want_no_gradient,
    offsets_array,
    tensor_of,
    weights_array,
)
from rockbed.errors import InvalidConfig, RockbedError, UnknownName, WrongDtype


@dataclass(frozen=True)
class CollectionOutput:
    """pooled: dtype[B, D], the features with a combiner side by side in their order. sequences: by name, dtype[nnz,
    dim], the rows of features without one. columns: by name, the feature's place in `pooled`. offsets: int64[B + 1] of
    each sequence, where the rows of a sample begin.

    out[name] is a feature's columns, or its sequence.
    """

    pooled: Any
    sequences: dict[str, Any]
    columns: dict[str, slice]
    offsets: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        if name in self.sequences:
            return self.sequences[name]
        if name not in self.columns:
            known = ", ".join(map(repr, [*self.columns, *self.sequences]))
            raise UnknownName(f"there is no feature {name!r}: the features are {known}")
        return self.pooled[:, self.columns[name]]

    def padded(self, name: str, length: int | None = None, *, keep: str = "first") -> tuple[Any, Any]:
        """A sequence as a rectangle, for models that attend over it: dtype[B, L, dim], the rows of each sample from 0
        on and zeros behind them, and bool[B, L], where there are rows (what MultiheadAttention wants is its inverse).

        length: L; None = the most keys of a sample, for which a GPU is waited for. keep: of a sample with more keys
        than that its "first" ones or its "last". Gradients go back to the rows; one that is left out gets zeros.
        Raises UnknownName for what is no sequence, InvalidConfig.
        """
        if name not in self.sequences:
            known = ", ".join(map(repr, self.sequences)) or "none"
            raise UnknownName(f"there is no sequence {name!r}: features without a combiner are {known}")
        return padded(self.sequences[name], self.offsets[name], checked_length(length, keep), keep)

    __iter__ = None  # it has names

    def __contains__(self, name: object) -> bool:
        return name in self.sequences or name in self.columns


class EmbeddingCollection(RowModule):
    """All sparse features of a model as one module: one call looks them up and pools, one push trains them.

    >>> sparse = rockbed.torch.EmbeddingCollection(  # doctest: +SKIP
    ...     [rockbed.Feature("user", users), rockbed.Feature("seen", items, "sqrtn")]
    ... )
    >>> out = sparse({"user": (user_keys, user_offsets), "seen": (keys, offsets, weights)})  # doctest: +SKIP
    >>> out.pooled, out["seen"]  # doctest: +SKIP
    """

    def __init__(
        self,
        features: Sequence[Feature],
        *,
        missing: str = "error",
        unknown: str = "error",
        scale: float | str = 1.0,
        dtype: Any = torch.float32,
        trainable: bool = True,
    ) -> None:
        """features, missing, unknown: see rockbed.FusedEmbedding. scale, dtype, trainable: see RowModule.
        Raises InvalidConfig, WrongDtype."""
        # One collection is most often all of a model's rows, so that its push can do without the keys.
        super().__init__(
            features, missing=missing, unknown=unknown, scale=scale, dtype=dtype, trainable=trainable, keep=True
        )

    @torch.compiler.disable
    def forward(self, batch: Any) -> CollectionOutput:
        """batch: by the name of the feature (keys, offsets) or (keys, offsets, weights), tensors on the CPU: int64 or
        uint64[nnz], int64 or int32[B + 1], float32[nnz]; or a rockbed.Ragged. Or a KeyedJaggedTensor of torchrec with
        as many bags for each feature. On the GPU where the storage keeps its rows they may be, too: the results are
        there, then, and nothing is copied (docs/torch.md).

        Modes are as of Embedding. Raises what FusedEmbedding.lookup raises.
        """
        out, tensors = self.look_up(_ragged(batch, self.fused.ignores, on_gpu=self.on_gpu))
        left = list(tensors)
        pooled = left.pop(0) if self.fused.dim else tensor_of(out.pooled).to(self.dtype)
        sequences = dict(zip(out.sequences, left, strict=True))
        offsets = {each.name: tensor_of(each.offsets) for each in out.batch if each.name in sequences}
        return CollectionOutput(pooled, sequences, self.fused.columns, offsets)

    def prefetch(self, batch: Any) -> "list[Future[tuple[int, int]]]":
        """Bring rows from disk into memory, in threads: see FusedEmbedding.prefetch; a future for each group.

        batch: as of a call, on the CPU; features may be missing. Raises what FusedEmbedding.prefetch raises.
        """
        wanted = self.fused.keys_by_group(_ragged(batch, self.fused.ignores, on_gpu=False))
        return [embedding.prefetch_async(keys) for embedding, keys in wanted]


def _ragged(batch: Any, ignores: Callable[[str], bool], *, on_gpu: bool) -> dict[str, Ragged]:
    # ignores: says which features are left out. on_gpu: whether tensors there are taken as they are
    if isinstance(batch, Mapping):
        return {name: _bags(name, value, on_gpu) for name, value in batch.items() if not ignores(name)}
    if all(hasattr(batch, name) for name in ("keys", "values", "offsets", "weights_or_none")):
        return _of_jagged(batch, ignores, on_gpu)
    raise WrongDtype(f"a batch is a dict of (keys, offsets) by feature, or a KeyedJaggedTensor, not {type(batch)}")


def _bags(name: str, value: Any, on_gpu: bool) -> Ragged:
    if isinstance(value, Ragged):
        return value
    if not isinstance(value, tuple | list) or len(value) not in (2, 3):
        sent = f"{len(value)} values" if isinstance(value, tuple | list) else f"a {type(value).__name__}"
        raise WrongDtype(
            f"feature {name!r}: its bags are (keys, offsets), (keys, offsets, weights) or a Ragged, not {sent}"
        )
    keys, offsets, weights = value if len(value) == 3 else (*value, None)
    where = f"feature {name!r}: "
    must_want_no_gradient(where + "weights", weights)
    arrays = (
        lent(where + "keys", keys, keys_array, on_gpu=on_gpu),
        lent(where + "offsets", offsets, offsets_array, on_gpu=on_gpu),
        lent(where + "weights", weights, weights_array, on_gpu=on_gpu),
    )
    try:
        return Ragged(*arrays)
    except RockbedError as problem:
        raise problem if str(problem).startswith(where) else type(problem)(where + str(problem)) from None


def _of_jagged(jagged: Any, ignores: Callable[[str], bool], on_gpu: bool) -> dict[str, Ragged]:
    """The features of a torchrec KeyedJaggedTensor: one after the other, each with as many bags."""
    names = jagged.keys()
    must_want_no_gradient("weights", jagged.weights_or_none())
    values = lent("values", jagged.values(), keys_array, on_gpu=on_gpu)
    weights = lent("weights", jagged.weights_or_none(), weights_array, on_gpu=on_gpu)
    offsets = lent("offsets", jagged.offsets(), offsets_array, on_gpu=on_gpu)
    bags, rest = divmod(len(offsets) - 1, max(len(names), 1))
    if rest or getattr(jagged, "variable_stride_per_key", bool)():
        raise InvalidConfig(
            f"the KeyedJaggedTensor has {len(offsets) - 1} bags for {len(names)} features, not as many for each: all "
            "features of a batch have the same samples, so give those of features that share them in a batch each"
        )
    batch = {}
    for i, name in enumerate(names):
        if ignores(name):
            continue
        own = offsets[i * bags : (i + 1) * bags + 1]
        # of offsets on a GPU torchrec has in memory what is wanted of them here
        begin, end = own[[0, -1]] if isinstance(own, np.ndarray) else jagged.offset_per_key()[i : i + 2]
        part = slice(begin, end)
        batch[name] = Ragged(values[part], own - begin, None if weights is None else weights[part])
    return batch
