"""Lookups of variables with tensors: what `rockbed.embedding_lookup` and its like give for ids in tensors.

Their backward passes push as those of the modules do: once, all rows of a storage as one change, at the pass's end.
"""

from typing import Any

import numpy as np
import torch

from rockbed.client.combining import combine, combine_gradients
from rockbed.client.feature import Feature
from rockbed.client.fused import FusedEmbedding
from rockbed.client.kv_variable import KvVariable, all_of
from rockbed.client.ragged import Ragged
from rockbed.client.sparse import SparseTensor
from rockbed.client.torch.rows import trained
from rockbed.client.torch.tensors import described, gradient_array, ids_array, weights_array
from rockbed.client.variable_lookup import SparseIds
from rockbed.errors import InvalidConfig, WrongDtype
from rockbed.types import I64

_NAME = "ids"


class _Combine(torch.autograd.Function):
    """`combine` of rows, float32[nnz, dim]."""

    @staticmethod
    def forward(ctx: Any, rows: Any, ids: SparseIds) -> Any:
        ctx.save_for_backward(rows)
        ctx.how = (ids.offsets, ids.weights, ids.combiner, ids.max_norm)
        return torch.from_numpy(combine(rows.numpy(), *ctx.how))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Any) -> tuple[Any, None]:
        (rows,) = ctx.saved_tensors
        offsets, weights, combiner, max_norm = ctx.how
        grads = gradient_array(gradient, 1.0)
        return torch.from_numpy(combine_gradients(rows.numpy(), offsets, weights, combiner, max_norm, grads)), None


def lookup(variable: KvVariable, ids: Any, train: bool | None) -> Any:
    """The row of each id, float32[*ids.shape, dim]. ids: a tensor of the variable's key dtype, on the CPU."""
    keys, shape = variable.keys.of(ids_array("ids", ids, variable.key_dtype))
    return rows_of(variable, keys, trains(variable, train)).reshape(*shape, variable.dim)


def lookup_sparse(variable: KvVariable, ids: SparseIds, train: bool | None) -> Any:
    """The rows of each bag as one, float32[*ids.shape, dim]."""
    train = trains(variable, train)
    if ids.fits_fused(variable):
        fused, batch = ids.fused(variable)
        out = fused.lookup(batch, train=train, keep=False)
        (pooled,) = with_gradients(variable, out, [torch.from_numpy(out.pooled)], train)
    else:
        kept = ids.pruned(variable)
        pooled = _Combine.apply(rows_of(variable, kept.keys, train), kept)
    return pooled.reshape(*ids.shape, variable.dim)


def sparse(variable: KvVariable, sp_ids: Any, sp_weights: Any) -> tuple[SparseTensor, SparseTensor | None]:
    """Torch's sparse COO tensors as ours. Raises WrongDtype, WrongShape."""
    ids = SparseTensor(*_parts("sp_ids", sp_ids, lambda values: ids_array("sp_ids", values, variable.key_dtype)))
    if sp_weights is None:
        return ids, None
    if getattr(sp_weights, "requires_grad", False):  # its values would not say so
        raise InvalidConfig("sp_weights require a gradient, and the weights of ids get none: pass sp_weights.detach()")
    return ids, SparseTensor(*_parts("sp_weights", sp_weights, lambda values: weights_array("sp_weights", values)))


def _parts(name: str, tensor: Any, array: Any) -> tuple[I64, Any, list[int]]:
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.sparse_coo:
        raise WrongDtype(f"{name} must be a torch sparse COO tensor, not {described(tensor)}")
    # not coalesce(): it would add ids up that stand at one place
    values = array(tensor._values())
    return np.ascontiguousarray(tensor._indices().numpy().T), values, list(tensor.shape)


def trains(variable: KvVariable, train: bool | None) -> bool:
    """What `train` means for a lookup in torch's mode of now. Raises InvalidConfig."""
    return variable.trainable and torch.is_grad_enabled() if train is None else variable.trains(train)


def rows_of(variable: KvVariable, keys: I64, train: bool) -> Any:
    """The rows of keys, float32[n, dim], of one storage or several."""
    shares = variable.placement.split(keys)

    def begun(i: int, at: I64) -> Any:
        fused = FusedEmbedding([Feature(_NAME, variable.embeddings[i], None, prune_negative=False)])
        bag = Ragged(keys[at], np.array([0, at.size]))
        return fused.lookup_async({_NAME: bag}, train=train, keep=False)

    lookups = all_of(begun(i, at) for i, at in shares)
    parts = []
    for out in lookups:
        parts += with_gradients(variable, out, [torch.from_numpy(out.sequences[_NAME])], train)
    if len(parts) == 1:
        return parts[0]
    back = np.empty(keys.size, np.int64)
    back[np.concatenate([at for _, at in shares])] = np.arange(keys.size)
    return torch.cat(parts)[torch.from_numpy(back)]


def with_gradients(variable: KvVariable, out: Any, tensors: list[Any], train: bool) -> list[Any]:
    """The tensors of a fused lookup, with gradients that are pushed where the variable is trained."""
    if not (variable.trainable and torch.is_grad_enabled()):
        return tensors
    frozen = None if train else "it was looked up with train=False"
    return trained(out, tensors, lambda: 1.0, frozen)
