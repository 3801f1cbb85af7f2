"""An update rule as the device takes it: the name of its struct in optimizers.cuh, and its parameters as numbers."""

from typing import Any, Protocol

import numpy as np

from rockbed.config import GroupConfig
from rockbed.errors import UnknownName
from rockbed.storage.gpu.sources import Module
from rockbed.types import F32, F64

LIMITS = np.dtype(
    [("clip_norm", "f8"), ("clip_value", "f4"), ("weight_min", "f4"), ("weight_max", "f4"), ("unused", "i4")]
)
"""`Limits` of update.cu."""

_ADAM = ("beta1", "beta2", "lambda", "epsilon")
_STRUCTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "adabelief": ("AdaBelief", _ADAM),
    "adadelta": ("Adadelta", ("rho", "lambda", "epsilon")),
    "adagrad": ("Adagrad", ("lambda", "eta", "epsilon")),
    "adagrad_decay": ("AdagradDecay", ("lambda", "decay_steps", "decay_rate", "initial_accumulator")),
    "adam": ("Adam", _ADAM),
    "adamw": ("AdamW", _ADAM),
    "amsgrad": ("Amsgrad", _ADAM),
    "ftrl": ("Ftrl", ("beta", "lambda1", "lambda2")),
    "group_adam": ("GroupAdam", ("beta1", "beta2", "epsilon", "lambda1", "lambda2", "lambda21")),
    "lion": ("Lion", ("beta1", "beta2", "lambda")),
    "momentum": ("Momentum", ("momentum", "nesterov", "lambda")),
    "partial_rowwise_adam": ("PartialRowwiseAdam", _ADAM),
    "rectified_adam": ("RectifiedAdam", (*_ADAM, "sma_threshold")),
    "rmsprop": ("Rmsprop", ("alpha", "momentum", "lambda", "epsilon")),
    "rowwise_adagrad": ("RowwiseAdagrad", ("lambda", "epsilon")),
    "sgd": ("Sgd", ("lambda",)),
    "sparse_group_ftrl": ("SparseGroupFtrl", ("lambda1", "lambda2", "lambda21", "l2_shrinkage")),
}


class UpdateRule(Protocol):
    """What is asked of an optimizer here: rockbed.optimizers.base.Optimizer has it."""

    @property
    def name(self) -> str:
        """The rule's name."""

    def params(self) -> dict[str, Any]:
        """Its parameters by primary key."""

    def state_width(self, dim: int) -> int:
        """float32 values of state that a row of `dim` weights has."""

    def initial_state(self, dim: int) -> F32:
        """float32[state_width(dim)]"""


def has_device_form(name: str) -> bool:
    """Whether the rule of that name can update rows on the device."""
    return name in _STRUCTS


def update_kernel(rule: UpdateRule, dim: int) -> tuple[Module, F64]:
    """What to compile for the rule at this dim (its kernel is named "update"), and the rule's parameters for it.

    Raises UnknownName for a rule that has no device form.
    """
    struct, keys = _struct(rule)
    params = rule.params()
    return Module("update.cu", f"UPDATE(update, {struct}, {dim})\n"), np.array(
        [params[key] for key in keys], np.float64
    )


def _struct(rule: UpdateRule) -> tuple[str, tuple[str, ...]]:
    if rule.name not in _STRUCTS:
        raise UnknownName(
            f"optimizer {rule.name!r} has no form for the GPU; those that have: {', '.join(sorted(_STRUCTS))}. Keep "
            "this group's rows on the CPU"
        )
    struct, keys = _STRUCTS[rule.name]
    if rule.name == "rmsprop" and rule.params()["momentum"] > 0:
        struct = "RmspropMomentum"  # whose rows have one slot more
    return struct, keys


def limits_of(config: GroupConfig) -> Any:
    """LIMITS[1]: the clipping and the bounds of a group."""
    unlimited = {"clip_norm": np.inf, "clip_value": np.inf, "weight_min": -np.inf, "weight_max": np.inf}
    limits = np.zeros(1, LIMITS)
    for name, without in unlimited.items():
        value = getattr(config, name)
        limits[name] = without if value is None else value
    return limits
