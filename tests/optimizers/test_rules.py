"""Every update rule against its formula in float64 (formulas.py), and what all rules have in common."""

import math
from typing import Any

import numpy as np
import pytest

from rockbed.optimizers import make_optimizer, optimizer_names
from rockbed.types import F32, I64
from tests.optimizers.formulas import (
    Params,
    Spec,
    adabelief,
    adadelta,
    adagrad,
    adagrad_decay,
    adam,
    adamw,
    amsgrad,
    ftrl,
    group_adam,
    lion,
    momentum,
    partial_rowwise_adam,
    rectified_adam,
    rmsprop,
    rowwise_adagrad,
    sgd,
    sparse_group_ftrl,
)

CASES: list[tuple[str, Spec, Params]] = [
    ("sgd", sgd, {}),
    ("sgd", sgd, {"lambda": 0.1}),
    ("momentum", momentum, {}),
    ("momentum", momentum, {"lambda": 0.1, "momentum": 0.5}),
    ("nesterov", momentum, {}),
    ("nesterov", momentum, {"lambda": 0.1}),
    ("adagrad", adagrad, {}),
    ("adagrad", adagrad, {"lambda": 0.1, "eta": 0.05, "epsilon": 1e-3, "initial_accumulator": 0.1}),
    ("rowwise_adagrad", rowwise_adagrad, {}),
    ("rowwise_adagrad", rowwise_adagrad, {"lambda": 0.1, "epsilon": 1e-3, "initial_accumulator": 0.2}),
    ("adagrad_decay", adagrad_decay, {}),
    ("adagrad_decay", adagrad_decay, {"lambda": 0.1, "decay_steps": 2, "decay_rate": 0.5}),
    ("adadelta", adadelta, {}),
    ("adadelta", adadelta, {"lambda": 0.1, "rho": 0.8, "epsilon": 1e-3}),
    ("rmsprop", rmsprop, {}),
    ("rmsprop", rmsprop, {"lambda": 0.1, "alpha": 0.9, "momentum": 0.9}),
    ("adam", adam, {}),
    ("adam", adam, {"lambda": 0.1, "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3}),
    ("amsgrad", amsgrad, {"beta2": 0.6}),
    ("amsgrad", amsgrad, {"lambda": 0.1}),
    ("adamw", adamw, {}),
    ("adamw", adamw, {"lambda": 0.0}),
    ("partial_rowwise_adam", partial_rowwise_adam, {}),
    ("partial_rowwise_adam", partial_rowwise_adam, {"lambda": 0.1}),
    ("rectified_adam", rectified_adam, {}),
    ("rectified_adam", rectified_adam, {"lambda": 0.1, "beta2": 0.99, "sma_threshold": 4.5}),
    ("adabelief", adabelief, {}),
    ("adabelief", adabelief, {"lambda": 0.1, "epsilon": 1e-3}),
    ("lion", lion, {}),
    ("lion", lion, {"lambda": 0.0}),
    # At small rates z and x hold values in the hundreds whose differences make the weight: float32 has too few digits
    # left to be compared at the tolerance below, so the FTRL family runs at a rate of 0.1.
    ("ftrl", ftrl, {"alpha": 0.1}),
    ("ftrl", ftrl, {"alpha": 0.1, "lambda1": 1.0, "lambda2": 0.5, "beta": 0.3, "initial_accumulator": 0.1}),
    ("group_adam", group_adam, {}),
    ("group_adam", group_adam, {"lambda1": 0.3, "lambda2": 0.2, "lambda21": 0.3, "initial_accumulator": 0.1}),
    ("sparse_group_ftrl", sparse_group_ftrl, {"gamma": 0.1}),
    (
        "sparse_group_ftrl",
        sparse_group_ftrl,
        {
            "gamma": 0.1,
            "lambda1": 0.5,
            "lambda2": 0.2,
            "lambda21": 1.0,
            "l2_shrinkage": 0.1,
            "initial_accumulator": 0.0,
        },
    ),
]
CASE_IDS = [f"{name}-{'-'.join(map(str, params)) or 'defaults'}" for name, _, params in CASES]
EVERY_NAME = sorted({name for name, _, _ in CASES})


def fresh(rule: Any, capacity: int, dim: int, rng: np.random.Generator) -> F32:
    data = np.empty((capacity, dim + rule.state_width(dim)), np.float32)
    data[:, :dim] = rng.normal(size=(capacity, dim))
    data[:, dim:] = rule.initial_state(dim)
    return data


def batch(rule: Any, rows: I64, dim: int, rng: np.random.Generator) -> tuple[F32, F32]:
    """Gradients and rates for the rows."""
    grads = rng.normal(size=(len(rows), dim)).astype(np.float32)
    return grads, (rule.lr * rng.uniform(0.5, 2, len(rows))).astype(np.float32)


def test_every_rule_has_a_specification() -> None:
    assert optimizer_names() == EVERY_NAME


@pytest.mark.parametrize("dim", [1, 3, 8, 16, 33])
@pytest.mark.parametrize(("name", "spec", "params"), CASES, ids=CASE_IDS)
def test_rule_follows_its_formula_and_touches_no_other_row(name: str, spec: Spec, params: Params, dim: int) -> None:
    rule = make_optimizer(name, **params)
    rng = np.random.default_rng([dim, len(params)])
    capacity = 60
    data = fresh(rule, capacity, dim, rng)
    expected = data.astype(np.float64)
    edges = np.cumsum([width for _, width in rule.slots(dim)])[:-1]
    step = np.zeros(capacity, np.int64)
    for _ in range(8):
        rows = rng.permutation(capacity)[:40]
        step[rows] += rng.integers(1, 3, len(rows))
        grads, lr = batch(rule, rows, dim, rng)
        untouched = np.setdiff1d(np.arange(capacity), rows)
        before = data[untouched].tobytes()

        rule.apply(data, rows, grads, lr, step[rows])

        assert data[untouched].tobytes() == before
        for i, r in enumerate(rows):
            row = expected[r]
            slots = np.split(row[dim:], edges) if len(row) > dim else []
            row[:dim], new = spec(
                rule.params(), row[:dim].copy(), slots, grads[i].astype(np.float64), float(lr[i]), int(step[r])
            )
            row[dim:] = np.concatenate(new) if new else 0
    np.testing.assert_allclose(data, expected, rtol=3e-5, atol=1e-5)


@pytest.mark.parametrize("name", EVERY_NAME)
def test_nan_in_one_row_stays_in_it(name: str) -> None:
    rule, rng, dim = make_optimizer(name), np.random.default_rng(1), 8
    clean = fresh(rule, 50, dim, rng)
    poisoned = clean.copy()
    rows = rng.permutation(50)
    grads, lr = batch(rule, rows, dim, rng)
    step = np.ones(50, np.int64)
    rule.apply(clean, rows, grads, lr, step)
    grads[7, 3] = np.nan
    rule.apply(poisoned, rows, grads, lr, step)
    others = np.delete(np.arange(50), rows[7])
    np.testing.assert_array_equal(poisoned[others], clean[others])
    assert np.isnan(poisoned[rows[7], 3])


@pytest.mark.parametrize("name", EVERY_NAME)
def test_result_does_not_depend_on_order_or_batch(name: str) -> None:
    rule, rng, dim = make_optimizer(name), np.random.default_rng(2), 16
    whole = fresh(rule, 100, dim, rng)
    apart = whole.copy()
    rows = rng.permutation(100)
    grads, lr = batch(rule, rows, dim, rng)
    step = rng.integers(1, 20, 100)
    rule.apply(whole, rows, grads, lr, step)
    for part in np.array_split(rng.permutation(100), 7):
        rule.apply(apart, rows[part], grads[part], lr[part], step[part])
    assert whole.tobytes() == apart.tobytes()


@pytest.mark.parametrize("name", EVERY_NAME)
def test_empty_batch_changes_nothing(name: str) -> None:
    rule = make_optimizer(name)
    data = fresh(rule, 3, 4, np.random.default_rng(3))
    before = data.tobytes()
    nothing = np.empty(0, np.int64)
    rule.apply(data, nothing, np.empty((0, 4), np.float32), np.empty(0, np.float32), nothing)
    assert data.tobytes() == before


@pytest.mark.parametrize("name", EVERY_NAME)
def test_zero_gradient_and_zero_rate_give_finite_rows(name: str) -> None:
    rule, rng, dim = make_optimizer(name), np.random.default_rng(4), 5
    for lr, size in [(rule.lr, 0.0), (0.0, 1.0), (0.0, 0.0), (rule.lr, 1e-30)]:
        data = fresh(rule, 4, dim, rng)
        for t in range(1, 4):
            grads = (size * rng.normal(size=(4, dim))).astype(np.float32)
            rule.apply(data, np.arange(4), grads, np.full(4, lr, np.float32), np.full(4, t))
        assert np.isfinite(data).all(), (lr, size)


@pytest.mark.parametrize("name", EVERY_NAME)
def test_rule_describes_itself(name: str) -> None:
    rule = make_optimizer(name)
    assert make_optimizer(rule.name, **rule.params()) == rule
    assert hash(make_optimizer(rule.name, **rule.params())) == hash(rule)
    for dim in (1, 16):
        assert sum(width for _, width in rule.slots(dim)) == rule.state_width(dim)
        state = rule.initial_state(dim)
        assert state.dtype == np.float32
        assert state.shape == (rule.state_width(dim),)
    assert rule.lr > 0
    primary = next(iter(rule.params()))
    for key in (primary, "lr", "learning_rate"):
        assert make_optimizer(name, **{key: 0.25}).lr == 0.25


def test_lion_leaves_a_weight_without_gradient_alone() -> None:
    rule = make_optimizer("lion", wd=0)
    data = np.array([[0.5, 0.0]], np.float32)
    rule.apply(data, np.zeros(1, np.int64), np.zeros((1, 1), np.float32), np.ones(1, np.float32), np.ones(1, np.int64))
    assert data.tolist() == [[0.5, 0.0]]


def test_ftrl_stores_n_when_the_weight_becomes_zero() -> None:
    rule = make_optimizer("ftrl", lambda1=100.0)
    data = np.array([[0.5, 0.0, 0.0]], np.float32)
    one = np.ones(1, np.int64)
    rule.apply(data, one - 1, np.full((1, 1), 2.0, np.float32), np.full(1, 0.1, np.float32), one)
    assert data[0, 0] == 0
    assert data[0, 2] == 4


def test_ftrl_with_rate_zero_leaves_the_row_as_it_is() -> None:
    rule = make_optimizer("ftrl")
    data = np.array([[0.5, 0.1, 0.2]], np.float32)
    before = data.tobytes()
    one = np.ones(1, np.int64)
    rule.apply(data, one - 1, np.ones((1, 1), np.float32), np.zeros(1, np.float32), one)
    assert data.tobytes() == before


def test_group_adam_without_regularisation_is_adam_with_tensorflows_epsilon() -> None:
    rng, dim = np.random.default_rng(5), 8
    group, lr = make_optimizer("group_adam", epsilon=1e-4), np.full(1, 1e-2, np.float32)
    data = fresh(group, 1, dim, rng)
    w, m, v = data[0, :dim].astype(np.float64), np.zeros(dim), np.zeros(dim)
    for t in range(1, 30):
        grads = rng.normal(size=(1, dim)).astype(np.float32)
        group.apply(data, np.zeros(1, np.int64), grads, lr, np.full(1, t))
        g = grads[0].astype(np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w -= 1e-2 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-4)
    np.testing.assert_allclose(data[0, :dim], w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["group_adam", "sparse_group_ftrl"])
def test_group_lasso_zeroes_whole_rows_with_small_gradients_only(name: str) -> None:
    rule, rng, dim = make_optimizer(name, lambda21=2.0, lr=0.1), np.random.default_rng(6), 8
    data = fresh(rule, 2, dim, rng) * np.array([[0.01], [1.0]], np.float32)
    for t in range(1, 4):
        grads = np.array([[0.001], [10.0]], np.float32) * np.ones((2, dim), np.float32)
        rule.apply(data, np.arange(2), grads, np.full(2, 0.1, np.float32), np.full(2, t))
    assert not data[0, :dim].any()
    assert data[1, :dim].all()


def test_adagrad_decay_catches_up_on_decays_that_passed_while_the_row_was_idle() -> None:
    rule = make_optimizer("adagrad_decay", decay_steps=10, decay_rate=0.5, initial_accumulator=0.25)
    data = np.array([[0.0, 8.0, 0.0]], np.float32)
    rule.apply(data, np.zeros(1, np.int64), np.zeros((1, 1), np.float32), np.ones(1, np.float32), np.full(1, 31))
    assert data[0, 1:].tolist() == [1.0, 3.0]
    rule.apply(data, np.zeros(1, np.int64), np.zeros((1, 1), np.float32), np.ones(1, np.float32), np.full(1, 2001))
    assert data[0, 1:].tolist() == [0.25, 200.0]


def test_rmsprop_has_a_momentum_slot_only_with_momentum() -> None:
    assert make_optimizer("rmsprop").state_width(4) == 4
    assert make_optimizer("rmsprop", momentum=0.5).state_width(4) == 8


def test_bias_correction_is_right_at_large_steps() -> None:
    rule = make_optimizer("adam", beta2=0.999999)
    for t in (1, 2, 1000, 10**6, 10**12):
        data = np.zeros((1, 3), np.float32)
        rule.apply(data, np.zeros(1, np.int64), np.ones((1, 1), np.float32), np.ones(1, np.float32), np.full(1, t))
        m, v = 0.1 / (1 - 0.9**t), 1e-6 / -math.expm1(t * math.log1p(-1e-6))
        assert data[0, 0] == pytest.approx(-m / (math.sqrt(v) + 1e-8), rel=1e-4)
