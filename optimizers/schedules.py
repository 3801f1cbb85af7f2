"""Learning-rate schedules: the formulas that TensorFlow 1 and Keras document, with a warm-up in front of any.

t counts the updates made before this one, from 0, so the first update gets the undecayed rate. It is the row's own
count or the trainer's global step, as the group says. With warmup_steps = n the rate rises linearly from
lr * warmup_start to lr while t < n; after that the schedule runs on t - n. All in float64.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from rockbed.optimizers.config import (
    Configured,
    Registry,
    Value,
    at_least_one,
    fraction,
    not_negative,
    parameter,
    positive,
)
from rockbed.types import F64, I64


class Schedule(Protocol):
    """The rate as a function of the base rate and the number of updates so far."""

    name: ClassVar[str]

    def rate(self, lr: float, step: I64) -> F64:
        """float64[n]: the rate for each of int64[n] steps (>= 0, updates before this one), lr being the base rate."""

    def params(self) -> dict[str, Value]:
        """Parameters by primary key: make_schedule(name, **params()) builds an equal one."""


class _WarmedUp(Configured):
    """Base of the schedules here: the warm-up, then `_factor`."""

    __slots__ = ()
    kind: ClassVar[str] = "schedule"
    warmup_steps: int
    warmup_start: float

    def rate(self, lr: float, step: I64) -> F64:
        t = np.asarray(step, np.float64)
        after: F64 = self._decayed(lr, np.maximum(t - self.warmup_steps, 0.0))
        if self.warmup_steps == 0:
            return after
        rising = lr * (self.warmup_start + (1.0 - self.warmup_start) * (t / self.warmup_steps))
        warmed: F64 = np.where(t < self.warmup_steps, rising, after)
        return warmed

    def _decayed(self, lr: float, t: F64) -> F64:
        """The rate t updates after the warm-up."""
        raise NotImplementedError


registry: Registry[Any] = Registry("schedule")


def make_schedule(name: str, /, **params: Value) -> Schedule:
    """Build a schedule by name. Raises UnknownName and InvalidConfig as make_optimizer does."""
    schedule: Schedule = registry.make(name, params)
    return schedule


def schedule_names() -> list[str]:
    """Every name that make_schedule takes."""
    return registry.names()


def _warmup_steps() -> Any:
    return parameter(int, "warmup_steps", default=0, check=not_negative)


def _warmup_start() -> Any:
    return parameter(float, "warmup_start", default=0.0, check=fraction)


def _decay_steps(*aliases: str) -> Any:
    return parameter(int, "decay_steps", *aliases, check=positive)


def _staircase() -> Any:
    return parameter(bool, "staircase", default=False)


def _periods(t: F64, decay_steps: int, staircase: bool) -> F64:
    """t / decay_steps, whole periods only if staircase."""
    p = t / decay_steps
    return np.floor(p) if staircase else p


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(_WarmedUp):
    """lr. On its own a warm-up and nothing else."""

    name: ClassVar[str] = "constant"
    warmup_steps: int = _warmup_steps()
    warmup_start: float = _warmup_start()

    def _decayed(self, lr: float, t: F64) -> F64:
        return np.full(t.shape, lr)


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialDecay(_WarmedUp):
    """lr * decay_rate^(t / decay_steps); staircase takes whole periods only. As TF and damo."""

    name: ClassVar[str] = "exponential_decay"
    decay_steps: int = _decay_steps()
    decay_rate: float = parameter(float, "decay_rate", check=positive)
    staircase: bool = _staircase()
    warmup_steps: int = _warmup_steps()
    warmup_start: float = _warmup_start()

    def _decayed(self, lr: float, t: F64) -> F64:
        return lr * np.power(self.decay_rate, _periods(t, self.decay_steps, self.staircase))


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class StepDecay(_WarmedUp):
    """lr * decay_rate^floor(t / decay_steps). As torch's StepLR (step_size; its gamma, 0.1)."""

    name: ClassVar[str] = "step"
    decay_steps: int = _decay_steps("step_size")
    decay_rate: float = parameter(float, "decay_rate", "gamma", default=0.1, check=positive)
    warmup_steps: int = _warmup_steps()
    warmup_start: float = _warmup_start()

    def _decayed(self, lr: float, t: F64) -> F64:
        return lr * np.power(self.decay_rate, _periods(t, self.decay_steps, staircase=True))


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class PolynomialDecay(_WarmedUp):
    """(lr - end) * (1 - min(t, T) / T)^power + end, T = decay_steps. As TF without `cycle`.

    damo has base and exponent the other way round, which makes its default a constant rate.
    """

    name: ClassVar[str] = "polynomial_decay"
    decay_steps: int = _decay_steps()
    end_learning_rate: float = parameter(float, "end_learning_rate", "end_lr", default=1e-4, check=not_negative)
    power: float = parameter(float, "power", default=1.0, check=positive)
    warmup_steps: int = _warmup_steps()
    warmup_start: float = _warmup_start()

    def _decayed(self, lr: float, t: F64) -> F64:
        left = 1.0 - np.minimum(t, self.decay_steps) / self.decay_steps
        return (lr - self.end_learning_rate) * np.power(left, self.power) + self.end_learning_rate


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class NaturalExponentialDecay(_WarmedUp):
    """lr * exp(-decay_rate * t / decay_steps). As TF's natural_exp_decay and damo's nature_exponential_decay."""

    name: ClassVar[str] = "natural_exponential_decay"
    decay_steps: int = _decay_steps()
    decay_rate: float = parameter(float, "decay_rate", check=not_negative)
    staircase: bool = _staircase()
    warmup_steps: int = _warmup_steps()
    warmup_start: float = _warmup_start()

    def _decayed(self, lr: float, t: F64) -> F64:
        return lr * np.exp(-self.decay_rate * _periods(t, self.decay_steps, self.staircase))


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class InverseTimeDecay(_WarmedUp):
    """lr / (1 + decay_rate * t / decay_steps). As TF."""

    name: ClassVar[str] = "inverse_time_decay"
    decay_steps: int = _decay_steps()
    decay_rate: float = parameter(float, "decay_rate", check=not_negative)
    staircase: bool = _staircase()
    warmup_steps: int = _warmup_steps()
    warmup_start: float = _warmup_start()

    def _decayed(self, lr: float, t: F64) -> F64:
        return lr / (1.0 + self.decay_rate * _periods(t, self.decay_steps, self.staircase))


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class CosineDecay(_WarmedUp):
    """lr * ((1 - alpha) * 0.5 * (1 + cos(pi * min(t, T) / T)) + alpha), T = decay_steps.

    Loshchilov, Hutter 2017, eq. 5 without restarts; as TF. damo does not clamp t: its rate climbs again after T.
    """

    name: ClassVar[str] = "cosine_decay"
    decay_steps: int = _decay_steps()
    alpha: float = parameter(float, "alpha", default=0.0, check=fraction)
    warmup_steps: int = _warmup_steps()
    warmup_start: float = _warmup_start()

    def _decayed(self, lr: float, t: F64) -> F64:
        wave = 0.5 * (1.0 + np.cos(np.pi * np.minimum(t, self.decay_steps) / self.decay_steps))
        return lr * ((1.0 - self.alpha) * wave + self.alpha)


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class CosineDecayRestarts(_WarmedUp):
    """As cosine_decay, begun anew when a period is over: each period t_mul times as long, its peak m_mul times as high.

    Period i begins at first_decay_steps * (1 + t_mul + ... + t_mul^(i - 1)); in it, with p the part of it that is over,
    lr * ((1 - alpha) * m_mul^i * 0.5 * (1 + cos(pi * p)) + alpha). Loshchilov, Hutter 2017, eq. 5; as TF.
    """

    name: ClassVar[str] = "cosine_decay_restarts"
    first_decay_steps: int = parameter(int, "first_decay_steps", "decay_steps", check=positive)
    t_mul: float = parameter(float, "t_mul", default=2.0, check=at_least_one)
    m_mul: float = parameter(float, "m_mul", default=1.0, check=not_negative)
    alpha: float = parameter(float, "alpha", default=0.0, check=fraction)
    warmup_steps: int = _warmup_steps()
    warmup_start: float = _warmup_start()

    def _decayed(self, lr: float, t: F64) -> F64:
        done = t / self.first_decay_steps
        if self.t_mul == 1.0:
            period = np.floor(done)
            p = done - period
        else:
            # the periods before i take (t_mul^i - 1) / (t_mul - 1) first periods; the logarithm may err at a border
            period = np.floor(np.log1p(done * (self.t_mul - 1.0)) / np.log(self.t_mul))
            period += self._begin(period + 1.0) <= done
            period -= self._begin(period) > done
            p = (done - self._begin(period)) / np.power(self.t_mul, period)
        wave = 0.5 * (1.0 + np.cos(np.pi * p)) * np.power(self.m_mul, period)
        rate: F64 = lr * ((1.0 - self.alpha) * wave + self.alpha)
        return rate

    def _begin(self, period: F64) -> F64:
        begin: F64 = (np.power(self.t_mul, period) - 1.0) / (self.t_mul - 1.0)
        return begin


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class LinearCosineDecay(_WarmedUp):
    """lr * ((alpha + 1 - p) * 0.5 * (1 + cos(2 * pi * num_periods * p)) + beta), p = min(t, T) / T, T = decay_steps.

    As TF1's linear_cosine_decay (Bello et al. 2017). damo's has the cosine's sign wrong, which gives negative rates.
    """

    name: ClassVar[str] = "linear_cosine_decay"
    decay_steps: int = _decay_steps()
    alpha: float = parameter(float, "alpha", default=0.0, check=not_negative)
    beta: float = parameter(float, "beta", default=1e-3, check=not_negative)
    num_periods: float = parameter(float, "num_periods", default=0.5, check=positive)
    warmup_steps: int = _warmup_steps()
    warmup_start: float = _warmup_start()

    def _decayed(self, lr: float, t: F64) -> F64:
        p = np.minimum(t, self.decay_steps) / self.decay_steps
        wave = 0.5 * (1.0 + np.cos(2.0 * np.pi * self.num_periods * p))
        return lr * ((self.alpha + 1.0 - p) * wave + self.beta)


registry.alias("step_decay", of="step")
registry.alias("nature_exponential_decay", of="natural_exponential_decay")  # damo's spelling
registry.alias("natural_exp_decay", of="natural_exponential_decay")  # TF's
registry.alias("inverse_time_lr_scheduler", of="inverse_time_decay")  # damo's code
registry.alias("liner_cosine_decay", of="linear_cosine_decay")  # damo's spelling
