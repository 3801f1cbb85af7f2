"""Lookups of variables by the names that TensorFlow gives them: of dense ids, and of sparse ones that are combined."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rockbed.client.arrays import is_tensor
from rockbed.client.combining import check_combining, combine, combine_gradients
from rockbed.client.feature import Feature
from rockbed.client.fused import FusedEmbedding
from rockbed.client.kv_variable import KvVariable
from rockbed.client.looked_up import LookedUp
from rockbed.client.multihash import MultiHashVariable
from rockbed.client.ragged import Ragged, signed
from rockbed.client.request_ids import RequestId
from rockbed.client.sparse import SparseTensor
from rockbed.errors import InvalidConfig, WrongDtype, WrongShape
from rockbed.types import F32, I64, Bool

_NAME = "ids"  # of the only feature, in messages


def embedding_lookup(variable: KvVariable | MultiHashVariable, ids: Any, *, train: bool | None = None) -> Any:
    """The row of each id: the variable's `lookup`, and of a torch tensor a tensor, whose backward pass pushes.

    ids: of any rank, of the variable's key dtype. train: ids without a row get one; None = where the variable is
    trainable and, for tensors, torch.is_grad_enabled(). Returns float32[*ids.shape, dim].
    Raises WrongDtype, InvalidConfig, IdOutOfRange (multi-hash), and what PyEmbedding.lookup raises.
    """
    if not isinstance(variable, MultiHashVariable):
        _must_be_variable(variable)
    return variable.lookup(ids, train=train)


def embedding_lookup_sparse(
    variable: KvVariable,
    sp_ids: Any,
    sp_weights: Any = None,
    combiner: str = "mean",
    max_norm: float | None = None,
    *,
    train: bool | None = None,
) -> Any:
    """The rows of the ids of each row of a sparse tensor as one, as TensorFlow's function of this name.

    sp_ids: a SparseTensor of rank 2 or more, or a torch sparse COO tensor; its first axis is what stays. Nothing is
    pruned: -1 is an id as any other. sp_weights: of the same indices, float32 values; None = 1 each.
    combiner: "sum", "mean" or "sqrtn", see `rockbed.client.combining`. max_norm: rows of a larger L2 norm are scaled
    down to it before they are combined. train: as of `embedding_lookup`.
    Returns float32[sp_ids.dense_shape[0], dim], a LookedUp or a tensor. A row without ids gives zeros, also behind the
    last one with ids, where TensorFlow gives no row.
    Raises InvalidConfig, WrongDtype, WrongShape, and what PyEmbedding.lookup raises.
    """
    return _looked_up(variable, sp_ids, sp_weights, combiner, max_norm, None, train, safe=False)


def safe_embedding_lookup_sparse(
    variable: KvVariable,
    sp_ids: Any,
    sp_weights: Any = None,
    combiner: str = "mean",
    default_id: Any = None,
    max_norm: float | None = None,
    *,
    train: bool | None = None,
) -> Any:
    """As `embedding_lookup_sparse`, for ids that may be invalid and rows that may be empty, as TensorFlow's.

    Ids below 0 are left out, and unless the combiner is "sum" those of weights <= 0. default_id: what a row holds that
    has no id then, with weight 1, and where its gradient goes; None = zeros, without a gradient. All axes of sp_ids but
    the last one stay: float32[*dense_shape[:-1], dim] is returned.
    """
    return _looked_up(variable, sp_ids, sp_weights, combiner, max_norm, default_id, train, safe=True)


@dataclass(frozen=True, slots=True)
class SparseIds:
    """What a sparse lookup combines: bag b has keys[offsets[b]:offsets[b + 1]], and weights alike if there are any.

    shape: of what is returned, without dim. default: the key of an empty bag, if any. safe: whether ids are pruned.
    """

    keys: I64
    offsets: I64
    weights: F32 | None
    combiner: str
    max_norm: float | None
    default: int | None
    shape: tuple[int, ...]
    safe: bool

    def fits_fused(self, variable: KvVariable) -> bool:
        """Whether pooling where the rows are means the same: on one storage, and pruning no weight that is to count."""
        pruned = not self.safe and self.combiner != "sum" and self.weights is not None and (self.weights <= 0).any()
        return len(variable.embeddings) == 1 and not pruned

    def fused(self, variable: KvVariable) -> tuple[FusedEmbedding, dict[str, Ragged]]:
        """The same as a batch for the variable's storage."""
        feature = Feature(
            _NAME,
            variable.embedding,
            self.combiner,
            max_norm=self.max_norm,
            default_key=self.default,
            prune_negative=self.safe and variable.keys.signed,
        )
        return FusedEmbedding([feature]), {_NAME: Ragged(self.keys, self.offsets, self.weights)}

    def pruned(self, variable: KvVariable) -> "SparseIds":
        """Without what does not count, and with the default in empty bags."""
        keep: Bool = np.ones(self.keys.size, np.bool_)
        padding = variable.config.padding_key
        if padding is not None:
            keep &= self.keys != signed(padding)
        if self.safe and variable.keys.signed:
            keep &= self.keys >= 0
        if self.safe and self.weights is not None and self.combiner != "sum":
            keep &= self.weights > 0
        bags = np.repeat(np.arange(self.offsets.size - 1), np.diff(self.offsets))[keep]
        counts = np.bincount(bags, minlength=self.offsets.size - 1)
        keys, weights = self.keys[keep], None if self.weights is None else self.weights[keep]
        if self.default is not None:
            empty = np.flatnonzero(counts == 0)
            at = np.searchsorted(bags, empty)
            keys = np.insert(keys, at, self.default)
            weights = None if weights is None else np.insert(weights, at, np.float32(1))
            counts[empty] = 1
        return replace(self, keys=keys, weights=weights, offsets=np.concatenate([[0], np.cumsum(counts)]))


def _looked_up(
    variable: KvVariable,
    sp_ids: Any,
    sp_weights: Any,
    combiner: str,
    max_norm: float | None,
    default_id: Any,
    train: bool | None,
    *,
    safe: bool,
) -> Any:
    _must_be_variable(variable)
    check_combining(combiner, max_norm)
    default = None if default_id is None else variable.keys.one("default_id", default_id)
    if is_tensor(sp_ids):
        from rockbed.client.torch.variables import lookup_sparse, sparse

        ids = _sparse_ids(variable, *sparse(variable, sp_ids, sp_weights), combiner, max_norm, default, safe)
        return lookup_sparse(variable, ids, train)
    ids = _sparse_ids(variable, sp_ids, sp_weights, combiner, max_norm, default, safe)
    train = variable.trains(train)
    if ids.fits_fused(variable):
        fused, batch = ids.fused(variable)
        out = fused.lookup(batch, train=train)

        def push_fused(grads: F32, request: RequestId | None) -> bool:
            return fused.apply_gradients(out, grads.reshape(out.pooled.shape), request=request)

        return variable.looked_up(out.pooled.reshape(*ids.shape, variable.dim), train, push_fused)
    return _combined(variable, ids.pruned(variable), train)


def _combined(variable: KvVariable, ids: SparseIds, train: bool) -> LookedUp:
    """Rows that are combined here, because they come from several storages."""
    rows = variable.rows(ids.keys, train=train)
    how = ids.offsets, ids.weights, ids.combiner, ids.max_norm

    def push(grads: F32, request: RequestId | None) -> bool:
        return variable.push(ids.keys, combine_gradients(rows, *how, grads.reshape(-1, variable.dim)), request)

    return variable.looked_up(combine(rows, *how).reshape(*ids.shape, variable.dim), train, push)


def _sparse_ids(
    variable: KvVariable,
    sp_ids: Any,
    sp_weights: Any,
    combiner: str,
    max_norm: float | None,
    default: int | None,
    safe: bool,
) -> SparseIds:
    if not isinstance(sp_ids, SparseTensor):
        raise WrongDtype(f"sp_ids is a {type(sp_ids).__name__}, not a rockbed.SparseTensor")
    keys, _ = variable.keys.of(sp_ids.values)
    shape = tuple(sp_ids.dense_shape[:-1] if safe else sp_ids.dense_shape[:1])
    if safe:
        offsets = sp_ids.offsets()
    else:
        counts = np.bincount(sp_ids.indices[:, 0], minlength=shape[0])
        offsets = np.concatenate([[0], np.cumsum(counts)])
    return SparseIds(keys, offsets, _weights(sp_ids, sp_weights), combiner, max_norm, default, shape, safe)


def _weights(sp_ids: SparseTensor, sp_weights: Any) -> F32 | None:
    if sp_weights is None:
        return None
    if not isinstance(sp_weights, SparseTensor):
        raise WrongDtype(f"sp_weights is a {type(sp_weights).__name__}, not a rockbed.SparseTensor")
    if sp_ids.dense_shape != sp_weights.dense_shape or not np.array_equal(sp_ids.indices, sp_weights.indices):
        raise WrongShape("sp_weights has other indices than sp_ids: each id has one weight, at its own place")
    if sp_weights.values.dtype != np.dtype(np.float32):
        raise WrongDtype(f"the values of sp_weights must be float32, not {sp_weights.values.dtype}: use .astype")
    if not np.isfinite(sp_weights.values).all():
        raise InvalidConfig("the values of sp_weights hold NaN or Inf: weights are finite numbers")
    weights: F32 = np.ascontiguousarray(sp_weights.values)
    return weights


def _must_be_variable(variable: Any) -> None:
    if not isinstance(variable, KvVariable):
        raise WrongDtype(f"this looks up variables, not a {type(variable).__name__}: see rockbed.get_kv_variable")
