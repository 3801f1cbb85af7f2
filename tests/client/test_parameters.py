"""The bag of named settings."""

import json

import numpy as np
import pytest

from rockbed.client.parameters import Parameters
from rockbed.errors import InvalidConfig


def test_inserted_values_come_back_in_order_and_as_json() -> None:
    params = Parameters()
    params.insert("name", "adagrad")
    params.insert("gamma", 0.05)
    params.insert("steps", 3)
    params.insert("nesterov", True)
    assert list(params) == ["name", "gamma", "steps", "nesterov"]
    assert params.as_dict() == {"name": "adagrad", "gamma": 0.05, "steps": 3, "nesterov": True}
    assert json.loads(params.to_json()) == params.as_dict()
    assert params.to_json() == '{"name": "adagrad", "gamma": 0.05, "steps": 3, "nesterov": true}'
    assert len(params) == 4
    assert "gamma" in params
    assert params["gamma"] == 0.05
    assert repr(params) == f"Parameters({params.to_json()})"


def test_second_insert_replaces_and_the_copy_is_a_copy() -> None:
    params = Parameters()
    params.insert("gamma", 1)
    params.insert("gamma", 2)
    params.as_dict()["gamma"] = 3
    assert params["gamma"] == 2


def test_equal_contents_are_equal() -> None:
    one, other = Parameters(), Parameters()
    one.insert("a", 1)
    assert one != other
    other.insert("a", 1)
    assert one == other
    assert one != {"a": 1}


@pytest.mark.parametrize(
    ("value", "plain"), [(np.float32(0.5), 0.5), (np.int64(3), 3), (np.float64(0.25), 0.25), (np.uint8(7), 7)]
)
def test_numpy_scalars_become_python_numbers(value: float, plain: float) -> None:
    params = Parameters()
    params.insert("x", value)
    assert type(params["x"]) is type(plain)
    assert params["x"] == plain


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, b"x", 1j, np.zeros(2), float("nan"), float("inf")])
def test_value_of_another_type_is_refused(value: object) -> None:
    params = Parameters()
    with pytest.raises(InvalidConfig, match="'x' must be"):
        params.insert("x", value)  # type: ignore[arg-type]
    assert len(params) == 0


@pytest.mark.parametrize("key", ["", 3, None])
def test_key_must_be_text(key: object) -> None:
    with pytest.raises(InvalidConfig, match="non-empty str"):
        Parameters().insert(key, 1)  # type: ignore[arg-type]
