"""Names, parameters and values that make_optimizer takes and refuses."""

from typing import Any

import numpy as np
import pytest

from rockbed.errors import DuplicateName, InvalidConfig, UnknownName
from rockbed.optimizers import make_optimizer
from rockbed.optimizers.base import registry
from rockbed.optimizers.sgd import Sgd

Params = dict[str, Any]


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("sgd", {"gamma": -1}, ["gamma=-1", "at least 0"]),
        ("sgd", {"gamma": float("nan")}, ["gamma=nan", "finite"]),
        ("sgd", {"gamma": float("inf")}, ["finite"]),
        ("sgd", {"gamma": 1e39}, ["within float32"]),
        ("sgd", {"gamma": "0.1"}, ["gamma must be of type float", "'0.1'"]),
        ("sgd", {"gamma": True}, ["gamma must be of type float", "True"]),
        ("sgd", {"gamma": None}, ["gamma must be of type float", "None"]),
        ("sgd", {"lambda": -0.1}, ["lambda=-0.1"]),
        ("sgd", {"gamma": -1, "lambda": -2}, ["gamma=-1", "lambda=-2"]),
        ("sgd", {"gamma": 1, "lr": 1}, ["'gamma' and 'lr'", "same parameter"]),
        ("momentum", {"momentum": 1.0}, ["momentum=1.0", "[0, 1)"]),
        ("momentum", {"nesterov": 1}, ["nesterov must be of type bool"]),
        ("nesterov", {"nesterov": False}, ["same parameter"]),
        ("adagrad", {"epsilon": 0}, ["epsilon=0"]),
        ("adagrad_decay", {"decay_steps": 0}, ["decay_steps=0"]),
        ("adagrad_decay", {"decay_steps": 1.5}, ["decay_steps must be of type int"]),
        ("adagrad_decay", {"initial_accumulator": 0}, ["initial_accumulator=0"]),
        ("adam", {"beta1": 1}, ["beta1=1"]),
        ("adam", {"beta_2": 1.5}, ["beta2=1.5"]),
        ("adam", {"beta2": -0.1}, ["beta2=-0.1"]),
        ("rectified_adam", {"sma_threshold": 4}, ["sma_threshold=4"]),
        ("ftrl", {"l1": -1}, ["lambda1=-1"]),
    ],
)
def test_bad_value_is_refused_with_every_problem_named(name: str, params: Params, words: list[str]) -> None:
    with pytest.raises(InvalidConfig) as raised:
        make_optimizer(name, **params)
    assert str(raised.value).startswith(f"optimizer {name}: ")
    for word in words:
        assert word in str(raised.value)


def test_unknown_name_and_parameter_list_the_known_ones() -> None:
    with pytest.raises(
        UnknownName, match=r"'adagrd' is unknown. Did you mean 'adagrad'.*Known: adabelief, .*sgd"
    ) as no:
        make_optimizer("adagrd")
    assert no.value.code == "unknown_name"
    with pytest.raises(
        UnknownName, match=r"'gama' is unknown. Did you mean 'gamma'\? Known: gamma or lr or learning_rate, lambda or "
    ):
        make_optimizer("adagrad", gama=0.1)
    with pytest.raises(UnknownName, match="optimizer sgd: parameter 'beta1' is unknown"):
        make_optimizer("sgd", beta1=0.9)
    with pytest.raises(InvalidConfig, match="must be a str"):
        make_optimizer(3)  # type: ignore[arg-type]


def test_numbers_become_python_floats() -> None:
    given: Params = {"gamma": np.float32(0.5), "epsilon": 1}
    rule = make_optimizer("adagrad", **given)
    assert [type(value) for value in rule.params().values()] == [float] * 5
    assert rule.lr == 0.5


def test_a_name_is_registered_once() -> None:
    with pytest.raises(DuplicateName):
        registry.register(Sgd)
    with pytest.raises(DuplicateName):
        registry.alias("nesterov", of="sgd")
