"""Schedules against the formulas that TensorFlow documents, computed one step at a time with the math module."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rockbed.errors import InvalidConfig, UnknownName
from rockbed.optimizers import make_schedule, schedule_names
from rockbed.optimizers.config import parameters_of
from rockbed.optimizers.schedules import registry

LR = 0.1
STEPS = np.array([0, 1, 5, 9, 10, 11, 20, 25, 1000], np.int64)


def restarting(t: float, first: float, t_mul: float = 2.0, m_mul: float = 1.0, alpha: float = 0.0) -> float:
    """cosine_decay_restarts, by walking through its periods."""
    begin, length, peak = 0.0, first, 1.0
    while t >= begin + length:
        begin, length, peak = begin + length, length * t_mul, peak * m_mul
    return LR * ((1 - alpha) * peak * 0.5 * (1 + math.cos(math.pi * (t - begin) / length)) + alpha)


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
    ("cosine_decay_restarts", {"first_decay_steps": 5}, lambda t: restarting(t, 5)),
    ("cosine_decay_restarts", {"decay_steps": 5, "t_mul": 1, "m_mul": 0.5}, lambda t: restarting(t, 5, 1.0, 0.5)),
    (
        "cosine_decay_restarts",
        {"first_decay_steps": 8, "t_mul": 1.5, "m_mul": 0.5, "alpha": 0.1},
        lambda t: restarting(t, 8, 1.5, 0.5, 0.1),
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


@pytest.mark.parametrize(("name", "params"), [case[:2] for case in CASES], ids=IDS)
def test_rate_is_never_negative_and_starts_with_the_base_rate(name: str, params: dict[str, Any]) -> None:
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


# --- every parameter: its key and default as documented, and that another value does what the formula says ---

WARM_UP = {"warmup_steps": 0, "warmup_start": 0.0}
DEFAULTS: dict[str, dict[str, Any]] = {  # typed in from TensorFlow's documentation; torch's for step
    "constant": WARM_UP,
    "exponential_decay": {"staircase": False, **WARM_UP},
    "step": {"decay_rate": 0.1, **WARM_UP},
    "polynomial_decay": {"end_learning_rate": 1e-4, "power": 1.0, **WARM_UP},
    "natural_exponential_decay": {"staircase": False, **WARM_UP},
    "inverse_time_decay": {"staircase": False, **WARM_UP},
    "cosine_decay": {"alpha": 0.0, **WARM_UP},
    "cosine_decay_restarts": {"t_mul": 2.0, "m_mul": 1.0, "alpha": 0.0, **WARM_UP},
    "linear_cosine_decay": {"alpha": 0.0, "beta": 1e-3, "num_periods": 0.5, **WARM_UP},
}
REQUIRED: dict[str, dict[str, Any]] = {
    "constant": {},
    "exponential_decay": {"decay_steps": 20, "decay_rate": 0.5},
    "step": {"decay_steps": 20},
    "polynomial_decay": {"decay_steps": 20},
    "natural_exponential_decay": {"decay_steps": 20, "decay_rate": 0.5},
    "inverse_time_decay": {"decay_steps": 20, "decay_rate": 0.5},
    "cosine_decay": {"decay_steps": 20},
    "cosine_decay_restarts": {"first_decay_steps": 8},
    "linear_cosine_decay": {"decay_steps": 20},
}
OTHERS: dict[str, Any] = {
    "decay_steps": 7,
    "first_decay_steps": 5,
    "t_mul": 1.5,
    "m_mul": 0.5,
    "decay_rate": 0.3,
    "staircase": True,
    "end_learning_rate": 0.02,
    "power": 2.5,
    "alpha": 0.3,
    "beta": 0.2,
    "num_periods": 1.5,
    "warmup_steps": 6,
    "warmup_start": 0.4,
}


def rate_by_the_formula(name: str, p: dict[str, Any], t: float) -> float:
    if t < p["warmup_steps"]:
        return float(LR * (p["warmup_start"] + (1 - p["warmup_start"]) * t / p["warmup_steps"]))
    t -= p["warmup_steps"]
    if name == "constant":
        return LR
    if name == "cosine_decay_restarts":
        return restarting(t, p["first_decay_steps"], p["t_mul"], p["m_mul"], p["alpha"])
    steps = p["decay_steps"]
    if name == "step":
        return float(LR * p["decay_rate"] ** (t // steps))
    if name in ("polynomial_decay", "cosine_decay", "linear_cosine_decay"):
        done = min(t / steps, 1.0)
        if name == "polynomial_decay":
            return float((LR - p["end_learning_rate"]) * (1 - done) ** p["power"] + p["end_learning_rate"])
        if name == "cosine_decay":
            return float(LR * ((1 - p["alpha"]) * (1 + math.cos(math.pi * done)) / 2 + p["alpha"]))
        wave = (1 + math.cos(2 * math.pi * p["num_periods"] * done)) / 2
        return float(LR * ((p["alpha"] + 1 - done) * wave + p["beta"]))
    periods = math.floor(t / steps) if p["staircase"] else t / steps
    if name == "exponential_decay":
        return float(LR * p["decay_rate"] ** periods)
    if name == "natural_exponential_decay":
        return float(LR * math.exp(-p["decay_rate"] * periods))
    return float(LR / (1 + p["decay_rate"] * periods))


def test_the_tables_hold_every_schedule_and_every_parameter() -> None:
    classes = {cls.name: cls for cls in registry._classes.values()}
    assert set(DEFAULTS) == set(REQUIRED) == set(classes)
    for name, cls in classes.items():
        keys = {spec.key for spec in parameters_of(cls).values()}
        assert keys == DEFAULTS[name].keys() | REQUIRED[name].keys()
        assert keys <= OTHERS.keys()


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_documented_ones(name: str) -> None:
    assert make_schedule(name, **REQUIRED[name]).params() == {**REQUIRED[name], **DEFAULTS[name]}


EVERY_PARAMETER = [(name, key) for name in DEFAULTS for key in (*REQUIRED[name], *DEFAULTS[name])]


@pytest.mark.parametrize(("name", "key"), EVERY_PARAMETER, ids=["-".join(case) for case in EVERY_PARAMETER])
def test_every_parameter_does_what_the_formula_says(name: str, key: str) -> None:
    given = {**REQUIRED[name], **({"warmup_steps": 4} if key == "warmup_start" else {})}
    rates = []
    for wanted in ({}, {key: OTHERS[key]}):
        p = {**REQUIRED[name], **DEFAULTS[name], **given, **wanted}
        rates.append([rate_by_the_formula(name, p, t) for t in range(40)])
        made = make_schedule(name, **{**given, **wanted}).rate(LR, np.arange(40))
        np.testing.assert_allclose(made, rates[-1], rtol=1e-12, atol=1e-17)
    assert np.abs(np.array(rates[0]) - np.array(rates[1])).max() > 1e-3  # the parameter is visible
