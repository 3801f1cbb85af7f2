"""`Embedding` and `EmbeddingBag`: one table each, with the calls of torch.nn's."""

from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from rockbed.client.embedding import PyEmbedding
from rockbed.client.feature import Feature
from rockbed.client.ragged import Ragged
from rockbed.client.torch.frozen import FrozenEmbedding, FrozenEmbeddingBag, frozen_rows
from rockbed.client.torch.rows import RowModule
from rockbed.client.torch.tensors import (
    described,
    keys_array,
    lent,
    must_want_no_gradient,
    offsets_array,
    weights_array,
)
from rockbed.errors import WrongShape

_NAME = "keys"  # of the only feature, in messages


class Embedding(RowModule):
    """The row of each key, as torch.nn.Embedding gives it.

    >>> users = rockbed.torch.Embedding(rockbed.PyEmbedding(storage, optimizer, initializer, 16, 1))  # doctest: +SKIP
    >>> rows = users(torch.tensor([[17, 4], [-5, 17]]))  # float32[2, 2, 16]  # doctest: +SKIP
    >>> rows.sum().backward()  # the rows of 17, 4 and -5 are updated, durably  # doctest: +SKIP
    """

    def __init__(
        self,
        embedding: PyEmbedding,
        *,
        max_norm: float | None = None,
        scale: float | str = 1.0,
        dtype: Any = torch.float32,
        trainable: bool = True,
    ) -> None:
        """max_norm: rows of a larger L2 norm are given scaled down to it; unlike torch.nn's, it does not change them.
        scale, dtype, trainable: see RowModule. Raises InvalidConfig, WrongDtype."""
        feature = Feature(_NAME, embedding, None, max_norm=max_norm, prune_negative=False)
        super().__init__([feature], scale=scale, dtype=dtype, trainable=trainable)
        self.embedding = embedding

    @torch.compiler.disable
    def forward(self, keys: Any) -> Any:
        """keys: int64 or uint64, of any shape and values, on the CPU or on the GPU where the storage keeps its rows.
        Returns dtype[*keys.shape, dim], there.

        In train() mode keys that are new get their row; in eval() mode nothing is created, and they give the
        miss_value of the embedding. Raises what FusedEmbedding.lookup raises.
        """
        _, (rows,) = self.look_up({_NAME: _one_bag(keys, on_gpu=self.on_gpu)})
        return rows.reshape(*keys.shape, self.embedding.dim)

    def prefetch(self, keys: Any) -> "list[Future[tuple[int, int]]]":
        """Bring rows from disk into memory, in a thread: see PyEmbedding.prefetch_async. keys: as of a call."""
        return [self.embedding.prefetch_async(_one_bag(keys).keys)]

    def frozen(self, keys: Any) -> FrozenEmbedding:
        """The rows of keys as they are now, in a module that needs no store: for TorchScript, torch.export, ONNX.

        keys: int64 or uint64, of any shape. All other keys give the miss_value. The memory that it takes is that of its
        rows. Raises WrongDtype, InvalidConfig.
        """
        return frozen_rows(self.fused.features[0], keys, self.dtype)


class EmbeddingBag(RowModule):
    """The rows of each bag of keys as one, as torch.nn.EmbeddingBag gives them; pooled where the rows are."""

    def __init__(
        self,
        embedding: PyEmbedding,
        combiner: str = "mean",
        *,
        max_norm: float | None = None,
        default_key: int | None = None,
        prune_negative: bool = True,
        include_last_offset: bool = False,
        scale: float | str = 1.0,
        dtype: Any = torch.float32,
        trainable: bool = True,
    ) -> None:
        """combiner ("sum", "mean", "sqrtn"), max_norm, default_key, prune_negative: see rockbed.Feature.
        include_last_offset: whether offsets are B + 1 numbers, the last of them how many keys there are.
        scale, dtype, trainable: see RowModule. Raises InvalidConfig, WrongDtype."""
        feature = Feature(
            _NAME, embedding, combiner, max_norm=max_norm, default_key=default_key, prune_negative=prune_negative
        )
        super().__init__([feature], scale=scale, dtype=dtype, trainable=trainable)
        self.embedding = embedding
        self.include_last_offset = include_last_offset

    @torch.compiler.disable
    def forward(self, keys: Any, offsets: Any = None, per_sample_weights: Any = None) -> Any:
        """keys: int64 or uint64, [B, L], or [nnz] with offsets int64 or int32[B], where each bag begins. Keys below 0
        are left out (prune_negative), so -1 fills up short bags. per_sample_weights: float32 of the shape of keys,
        which get no gradient. All on the CPU, or all on the GPU where the storage keeps its rows. Returns
        dtype[B, dim], there.

        Modes are as of Embedding. Raises what FusedEmbedding.lookup raises.
        """
        _, (pooled,) = self.look_up({_NAME: self._bags(keys, offsets, per_sample_weights)})
        return pooled

    def prefetch(self, keys: Any) -> "list[Future[tuple[int, int]]]":
        """Bring rows from disk into memory, in a thread: see PyEmbedding.prefetch_async. keys: as of a call."""
        return [self.embedding.prefetch_async(_one_bag(keys).keys)]

    def frozen(self, keys: Any) -> FrozenEmbeddingBag:
        """As Embedding.frozen. It is called with keys [B, L], and if need be per_sample_weights."""
        feature = self.fused.features[0]
        return FrozenEmbeddingBag(frozen_rows(feature, keys, self.dtype), feature)

    def _bags(self, keys: Any, offsets: Any, per_sample_weights: Any) -> Ragged:
        must_want_no_gradient("per_sample_weights", per_sample_weights)
        flat = lent("keys", keys, keys_array, on_gpu=self.on_gpu)
        weights = lent("per_sample_weights", per_sample_weights, weights_array, on_gpu=self.on_gpu)
        if weights is not None and weights.shape != flat.shape:
            raise WrongShape(
                f"per_sample_weights must have the shape of the keys, {described(keys)}, not "
                f"{described(per_sample_weights)}"
            )
        if flat.ndim == 2 and offsets is None:
            starts = _even_offsets(flat, *flat.shape)
        elif flat.ndim == 1 and offsets is not None:
            starts = lent("offsets", offsets, offsets_array, on_gpu=self.on_gpu)
            if starts.ndim != 1:
                raise WrongShape(f"offsets must have one axis, not {described(offsets)}")
            if not self.include_last_offset:
                starts = _with_end(starts, len(flat))
        else:
            raise WrongShape(
                f"keys must be [B, L] without offsets, or [nnz] with offsets, not {described(keys)} with "
                f"{'no offsets' if offsets is None else described(offsets)}"
            )
        return Ragged(flat.reshape(-1), starts, None if weights is None else weights.reshape(-1))


def _one_bag(keys: Any, *, on_gpu: bool = False) -> Ragged:
    flat = lent("keys", keys, keys_array, on_gpu=on_gpu).reshape(-1)
    return Ragged(flat, _even_offsets(flat, 1, len(flat)))


def _even_offsets(keys: Any, bags: int, width: int) -> Any:
    """The offsets of bags of `width` keys each, where the keys are."""
    if isinstance(keys, np.ndarray):
        return np.arange(bags + 1, dtype=np.int64) * width
    return torch.arange(bags + 1, device=keys.device) * width


def _with_end(starts: Any, end: int) -> Any:
    return (
        np.append(starts, end) if isinstance(starts, np.ndarray) else torch.nn.functional.pad(starts, (0, 1), value=end)
    )
