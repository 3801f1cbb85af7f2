"""PyOptimizer: how it is built, and one row updated by hand."""

from typing import Any

import numpy as np
import pytest

from rockbed.client.optimizer import PyOptimizer
from rockbed.client.parameters import Parameters
from rockbed.errors import InvalidConfig, UnknownName, WrongDtype, WrongShape
from rockbed.optimizers import make_optimizer, make_schedule, optimizer_names


def bag(**values: Any) -> Parameters:
    params = Parameters()
    for key, value in values.items():
        params.insert(key, value)
    return params


def test_no_argument_is_sgd_without_schedule() -> None:
    optimizer = PyOptimizer()
    assert optimizer.rule == make_optimizer("sgd")
    assert optimizer.schedule is None


def test_bag_mapping_and_keywords_build_the_same() -> None:
    rule = make_optimizer("adagrad", gamma=0.05)
    assert PyOptimizer(bag(name="adagrad", gamma=0.05)).rule == rule
    assert PyOptimizer({"name": "adagrad", "lr": 0.05}).rule == rule
    assert PyOptimizer(name="adagrad", gamma=0.05).rule == rule
    assert PyOptimizer(bag(name="adagrad"), learning_rate=0.05).rule == rule


def test_schedule_is_the_second_argument() -> None:
    schedule = make_schedule("exponential_decay", decay_steps=10, decay_rate=0.5)
    described = {"name": "exponential_decay", "decay_steps": 10, "decay_rate": 0.5}
    for given in (bag(**described), described, schedule):
        assert PyOptimizer(bag(name="sgd"), given).schedule == schedule
        assert PyOptimizer(name="sgd", schedule=given).schedule == schedule


def test_space_is_the_weights_and_the_slots() -> None:
    spaces = {"sgd": 8, "adagrad": 16, "adam": 24, "amsgrad": 32, "rowwise_adagrad": 9}
    assert {name: PyOptimizer(name=name).get_space(8) for name in spaces} == spaces


@pytest.mark.parametrize("name", optimizer_names())
def test_call_updates_one_row_as_the_rule_does(name: str) -> None:
    optimizer, rng = PyOptimizer(name=name), np.random.default_rng(1)
    rule, dim = optimizer.rule, 5
    w = np.concatenate([rng.normal(size=dim).astype(np.float32), rule.initial_state(dim)])
    expected = w.reshape(1, -1).copy()
    for t in range(1, 5):
        gradients = rng.normal(size=dim).astype(np.float32)
        optimizer.call(w, gradients, t)
        rule.apply(
            expected,
            np.zeros(1, np.int64),
            gradients.reshape(1, -1),
            np.full(1, rule.lr, np.float32),
            np.full(1, t, np.int64),
        )
    np.testing.assert_array_equal(w, expected[0])


def test_step_zero_stands_for_the_first_update() -> None:
    optimizer = PyOptimizer(bag(name="adam"), {"name": "step", "decay_steps": 1})
    results = []
    for arguments in ((), (0,), (1,), (np.int64(1),)):
        w = np.zeros(6, np.float32)
        optimizer.call(w, np.ones(2, np.float32), *arguments)
        results.append(w.tolist())
    assert results == [results[0]] * 4
    assert results[0][0] == pytest.approx(-1e-3, rel=1e-5)


def test_schedule_counts_the_updates_before_this_one() -> None:
    optimizer = PyOptimizer({"name": "sgd", "gamma": 1.0}, {"name": "step", "decay_steps": 2, "decay_rate": 0.5})
    moves = []
    for step in (1, 2, 3, 4, 5):
        w = np.zeros(1, np.float32)
        optimizer.call(w, np.ones(1, np.float32), step)
        moves.append(float(-w[0]))
    assert moves == [1.0, 1.0, 0.5, 0.5, 0.25]


READ_ONLY = np.zeros(2, np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("w", "gradients", "error", "words"),
    [
        (np.zeros(2), np.zeros(2, np.float32), WrongDtype, "w must be a float32 array, not float64"),
        ([0.0, 0.0], np.zeros(2, np.float32), WrongDtype, "w must be a float32 array, not list"),
        (np.zeros(2, np.float32), np.zeros(2), WrongDtype, "gradients must be a float32 array"),
        (np.zeros(2, ">f4"), np.zeros(2, np.float32), WrongDtype, "w must be a float32 array"),
        (np.zeros(3, np.float32), np.zeros(2, np.float32), WrongShape, r"w must be float32\[2\]"),
        (np.zeros((1, 2), np.float32), np.zeros(2, np.float32), WrongShape, "one axis"),
        (np.zeros(4, np.float32)[::2], np.zeros(2, np.float32), WrongShape, "contiguous"),
        (np.zeros(2, np.float32), np.zeros(4, np.float32)[::2], WrongShape, "gradients must be contiguous"),
        (READ_ONLY, np.zeros(2, np.float32), WrongShape, "read-only"),
        (np.zeros(0, np.float32), np.zeros(0, np.float32), WrongShape, "at least one"),
    ],
)
def test_wrong_arrays_are_refused_and_left_alone(w: Any, gradients: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        PyOptimizer().call(w, gradients)
    assert not np.any(w)


def test_row_without_its_slots_is_refused() -> None:
    with pytest.raises(WrongShape, match=r"w must be float32\[6\].*2 weights and the slots of adam"):
        PyOptimizer(name="adam").call(np.zeros(2, np.float32), np.zeros(2, np.float32))


def test_gradients_that_alias_the_weights_are_refused() -> None:
    w = np.ones(4, np.float32)
    with pytest.raises(WrongShape, match="share memory"):
        PyOptimizer(name="adagrad").call(w, w[:2])


def test_read_only_gradients_are_fine() -> None:
    w = np.zeros(2, np.float32)
    PyOptimizer(name="sgd", gamma=1.0).call(w, np.frombuffer(np.ones(2, np.float32).tobytes(), np.float32))
    assert w.tolist() == [-1, -1]


@pytest.mark.parametrize("step", [-1, 1.5, True, "1"])
def test_bad_step_is_refused(step: Any) -> None:
    with pytest.raises(InvalidConfig, match="step must be an int of at least 0"):
        PyOptimizer().call(np.zeros(1, np.float32), np.zeros(1, np.float32), step)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "words"),
    [
        (({"gamma": 0.1},), {}, InvalidConfig, 'hold no "name"'),
        ((), {"gamma": 0.1}, InvalidConfig, 'hold no "name"'),
        ((bag(name="sgd"),), {"name": "adam"}, InvalidConfig, "given twice.*name"),
        (("sgd",), {}, InvalidConfig, "expected Parameters or a mapping"),
        ((bag(name="sgd"), {"decay_steps": 3}), {}, InvalidConfig, 'schedule.*hold no "name"'),
        ((bag(name="sgd"), "cosine"), {}, InvalidConfig, "schedule: expected Parameters"),
        ((bag(name="sgd"), {"name": "cosin_decay"}), {}, UnknownName, "Did you mean 'cosine_decay'"),
        ((), {"name": "sgdd"}, UnknownName, "Did you mean 'sgd'"),
        ((), {"name": "sgd", "gamma": "fast"}, InvalidConfig, "gamma must be of type float"),
    ],
)
def test_bad_description_is_refused(arguments: Any, keywords: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        PyOptimizer(*arguments, **keywords)


def test_repr_names_the_rule() -> None:
    assert "Adagrad(lr=0.05" in repr(PyOptimizer(name="adagrad", gamma=0.05))
