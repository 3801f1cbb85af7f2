"""Schedules against the formulas that TensorFlow documents, computed one step at a time with the math module."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rockbed.errors import InvalidConfig, UnknownName
from rockbed.optimizers import make_schedule, schedule_names

LR = 0.1
STEPS = np.array([0, 1, 5, 9, 10, 11, 20, 25, 1000], np.int64)

CASES: list[tuple[str, dict[str, Any], Callable[[int], float]]] = [
    ("constant", {}, lambda t: LR),
    ("exponential_decay", {"decay_steps": 10, "decay_rate": 0.5}, lambda t: LR * 0.5 ** (t / 10)),
    (
        "exponential_decay",
        {"decay_steps": 10, "decay_rate": 0.5, "staircase": True},
        lambda t: LR * 0.5 ** (t // 10),
    ),
    ("step", {"decay_steps": 10}, lambda t: LR * 0.1 ** (t // 10)),
    ("step_decay", {"step_size": 10, "gamma": 0.5}, lambda t: LR * 0.5 ** (t // 10)),
    ("polynomial_decay", {"decay_steps": 20}, lambda t: (LR - 1e-4) * (1 - min(t, 20) / 20) + 1e-4),
    (
        "polynomial_decay",
        {"decay_steps": 20, "power": 2, "end_learning_rate": 0.01},
        lambda t: (LR - 0.01) * (1 - min(t, 20) / 20) ** 2 + 0.01,
    ),
    (
        "natural_exponential_decay",
        {"decay_steps": 10, "decay_rate": 0.5},
        lambda t: LR * math.exp(-0.5 * t / 10),
    ),
    (
        "nature_exponential_decay",
        {"decay_steps": 10, "decay_rate": 0.5, "staircase": True},
        lambda t: LR * math.exp(-0.5 * (t // 10)),
    ),
    ("inverse_time_decay", {"decay_steps": 10, "decay_rate": 0.5}, lambda t: LR / (1 + 0.5 * t / 10)),
    (
        "inverse_time_lr_scheduler",
        {"decay_steps": 10, "decay_rate": 0.5, "staircase": True},
        lambda t: LR / (1 + 0.5 * (t // 10)),
    ),
    ("cosine_decay", {"decay_steps": 20}, lambda t: LR * 0.5 * (1 + math.cos(math.pi * min(t, 20) / 20))),
    (
        "cosine_decay",
        {"decay_steps": 20, "alpha": 0.2},
        lambda t: LR * (0.8 * 0.5 * (1 + math.cos(math.pi * min(t, 20) / 20)) + 0.2),
    ),
    (
        "linear_cosine_decay",
        {"decay_steps": 20},
        lambda t: LR * ((20 - min(t, 20)) / 20 * 0.5 * (1 + math.cos(math.pi * 2 * 0.5 * min(t, 20) / 20)) + 1e-3),
    ),
    (
        "liner_cosine_decay",
        {"decay_steps": 20, "alpha": 0.1, "beta": 0.01, "num_periods": 2},
        lambda t: (
            LR * ((0.1 + (20 - min(t, 20)) / 20) * 0.5 * (1 + math.cos(math.pi * 2 * 2 * min(t, 20) / 20)) + 0.01)
        ),
    ),
]
IDS = [f"{name}-{len(params)}" for name, params, _ in CASES]


@pytest.mark.parametrize(("name", "params", "formula"), CASES, ids=IDS)
def test_rate_follows_the_documented_formula(
    name: str, params: dict[str, Any], formula: Callable[[int], float]
) -> None:
    rate = make_schedule(name, **params).rate(LR, STEPS)
    assert rate.dtype == np.float64
    np.testing.assert_allclose(rate, [formula(int(t)) for t in STEPS], rtol=1e-13)


@pytest.mark.parametrize(("name", "params", "formula"), CASES, ids=IDS)
def test_warm_up_rises_linearly_and_then_the_schedule_starts(
    name: str, params: dict[str, Any], formula: Callable[[int], float]
) -> None:
    rate = make_schedule(name, **params, warmup_steps=4, warmup_start=0.2).rate(LR, np.arange(40))
    np.testing.assert_allclose(rate[:4], [LR * (0.2 + 0.8 * t / 4) for t in range(4)], rtol=1e-13)
    np.testing.assert_allclose(rate[4:], [formula(t) for t in range(36)], rtol=1e-13)


@pytest.mark.parametrize(("name", "params", "formula"), CASES, ids=IDS)
def test_rate_is_never_negative_and_starts_with_the_base_rate(
    name: str, params: dict[str, Any], formula: Callable[[int], float]
) -> None:
    rate = make_schedule(name, **params).rate(LR, np.array([0, 1, 10**6, 2**62]))
    assert (rate >= 0).all()
    # linear_cosine_decay adds beta and alpha from the first step on.
    assert rate[0] == pytest.approx(LR, rel=0.12 if "cosine" in name else 1e-12)


def test_every_name_is_tested_and_every_schedule_describes_itself() -> None:
    names = {name for name, _, _ in CASES}
    assert set(schedule_names()) - names == {"natural_exp_decay"}
    for name, params, _ in CASES:
        schedule = make_schedule(name, **params)
        assert make_schedule(schedule.name, **schedule.params()) == schedule


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_empty_and_scalar_like_steps(dtype: type) -> None:
    schedule = make_schedule("cosine_decay", decay_steps=10)
    assert schedule.rate(LR, np.empty(0, dtype)).shape == (0,)
    assert schedule.rate(LR, np.zeros(1, dtype)).tolist() == [LR]


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("exponential_decay", {}, "decay_steps must be given; decay_rate must be given"),
        ("exponential_decay", {"decay_steps": 0, "decay_rate": 0}, "decay_steps=0 must be above 0; decay_rate=0"),
        ("cosine_decay", {"decay_steps": 10, "alpha": 2}, "alpha=2"),
        ("constant", {"warmup_steps": -1, "warmup_start": 2}, "warmup_steps=-1 must be at least 0; warmup_start=2"),
        ("constant", {"warmup_steps": 2.5}, "warmup_steps must be of type int"),
    ],
)
def test_bad_value_is_refused(name: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig) as raised:
        make_schedule(name, **params)
    assert words in str(raised.value)


def test_unknown_schedule_is_an_error_and_not_no_schedule() -> None:
    with pytest.raises(UnknownName, match=r"schedule 'cosine' is unknown.*Known: constant, cosine_decay"):
        make_schedule("cosine")
