"""Clipped gradients and bounded weights, against a model: one row at a time, one step at a time, in float64."""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import PyEmbedding, PyOptimizer, PyStorage
from rockbed.types import F32, F64, I64
from tests.api.helpers import OpenStorage, as_after_kill, assert_sound, embedding, engine_of, keys_of, sgd

DIM = 3
KEYS = np.arange(6)
RATE = 0.3

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adagrad": {"gamma": RATE, "initial_accumulator": 0.1},
    "adam": {"gamma": RATE},  # its bias correction asks which step it is
}
LIMITS: dict[str, dict[str, Any]] = {
    "value": {"clip_value": 0.8},
    "norm": {"clip_norm": 0.7},
    "both": {"clip_value": 0.8, "clip_norm": 0.7},
    "weights": {"weight_min": -0.4, "weight_max": 0.25},
    "all": {"clip_value": 0.8, "clip_norm": 0.7, "weight_min": -0.4, "weight_max": 0.25},
}


STATE = ("weights", "first", "second", "steps")


@dataclass
class Model:
    """Rows that begin as zeros. `wrong` names one thing to do otherwise, to see that the numbers would tell."""

    optimizer: str
    duplicates: str
    step: str
    clip_value: float = np.inf
    clip_norm: float = np.inf
    weight_min: float = -np.inf
    weight_max: float = np.inf
    wrong: str = ""
    weights: F64 = field(default_factory=lambda: np.zeros((KEYS.size, DIM)))
    first: F64 = field(default_factory=lambda: np.zeros((KEYS.size, DIM)))
    second: F64 = field(default_factory=lambda: np.zeros((KEYS.size, DIM)))
    steps: list[int] = field(default_factory=lambda: [0] * KEYS.size)

    def push(self, keys: I64, gradients: F32, global_step: int) -> None:
        given = gradients.astype(np.float64)
        if self.wrong == "each before the sum":
            given = np.array([self._clipped(g) for g in given])
        if self.duplicates == "sequential":
            for key, gradient in zip(keys.tolist(), given, strict=True):
                self._update(key, gradient, global_step)
        else:
            for key in dict.fromkeys(keys.tolist()):
                self._update(key, given[keys == key].sum(axis=0), global_step)
        if self.wrong == "bounds at the end":
            self.weights = np.clip(self.weights, self.weight_min, self.weight_max)

    def _clipped(self, g: F64) -> F64:
        rules = [self._clip_value, self._clip_norm]
        for rule in reversed(rules) if self.wrong == "norm first" else rules:
            g = rule(g)
        return g

    def _clip_value(self, g: F64) -> F64:
        clipped: F64 = np.clip(g, -self.clip_value, self.clip_value)
        return clipped

    def _clip_norm(self, g: F64) -> F64:
        norm = np.sqrt((g * g).sum())
        scaled: F64 = g * (self.clip_norm / norm) if norm > self.clip_norm else g
        return scaled

    def _update(self, key: int, g: F64, global_step: int) -> None:
        self.steps[key] += 1
        t = global_step if self.step == "global" else self.steps[key]
        if self.wrong != "each before the sum":
            g = self._clipped(g)
        if self.optimizer == "sgd":
            change = g
        elif self.optimizer == "adagrad":
            self.second[key] += g * g
            change = g / (np.sqrt(0.1 + self.second[key]) + 1e-10)
        else:
            self.first[key] = 0.9 * self.first[key] + 0.1 * g
            self.second[key] = 0.999 * self.second[key] + 0.001 * g * g
            change = self.first[key] / (1 - 0.9**t) / (np.sqrt(self.second[key] / (1 - 0.999**t)) + 1e-8)
        rate = RATE * 0.8 ** ((t - 1) / 4)
        self.weights[key] -= rate * change
        if self.wrong != "bounds at the end":
            self.weights[key] = np.clip(self.weights[key], self.weight_min, self.weight_max)
        if self.wrong == "bounds on slots":
            self.first[key], self.second[key] = (
                np.clip(slot[key], self.weight_min, self.weight_max) for slot in (self.first, self.second)
            )


def _pushes() -> list[tuple[I64, F32, int]]:
    """Four pushes in which keys occur up to three times; about half of the gradients are beyond a limit."""
    random = np.random.default_rng(20)
    pushes = []
    for global_step in (2, 3, 7, 8):
        keys = random.permutation(np.repeat(KEYS, [1, 3, 2, 0 if global_step == 3 else 1, 2, 3]))
        gradients = random.normal(0, 0.7, (keys.size, DIM)).astype(np.float32)
        gradients[::4, 0] *= 5
        pushes.append((keys, gradients, global_step))
    return pushes


def _embedding(storage: PyStorage, model: Model, limits: dict[str, Any]) -> PyEmbedding:
    schedule = {"name": "exponential_decay", "decay_steps": 4, "decay_rate": 0.8}
    optimizer = PyOptimizer({"name": model.optimizer, **OPTIMIZERS[model.optimizer]}, schedule)
    return embedding(storage, DIM, optimizer=optimizer, duplicates=model.duplicates, step=model.step, **limits)


def _trained(model: Model) -> F64:
    for push in _pushes():
        model.push(*push)
    return model.weights


def _train(storage: PyStorage, model: Model, limits: dict[str, Any]) -> PyEmbedding:
    """The same pushes to a store and to the model, which must have the same rows after each."""
    rows = _embedding(storage, model, limits)
    for keys, gradients, global_step in _pushes():
        model.push(keys, gradients, global_step)
        if model.step == "global":
            rows.global_step = global_step
        sent = gradients.copy()
        rows.apply_gradients(keys, gradients)
        np.testing.assert_array_equal(gradients, sent)
        # float32 against float64: some units in the last place a step, and Adam divides small numbers
        np.testing.assert_allclose(rows.lookup(KEYS, train=False), model.weights, rtol=2e-5, atol=2e-6)
    return rows


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("step", ["row", "global"])
@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
def test_every_step_is_clipped_by_value_then_by_norm_and_its_weights_bounded(
    storage: PyStorage, duplicates: str, step: str, optimizer: str, limits: dict[str, Any]
) -> None:
    _train(storage, Model(optimizer, duplicates, step, **limits), limits)


@pytest.mark.parametrize("step", ["row", "global"])
@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
def test_a_replay_clips_and_bounds_to_the_same_bits(
    open_storage: OpenStorage, tmp_path: Path, duplicates: str, step: str
) -> None:
    storage, model, limits = open_storage(), Model("adam", duplicates, step, **LIMITS["all"]), LIMITS["all"]
    rows = _train(storage, model, limits)
    as_after_kill(storage, tmp_path / "replayed")
    replayed = open_storage("replayed")
    got = _embedding(replayed, model, limits).lookup(KEYS, train=False)
    np.testing.assert_array_equal(got, rows.lookup(KEYS, train=False))
    assert_sound(replayed)


@pytest.mark.parametrize(
    ("wrong", "base", "changed"),
    [
        ("", Model("sgd", "sum", "row"), {"clip_value": 0.8}),
        ("", Model("sgd", "sum", "row"), {"clip_norm": 0.7}),
        ("", Model("sgd", "sum", "row"), {"weight_min": -0.4}),
        ("", Model("sgd", "sum", "row"), {"weight_max": 0.25}),
        ("", Model("adam", "sequential", "row", clip_norm=0.7), {"step": "global"}),
        ("", Model("sgd", "sequential", "global", clip_norm=0.7), {"duplicates": "sum"}),
        ("norm first", Model("sgd", "sequential", "global", clip_value=0.8, clip_norm=0.7), {}),
        ("norm first", Model("adagrad", "sum", "row", clip_value=0.8, clip_norm=0.7), {}),
        ("each before the sum", Model("sgd", "sum", "row", clip_value=0.8), {}),
        ("each before the sum", Model("sgd", "sum", "global", clip_norm=0.7), {}),
        ("bounds at the end", Model("sgd", "sequential", "row", weight_min=-0.4, weight_max=0.25), {}),
        ("bounds on slots", Model("adagrad", "sequential", "row", weight_min=-0.4, weight_max=0.25), {}),
        ("bounds on slots", Model("adam", "sum", "global", weight_min=-0.4, weight_max=0.25), {}),
    ],
)
def test_the_pushes_above_tell_each_rule_from_its_neighbours(wrong: str, base: Model, changed: dict[str, Any]) -> None:
    nothing: dict[str, Any] = {name: value for name, value in vars(Model("", "", "")).items() if name in STATE}
    other = replace(base, **copy.deepcopy(nothing), **changed, wrong=wrong)
    right = replace(base, **nothing)  # cases are shared between tests, their rows are not
    assert np.abs(_trained(right) - _trained(other)).max() > 0.02


def test_each_of_several_steps_in_one_push_is_clipped_by_itself(open_storage: OpenStorage) -> None:
    rows = embedding(open_storage(), 2, optimizer=sgd(1.0), duplicates="sequential", clip_value=3.0, clip_norm=1.0)
    gradients = np.array([[3000, 4], [0.1, 0.2], [-3000, -4], [0, 9]], np.float32)
    rows.apply_gradients(keys_of(1, 1, 2, 1), gradients)
    # [3, 3] -> [1, 1] / sqrt(2); the second is within the limits; [0, 3] -> [0, 1]
    half = np.sqrt(0.5)
    expected = [[-half - 0.1, -half - 0.2 - 1], [half, half]]
    np.testing.assert_allclose(rows.lookup(keys_of(1, 2)), expected, rtol=1e-6)


def test_weights_are_bounded_after_each_of_several_steps_in_one_push(open_storage: OpenStorage) -> None:
    rows = embedding(open_storage(), 1, optimizer=sgd(1.0), duplicates="sequential", weight_min=-1.0, weight_max=0.5)
    rows.apply_gradients(keys_of(1, 1, 2, 2), np.array([[9], [-0.25], [-9], [0.25]], np.float32))
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2)), [[-0.75], [0.25]])


def test_a_limit_that_changes_at_an_opening_applies_from_then_on_also_when_the_journal_is_replayed(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    storage = open_storage("first")
    gradient = np.array([[8]], np.float32)
    options: list[dict[str, Any]] = [{"clip_value": 1.0}, {"clip_norm": 2.0}, {}, {"weight_min": -5.0}]
    weights = [-1.0, -3.0, -11.0, -5.0]
    for i, (limits, weight) in enumerate(zip(options, weights, strict=True)):
        rows = embedding(storage, 1, optimizer=sgd(1.0), **limits)
        rows.apply_gradients(keys_of(1), gradient)
        assert rows.lookup(keys_of(1)) == weight
        as_after_kill(storage, tmp_path / f"after-{i}")
        storage = open_storage(f"after-{i}")
        assert engine_of(storage).flushed_lsn == 0  # so that each opening replays everything from the first push on
    assert embedding(storage, 1, optimizer=sgd(1.0), weight_min=-5.0).lookup(keys_of(1)) == -5.0
