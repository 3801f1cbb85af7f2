"""Every parameter of every rule: its key, its default as documented, and another value doing what the formula says."""

from typing import Any

import numpy as np
import pytest

from rockbed import PyOptimizer
from rockbed.optimizers import make_optimizer
from rockbed.optimizers.base import registry
from rockbed.optimizers.config import parameters_of
from rockbed.types import F32, F64
from tests.optimizers.formulas import FORMULAS, Params, first_slots

# Typed in from what the libraries document, not read from the code. damo's keys and defaults where damo has the rule
# (the first seven); torch's for momentum, adadelta and rmsprop; FBGEMM's for the row-wise ones; DeepRec's for
# adagrad_decay; tfplus' for group_adam and sparse_group_ftrl; TensorFlow Addons' for rectified_adam; the authors' for
# adabelief.
DEFAULTS: dict[str, Params] = {
    "sgd": {"gamma": 1e-3, "lambda": 0.0},
    "adagrad": {"gamma": 1e-2, "lambda": 0.0, "eta": 0.0, "epsilon": 1e-10, "initial_accumulator": 0.0},
    "adam": {"gamma": 1e-3, "beta1": 0.9, "beta2": 0.999, "lambda": 0.0, "epsilon": 1e-8},
    "amsgrad": {"gamma": 1e-3, "beta1": 0.9, "beta2": 0.999, "lambda": 0.0, "epsilon": 1e-8},
    "adamw": {"gamma": 1e-3, "beta1": 0.9, "beta2": 0.999, "lambda": 1e-2, "epsilon": 1e-8},
    "lion": {"eta": 3e-4, "beta1": 0.9, "beta2": 0.99, "lambda": 1e-2},
    "ftrl": {"alpha": 5e-3, "beta": 0.0, "lambda1": 0.0, "lambda2": 0.0, "initial_accumulator": 0.0},
    "momentum": {"gamma": 1e-3, "momentum": 0.9, "nesterov": False, "lambda": 0.0},
    "adadelta": {"gamma": 1.0, "rho": 0.9, "lambda": 0.0, "epsilon": 1e-6},
    "rmsprop": {"gamma": 1e-2, "alpha": 0.99, "momentum": 0.0, "lambda": 0.0, "epsilon": 1e-8},
    "adagrad_decay": {
        "gamma": 1e-2,
        "lambda": 0.0,
        "decay_steps": 100_000,
        "decay_rate": 0.9,
        "initial_accumulator": 0.1,
    },
    "group_adam": {
        "gamma": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "lambda1": 0.0,
        "lambda2": 0.0,
        "lambda21": 0.0,
        "initial_accumulator": 0.0,
    },
    "sparse_group_ftrl": {
        "gamma": 1e-2,
        "lambda1": 0.0,
        "lambda2": 0.0,
        "lambda21": 0.0,
        "l2_shrinkage": 0.0,
        "initial_accumulator": 0.1,
    },
    "rectified_adam": {
        "gamma": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "lambda": 0.0,
        "epsilon": 1e-7,
        "sma_threshold": 5.0,
    },
    "rowwise_adagrad": {"gamma": 1e-2, "lambda": 0.0, "epsilon": 1e-8, "initial_accumulator": 0.0},
    "partial_rowwise_adam": {"gamma": 1e-2, "beta1": 0.9, "beta2": 0.999, "lambda": 0.0, "epsilon": 1e-8},
    "adabelief": {"gamma": 1e-3, "beta1": 0.9, "beta2": 0.999, "lambda": 0.0, "epsilon": 1e-16},
}

# One value for each parameter that is not its default.
OTHERS: dict[str, Params] = {
    "sgd": {"gamma": 0.3, "lambda": 0.4},
    "adagrad": {"gamma": 0.3, "lambda": 0.4, "eta": 0.2, "epsilon": 0.5, "initial_accumulator": 0.7},
    "adam": {"gamma": 0.3, "beta1": 0.5, "beta2": 0.8, "lambda": 0.4, "epsilon": 0.5},
    "amsgrad": {"gamma": 0.3, "beta1": 0.5, "beta2": 0.8, "lambda": 0.4, "epsilon": 0.5},
    "adamw": {"gamma": 0.3, "beta1": 0.5, "beta2": 0.8, "lambda": 0.4, "epsilon": 0.5},
    "lion": {"eta": 0.3, "beta1": 0.2, "beta2": 0.3, "lambda": 0.4},
    "ftrl": {"alpha": 0.3, "beta": 0.3, "lambda1": 1.0, "lambda2": 0.5, "initial_accumulator": 0.7},
    "momentum": {"gamma": 0.3, "momentum": 0.4, "nesterov": True, "lambda": 0.4},
    "adadelta": {"gamma": 0.3, "rho": 0.5, "lambda": 0.4, "epsilon": 0.1},
    "rmsprop": {"gamma": 0.3, "alpha": 0.6, "momentum": 0.8, "lambda": 0.4, "epsilon": 0.5},
    "adagrad_decay": {
        "gamma": 0.3,
        "lambda": 0.4,
        "decay_steps": 3,
        "decay_rate": 0.3,
        "initial_accumulator": 0.7,
    },
    "group_adam": {
        "gamma": 0.3,
        "beta1": 0.5,
        "beta2": 0.8,
        "epsilon": 0.5,
        "lambda1": 0.3,
        "lambda2": 0.2,
        "lambda21": 0.4,
        "initial_accumulator": 0.7,
    },
    "sparse_group_ftrl": {
        "gamma": 0.3,
        "lambda1": 0.5,
        "lambda2": 0.2,
        "lambda21": 1.0,
        "l2_shrinkage": 0.3,
        "initial_accumulator": 0.7,
    },
    "rectified_adam": {
        "gamma": 0.3,
        "beta1": 0.5,
        "beta2": 0.8,
        "lambda": 0.4,
        "epsilon": 0.5,
        "sma_threshold": 7.5,
    },
    "rowwise_adagrad": {"gamma": 0.3, "lambda": 0.4, "epsilon": 0.5, "initial_accumulator": 0.7},
    "partial_rowwise_adam": {"gamma": 0.3, "beta1": 0.5, "beta2": 0.8, "lambda": 0.4, "epsilon": 0.5},
    "adabelief": {"gamma": 0.3, "beta1": 0.5, "beta2": 0.8, "lambda": 0.4, "epsilon": 0.5},
}

# What else must be set for a parameter to show; a parameter's own entry does not count. The rates: at the small default
# ones a wrong parameter would hide below float32's rounding.
SETTING: dict[str, Params] = {
    "adagrad_decay": {"gamma": 0.1, "decay_steps": 2, "decay_rate": 0.5},
    "adadelta": {"epsilon": 1e-2},
    "ftrl": {"alpha": 0.1},
    "lion": {"eta": 0.1},
    # the second moment comes into use after 6 steps of the 10
    "rectified_adam": {"gamma": 0.1, "beta2": 0.9},
}
RATE = {"gamma": 0.1}

CASES = [(name, key) for name, others in OTHERS.items() for key in others]
STEPS, DIM = 10, 6


def gradients_and_weights() -> tuple[F32, F32]:
    rng = np.random.default_rng(11)
    return rng.normal(size=(STEPS, DIM)).astype(np.float32), rng.normal(size=DIM).astype(np.float32)


def by_the_formula(name: str, p: Params) -> F64:
    """float64[width]: weights and slots of one row after all steps. p: every parameter, by primary key."""
    gradients, first = gradients_and_weights()
    w, slots = first.astype(np.float64), first_slots(name, p, DIM)
    for t, gradient in enumerate(gradients.astype(np.float64), start=1):
        w, slots = FORMULAS[name](p, w, slots, gradient, p[next(iter(p))], t)
    return np.concatenate([w, *slots])


def by_the_rule(name: str, given: Params) -> F32:
    """float32[width]: the same by PyOptimizer.call, with only some parameters given."""
    optimizer = PyOptimizer({"name": name, **given})
    gradients, first = gradients_and_weights()
    row = np.concatenate([first, optimizer.rule.initial_state(DIM)])
    for t, gradient in enumerate(gradients, start=1):
        optimizer.call(row, gradient, t)
    return row


def test_the_tables_hold_every_rule_and_every_parameter() -> None:
    classes = {cls.name: cls for cls in registry._classes.values()}
    assert set(DEFAULTS) == set(OTHERS) == set(FORMULAS) == set(classes)
    for name, cls in classes.items():
        keys = [spec.key for spec in parameters_of(cls).values()]
        assert list(OTHERS[name]) == list(DEFAULTS[name])
        assert sorted(keys) == sorted(DEFAULTS[name])
        assert keys[0] == next(iter(DEFAULTS[name]))  # the rate comes first
        assert not [key for key in keys if OTHERS[name][key] == DEFAULTS[name][key]]


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_documented_ones(name: str) -> None:
    assert make_optimizer(name).params() == DEFAULTS[name]
    assert PyOptimizer(name=name).rule.lr == next(iter(DEFAULTS[name].values()))


def test_nesterov_is_momentum_that_looks_ahead() -> None:
    assert make_optimizer("nesterov").params() == {**DEFAULTS["momentum"], "nesterov": True}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_rule_with_nothing_given_follows_its_formula_with_the_documented_defaults(name: str) -> None:
    # ftrl at a rate of 0.005 takes a weight from the difference of sums in the hundreds
    tolerance: dict[str, Any] = {"rtol": 3e-4, "atol": 3e-4} if "ftrl" in name else {"rtol": 3e-5, "atol": 1e-6}
    np.testing.assert_allclose(by_the_rule(name, {}), by_the_formula(name, DEFAULTS[name]), **tolerance)


@pytest.mark.parametrize(("name", "key"), CASES, ids=["-".join(case) for case in CASES])
def test_every_parameter_does_what_the_formula_says(name: str, key: str) -> None:
    context = {k: v for k, v in SETTING.get(name, RATE).items() if k != key}
    given = {**context, key: OTHERS[name][key]}
    expected = by_the_formula(name, {**DEFAULTS[name], **given})
    without = by_the_formula(name, {**DEFAULTS[name], **context})
    assert np.abs(expected[:DIM] - without[:DIM]).max() > 1e-3  # 100 times what the comparison below lets pass
    np.testing.assert_allclose(by_the_rule(name, given), expected, rtol=3e-5, atol=1e-5)
