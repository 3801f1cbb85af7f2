"""What an optimizer is: one update rule, whose state lies beside the weights in the row."""

from typing import Any, ClassVar, Protocol

import numpy as np

from rockbed.optimizers.config import (
    Configured,
    Registry,
    Value,
    decay_factor,
    not_negative,
    parameter,
    safe_epsilon,
)
from rockbed.types import F32, I64


class Optimizer(Protocol):
    """One update rule with its parameters. It holds nothing per key; a row is [weights dim | state]."""

    name: ClassVar[str]

    @property
    def lr(self) -> float:
        """The base learning rate, whatever key (gamma, alpha, eta) the outside knows it by."""

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        """Name and width of each slot, in the order of the row; the widths add up to `state_width`."""

    def state_width(self, dim: int) -> int:
        """float32 values that a row of `dim` weights needs besides them."""

    def initial_state(self, dim: int) -> F32:
        """float32[state_width(dim)]: the state of a row before its first update."""

    def apply(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        """Update data[rows] in place, row rows[i] with grads[i] at rate lr[i].

        data: float32[capacity, dim + state_width(dim)], C-contiguous. rows: int64[n], distinct, within data.
        grads: float32[n, dim]. lr: float32[n], already scheduled. step: int64[n], 1 for the first update.
        Rows do not depend on each other: NaN in one stays in it.
        """

    def params(self) -> dict[str, Value]:
        """Parameters by primary key: make_optimizer(name, **params()) builds an equal rule."""


class Rule(Configured):
    """Base of the rules here: slots from `slots`, all starting at 0 unless `initial_state` says otherwise."""

    __slots__ = ()
    kind: ClassVar[str] = "optimizer"

    def slots(self, dim: int) -> tuple[tuple[str, int], ...]:
        return ()

    def state_width(self, dim: int) -> int:
        return sum(width for _, width in self.slots(dim))

    def initial_state(self, dim: int) -> F32:
        return np.zeros(self.state_width(dim), np.float32)

    def apply(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        n, dim = grads.shape
        # The kernels do not check indices. Callers validate what users send; this catches our own mistakes.
        assert data.flags.c_contiguous
        assert data.shape[1] == dim + self.state_width(dim)
        assert rows.shape == lr.shape == step.shape == (n,)
        self._run(data, rows, grads, lr, step)

    def _run(self, data: F32, rows: I64, grads: F32, lr: F32, step: I64) -> None:
        """Call the rule's kernel. Scalars go in as float32: one float64 in the loop would widen all of it."""
        raise NotImplementedError


registry: Registry[Any] = Registry("optimizer")
register = registry.register


def make_optimizer(name: str, /, **params: Value) -> Optimizer:
    """Build a rule by name, with damo's parameter keys or the usual aliases (lr, weight_decay, beta_1, eps, ...).

    Raises UnknownName with the known names or parameters, InvalidConfig with every bad or doubly given value.
    """
    rule: Optimizer = registry.make(name, params)
    return rule


def optimizer_names() -> list[str]:
    """Every name that make_optimizer takes."""
    return registry.names()


# --- parameters that many rules have, so that each has one set of names and one range ---


def learning_rate(default: float, key: str = "gamma", *aliases: str) -> Any:
    return parameter(float, key, *aliases, "lr", "learning_rate", default=default, check=not_negative)


def weight_decay(default: float = 0.0) -> Any:
    return parameter(float, "lambda", "weight_decay", "wd", default=default, check=not_negative)


def epsilon(default: float) -> Any:
    return parameter(float, "epsilon", "eps", default=default, check=safe_epsilon)


def beta1(default: float = 0.9) -> Any:
    return parameter(float, "beta1", "beta_1", default=default, check=decay_factor)


def beta2(default: float = 0.999) -> Any:
    return parameter(float, "beta2", "beta_2", default=default, check=decay_factor)


def initial_accumulator(default: float) -> Any:
    key = "initial_accumulator"
    return parameter(float, key, "initial_accumulator_value", "init_acc", default=default, check=not_negative)


def penalty(which: str) -> Any:
    """Strength of the L1 ("1"), L2 ("2") or group ("21") regularisation."""
    key = f"lambda{which}"
    return parameter(float, key, f"l{which}", f"l{which}_regularization_strength", default=0.0, check=not_negative)
