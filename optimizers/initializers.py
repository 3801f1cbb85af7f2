"""What the weights of a row start as: a pure function of (seed, group, key), see random_values.py.

An embedding row has no fan_in and fan_out of its own. Here, as stated at each class: the Xavier forms take
fan_in + fan_out = dim (damo's choice); the Kaiming forms see the row as a 1 x dim matrix, as torch sees the weight of
an nn.Embedding with one row: fan_in = dim, fan_out = 1.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from rockbed.optimizers.config import Configured, Registry, Value, not_negative, one_of, parameter
from rockbed.optimizers.random_values import fill_constant, fill_normal, fill_uniform
from rockbed.types import F32, I64

SEED_MASK = 0xFFFFFFFFFFFFFFFF

BELOW_MINUS_TWO = 0.022750131948179207
"""P(Z < -2) of the standard normal distribution."""


Recipe = tuple[str, float, float, float]
"""How random_values fills a row: "constant", value, 0, 0; "uniform", low, span, 0; "normal", mean, stddev, below."""


class Initializer(Protocol):
    """One way to start rows."""

    name: ClassVar[str]

    def fill(self, data: F32, rows: I64, keys: I64, dim: int, seed: int, group: int) -> None:
        """Write the weights of new rows: data[rows[i], :dim] from keys[i]; the state beside them is not touched.

        data: float32[capacity, width >= dim]. rows: int64[n], within data. keys: int64[n], a uint64 key as its bit
        pattern. seed: any int, taken modulo 2^64. group: 0..65535.
        """

    def recipe(self, dim: int) -> Recipe:
        """What `fill` computes, for a port of it."""

    def params(self) -> dict[str, Value]:
        """Parameters by primary key: make_initializer(name, **params()) builds an equal one."""


registry: Registry[Any] = Registry("initializer")


def make_initializer(name: str, /, **params: Value) -> Initializer:
    """Build an initializer by name. Raises UnknownName and InvalidConfig as make_optimizer does."""
    initializer: Initializer = registry.make(name, params)
    return initializer


def initializer_names() -> list[str]:
    """Every name that make_initializer takes."""
    return registry.names()


class _Constant(Configured):
    """Writes one value."""

    __slots__ = ()
    kind: ClassVar[str] = "initializer"

    def _value(self) -> float:
        raise NotImplementedError

    def fill(self, data: F32, rows: I64, keys: I64, dim: int, seed: int, group: int) -> None:
        fill_constant(data, rows, dim, np.float32(self._value()))

    def recipe(self, dim: int) -> Recipe:
        return "constant", self._value(), 0.0, 0.0


class _Uniform(Configured):
    """Writes U(low, high); the bounds may depend on dim."""

    __slots__ = ()
    kind: ClassVar[str] = "initializer"

    def _bounds(self, dim: int) -> tuple[float, float]:
        raise NotImplementedError

    def fill(self, data: F32, rows: I64, keys: I64, dim: int, seed: int, group: int) -> None:
        _, low, span, _ = self.recipe(dim)
        fill_uniform(data, rows, keys, dim, np.uint64(seed & SEED_MASK), group, low, span)

    def recipe(self, dim: int) -> Recipe:
        low, high = self._bounds(dim)
        return "uniform", low, high - low, 0.0


class _Normal(Configured):
    """Writes N(mean, stddev^2), cut off where less than `below` of the distribution lies outside on either side."""

    __slots__ = ()
    kind: ClassVar[str] = "initializer"
    below: ClassVar[float] = 0.0

    def _mean_stddev(self, dim: int) -> tuple[float, float]:
        raise NotImplementedError

    def fill(self, data: F32, rows: I64, keys: I64, dim: int, seed: int, group: int) -> None:
        _, mean, stddev, below = self.recipe(dim)
        fill_normal(data, rows, keys, dim, np.uint64(seed & SEED_MASK), group, mean, stddev, below)

    def recipe(self, dim: int) -> Recipe:
        mean, stddev = self._mean_stddev(dim)
        return "normal", mean, stddev, self.below


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class Zeros(_Constant):
    """0 throughout."""

    name: ClassVar[str] = "zeros"

    def _value(self) -> float:
        return 0.0


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class Ones(_Constant):
    """1 throughout."""

    name: ClassVar[str] = "ones"

    def _value(self) -> float:
        return 1.0


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(_Constant):
    """`value` throughout."""

    name: ClassVar[str] = "constant"
    value: float = parameter(float, "value")

    def _value(self) -> float:
        return self.value


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomUniform(_Uniform):
    """U(min, max). damo's default bounds of +-1 are very large for an embedding; +-0.01 is usual."""

    name: ClassVar[str] = "random_uniform"
    low: float = parameter(float, "min", "low", "minval", default=-1.0)
    high: float = parameter(float, "max", "high", "maxval", default=1.0)

    def _conflicts(self) -> list[str]:
        return [] if self.low <= self.high else [f"min={self.low} is above max={self.high}"]

    def _bounds(self, dim: int) -> tuple[float, float]:
        return self.low, self.high


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(_Uniform):
    """damo 1.2's `uniform`: U(+-sqrt(1 / dim))."""

    name: ClassVar[str] = "uniform"

    def _bounds(self, dim: int) -> tuple[float, float]:
        bound = math.sqrt(1.0 / dim)
        return -bound, bound


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomNormal(_Normal):
    """N(mean, stddev^2). damo's default stddev of 1 is very large for an embedding."""

    name: ClassVar[str] = "random_normal"
    mean: float = parameter(float, "mean", default=0.0)
    stddev: float = parameter(float, "stddev", "std", default=1.0, check=not_negative)

    def _mean_stddev(self, dim: int) -> tuple[float, float]:
        return self.mean, self.stddev


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class TruncateNormal(_Normal):
    """N(mean, stddev^2) given that it lies within two stddev of the mean; its own deviation is 0.8796 stddev.

    The same distribution as damo's and TF's redrawing; torch's trunc_normal_ takes absolute bounds instead.
    """

    name: ClassVar[str] = "truncate_normal"
    below: ClassVar[float] = BELOW_MINUS_TWO
    mean: float = parameter(float, "mean", default=0.0)
    stddev: float = parameter(float, "stddev", "std", default=1.0, check=not_negative)

    def _mean_stddev(self, dim: int) -> tuple[float, float]:
        return self.mean, self.stddev


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class XavierUniform(_Uniform):
    """Glorot, Bengio 2010, eq. 16: U(+-sqrt(6 / (fan_in + fan_out))), with fan_in + fan_out = dim as in damo."""

    name: ClassVar[str] = "xavier_uniform"

    def _bounds(self, dim: int) -> tuple[float, float]:
        bound = math.sqrt(6.0 / dim)
        return -bound, bound


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class XavierNormal(_Normal):
    """Glorot, Bengio 2010, eq. 12: N(0, 2 / (fan_in + fan_out)), with fan_in + fan_out = dim as in xavier_uniform."""

    name: ClassVar[str] = "xavier_normal"

    def _mean_stddev(self, dim: int) -> tuple[float, float]:
        return 0.0, math.sqrt(2.0 / dim)


def _mode() -> Any:
    return parameter(str, "mode", default="fan_in", check=one_of("fan_in", "fan_out"))


def _kaiming_stddev(dim: int, mode: str, a: float) -> float:
    """He et al. 2015, eq. 15: sqrt(2 / ((1 + a^2) * fan)), a the negative slope of the leaky ReLU that follows."""
    fan = dim if mode == "fan_in" else 1
    return math.sqrt(2.0 / ((1.0 + a * a) * fan))


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class KaimingUniform(_Uniform):
    """U(+-sqrt(3) * kaiming_normal's stddev), as torch: fan_in is dim, fan_out 1."""

    name: ClassVar[str] = "kaiming_uniform"
    mode: str = _mode()
    a: float = parameter(float, "a", default=0.0)

    def _bounds(self, dim: int) -> tuple[float, float]:
        bound = math.sqrt(3.0) * _kaiming_stddev(dim, self.mode, self.a)
        return -bound, bound


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class KaimingNormal(_Normal):
    """N(0, 2 / ((1 + a^2) * fan)), as torch: fan_in is dim, fan_out 1."""

    name: ClassVar[str] = "kaiming_normal"
    mode: str = _mode()
    a: float = parameter(float, "a", default=0.0)

    def _mean_stddev(self, dim: int) -> tuple[float, float]:
        return 0.0, _kaiming_stddev(dim, self.mode, self.a)


registry.alias("truncated_normal", of="truncate_normal")
registry.alias("xavier", of="xavier_uniform")  # damo 1.2
registry.alias("random", of="random_normal")  # damo 1.2
