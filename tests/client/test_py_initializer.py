"""PyInitializer: how it is built, and one row filled by hand."""

from typing import Any

import numpy as np
import pytest

from rockbed.client.initializer import PyInitializer
from rockbed.client.parameters import Parameters
from rockbed.errors import InvalidConfig, UnknownName, WrongDtype, WrongShape
from rockbed.optimizers import make_initializer
from rockbed.types import F32


def filled(initializer: PyInitializer, dim: int = 6, **where: int) -> F32:
    w = np.full(dim, 9, np.float32)
    initializer.call(w, **where)
    return w


def test_no_argument_is_zeros() -> None:
    assert PyInitializer().rule == make_initializer("zeros")
    assert not filled(PyInitializer()).any()


def test_bag_and_keywords_build_the_same() -> None:
    params = Parameters()
    params.insert("name", "random_uniform")
    params.insert("min", -0.01)
    params.insert("max", 0.01)
    assert PyInitializer(params).rule == PyInitializer(name="random_uniform", min=-0.01, max=0.01).rule
    assert "RandomUniform(low=-0.01" in repr(PyInitializer(params))


def test_call_fills_the_row_of_seed_group_and_key() -> None:
    initializer = PyInitializer(name="random_normal")
    expected = np.empty((1, 6), np.float32)
    initializer.rule.fill(expected, np.zeros(1, np.int64), np.array([-5]), 6, 3, 2)
    np.testing.assert_array_equal(filled(initializer, seed=3, group=2, key=-5), expected[0])
    np.testing.assert_array_equal(filled(initializer), filled(initializer, seed=0, group=0, key=0))
    np.testing.assert_array_equal(filled(initializer, key=2**64 - 1), filled(initializer, key=-1))
    rows = [filled(initializer, **where).tobytes() for where in ({}, {"seed": 1}, {"group": 1}, {"key": 1})]
    assert len(set(rows)) == 4


def test_empty_row_is_fine() -> None:
    PyInitializer(name="random_normal").call(np.empty(0, np.float32))


READ_ONLY = np.zeros(2, np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("w", "error"),
    [
        (np.zeros(2), WrongDtype),
        ([0.0], WrongDtype),
        (np.zeros((2, 2), np.float32), WrongShape),
        (np.zeros(4, np.float32)[::2], WrongShape),
        (READ_ONLY, WrongShape),
    ],
)
def test_wrong_arrays_are_refused_and_left_alone(w: Any, error: type) -> None:
    with pytest.raises(error):
        PyInitializer(name="ones").call(w)
    assert not np.any(w)


@pytest.mark.parametrize(
    "where", [{"group": -1}, {"group": 65_536}, {"key": 2**64}, {"key": -(2**63) - 1}, {"seed": 0.5}, {"key": "1"}]
)
def test_seed_group_and_key_out_of_range_are_refused(where: Any) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(where))):
        PyInitializer().call(np.zeros(1, np.float32), **where)


def test_unknown_name_is_an_error() -> None:
    with pytest.raises(UnknownName, match="Known: constant"):
        PyInitializer(name="gaussian")
