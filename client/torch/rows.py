"""What the modules have in common: a lookup that torch can go back through."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rockbed.client.arrays import is_tensor
from rockbed.client.feature import Feature
from rockbed.client.fused import FusedEmbedding
from rockbed.client.fused_output import FusedOutput
from rockbed.client.ragged import Ragged
from rockbed.client.torch.pushing import TrainedLookup, collect, pushes_alone
from rockbed.client.torch.ranks import begun
from rockbed.client.torch.tensors import FLOATS, tensor_of
from rockbed.config import number_problems
from rockbed.errors import GroupConflict, InvalidConfig

_STATE_VERSION = 1


class _Lookup(torch.autograd.Function):
    """Gives the tensors of a lookup; their gradients go to the push of the pass."""

    @staticmethod
    def forward(ctx: Any, anchor: Any, lookup: TrainedLookup, tensors: list[Any]) -> tuple[Any, ...]:
        # anchor: a tensor that wants a gradient, because torch goes back through nothing else
        ctx.set_materialize_grads(False)
        ctx.lookup = lookup
        return tuple(tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, None, None]:
        collect(ctx.lookup, gradients)
        return None, None, None


def trained(
    out: FusedOutput, tensors: list[Any], scale: Callable[[], float], frozen: str | None, lent: Sequence[Any] = ()
) -> list[Any]:
    """The tensors of a lookup, `pooled` if any feature is and the sequences, with gradients that are pushed.

    scale: of the gradients, asked for when they are there. frozen: why there is to be no push, if so. lent: tensors of
    the batch that may not change before.
    """
    lookup = TrainedLookup(out, scale, frozen, lent)
    return list(_Lookup.apply(torch.empty(0, requires_grad=True), lookup, tensors))


class RowModule(nn.Module):
    """Base of the modules. It has no parameters: the rows are in the store, which updates them.

    scale: what gradients are multiplied by on their way to the store: a number, which may be set at any time
    (1 / scaler.get_scale() of a torch.amp.GradScaler, say), or "mean": 1 / the number of ranks of torch.distributed,
    where each pushes the gradient of its own mean loss.
    dtype: of what it gives: torch.float32, float16 or bfloat16. trainable: False looks up only, whatever the mode.
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
        keep: bool = False,
    ) -> None:
        super().__init__()
        self.fused = FusedEmbedding(features, missing=missing, unknown=unknown)
        self.scale = scale
        problems = [] if scale == "mean" else number_problems("scale", scale)
        if dtype not in FLOATS:
            problems.append(f"dtype is {dtype}, not one of {', '.join(map(str, FLOATS))}")
        if not isinstance(trainable, bool):
            problems.append(f"trainable is {trainable!r}, not True or False")
        if problems:
            raise InvalidConfig(f"{type(self).__name__}: " + "; ".join(problems))
        self.dtype = dtype
        self.trainable = trainable
        self._keep = keep

    def look_up(self, batch: Mapping[str, Ragged]) -> tuple[FusedOutput, list[Any]]:
        """The output of a lookup, and its tensors: `pooled`, if any feature is, and the sequences."""
        train = self.training and self.trainable
        wanted = self.trainable and torch.is_grad_enabled()
        keep = self._keep and train and wanted and pushes_alone(self.fused.storage)
        out = self.fused.lookup(batch, train=train, keep=keep)
        arrays = ([out.pooled] if self.fused.dim else []) + list(out.sequences.values())
        tensors = [tensor_of(each).to(self.dtype) for each in arrays]
        if not wanted:
            return out, tensors
        frozen = None if train else "it was looked up in eval() mode: call train(), or make the module trainable=False"
        sent = [array for each in batch.values() for array in (each.keys, each.offsets, each.weights)]
        return out, trained(out, tensors, self.gradient_scale, frozen, [each for each in sent if is_tensor(each)])

    @property
    def on_gpu(self) -> bool:
        """Whether tensors on a GPU are taken: that one on which the storage keeps its rows."""
        return self.fused.storage.backend.device is not None

    def gradient_scale(self) -> float:
        """What gradients are multiplied by now. Raises InvalidConfig."""
        if self.scale == "mean":
            return 1.0 / int(torch.distributed.get_world_size()) if begun() else 1.0
        problems = number_problems("scale", self.scale)
        if problems:
            raise InvalidConfig(f"{type(self).__name__}: {problems[0]}")
        return float(self.scale)

    def get_extra_state(self) -> dict[str, Any]:
        """What state_dict keeps: which rows they are, and what becomes of them. Not the rows, which the store has."""
        return {"rockbed": _STATE_VERSION, "features": [_settings(each) for each in self.fused.features]}

    def set_extra_state(self, state: Any) -> None:
        """Check that a state_dict is of the same features of the same groups. Raises GroupConflict."""
        if not isinstance(state, dict) or state.get("rockbed") != _STATE_VERSION:
            raise GroupConflict(f"{type(self).__name__}: the state_dict has {state!r}, not the state of such a module")
        ours, theirs = self.get_extra_state()["features"], state["features"]
        if [each["name"] for each in ours] != [each["name"] for each in theirs]:
            names = [[each["name"] for each in features] for features in (theirs, ours)]
            raise GroupConflict(f"{type(self).__name__}: the state_dict has the features {names[0]}, this {names[1]}")
        problems = [
            f"feature {our['name']!r}: {setting} is {their.get(setting)!r} in the state_dict, {value!r} here"
            for our, their in zip(ours, theirs, strict=True)
            for setting, value in our.items()
            if value != their.get(setting)
        ]
        if problems:
            raise GroupConflict(f"{type(self).__name__}: " + "; ".join(problems))

    def extra_repr(self) -> str:
        return ", ".join(f"{each.name}: {each.embedding!r}, {each.combiner}" for each in self.fused.features)


def _settings(feature: Feature) -> dict[str, Any]:
    config = feature.embedding.config
    return {
        "name": feature.name,
        "group": config.group,
        "dim": config.dim,
        "seed": config.seed,
        "optimizer": config.optimizer["name"],
        "initializer": dict(config.initializer),
        "combiner": feature.combiner,
        "max_norm": feature.max_norm,
        "default_key": feature.default_key,
        "prune_negative": feature.prune_negative,
    }
