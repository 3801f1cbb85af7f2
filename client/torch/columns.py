"""`input_layer` with tensors: a tensor comes out, and its backward pass pushes the gradient of all columns, once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rockbed.client import input_layer as layers
from rockbed.client.columns import EmbeddingColumn
from rockbed.client.looked_up import LookedUp
from rockbed.client.optimizer import PyOptimizer
from rockbed.client.storage import PyStorage
from rockbed.client.torch.pushing import pushes_alone
from rockbed.client.torch.tensors import gradient_array, ids_array
from rockbed.errors import InvalidBackward, InvalidConfig, WrongDtype


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Any, out: LookedUp, storage: PyStorage) -> Any:
        # anchor: a tensor that wants a gradient, because torch goes back through nothing else
        ctx.out, ctx.storage = out, storage
        return torch.from_numpy(np.array(out))

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[None, None, None]:
        if torch.is_grad_enabled():
            raise InvalidBackward("a push cannot be differentiated: call backward() without create_graph=True")
        _must_push_alone(ctx.storage)
        ctx.out.apply_gradients(gradient_array(gradient, 1.0))
        return None, None, None


def input_layer(
    features: Mapping[str, Any],
    feature_columns: EmbeddingColumn | Sequence[EmbeddingColumn],
    adaptive_mask_tensors: Mapping[str, Any] | None = None,
    *,
    storage: PyStorage,
    optimizer: PyOptimizer,
    train: bool | None = None,
    global_step: int | None = None,
) -> Any:
    """As feature_column.input_layer: a tensor float32[B, D], whose backward pass pushes the gradient of all columns.

    features: ids as tensors of the columns' dtypes on the CPU, or as input_layer takes them. adaptive_mask_tensors:
    likewise. train: None = torch.is_grad_enabled(). The push is one of its own, made when the pass gets there: within
    rockbed.torch.accumulate and with join_ranks, which join pushes, it is an InvalidConfig.
    Raises WrongDtype, InvalidConfig, and what feature_column.input_layer raises; backward() InvalidBackward (a second
    time, or looked up with train=False).
    """
    columns = [feature_columns] if isinstance(feature_columns, EmbeddingColumn) else list(feature_columns)
    kinds = {each.key: each.categorical.dtype for each in columns if isinstance(each, EmbeddingColumn)}
    ids = {
        key: ids_array(f"feature {key!r}", value, kinds[key]) if torch.is_tensor(value) and key in kinds else value
        for key, value in features.items()
    }
    masks = {
        key: _mask_array(key, value) if torch.is_tensor(value) else value
        for key, value in (adaptive_mask_tensors or {}).items()
    }
    train = torch.is_grad_enabled() if train is None else train
    if train:
        _must_push_alone(storage)
    out = layers.input_layer(
        ids, columns, masks, storage=storage, optimizer=optimizer, train=train, global_step=global_step
    )
    if not torch.is_grad_enabled():
        return torch.from_numpy(np.array(out))
    return _Layer.apply(torch.empty(0, requires_grad=True), out, storage)


def _mask_array(key: str, mask: Any) -> Any:
    if mask.is_floating_point() or mask.is_complex():  # as integers, values between 0 and 1 would be 0
        raise WrongDtype(f"the mask of {key!r} must be integers of 0 and 1, or bool, not {mask.dtype}")
    return ids_array(f"the mask of {key!r}", mask.to(torch.int64), "int64")


def _must_push_alone(storage: PyStorage) -> None:
    if not pushes_alone(storage):
        raise InvalidConfig(
            f"pushes to {storage!r} are joined now (accumulate, join_ranks), and those of input_layer are not among "
            "them: call it and its backward() outside"
        )
