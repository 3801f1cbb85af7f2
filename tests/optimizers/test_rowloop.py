"""Building blocks of the update kernels."""

from typing import Any

import numpy as np
import pytest

from rockbed.kernels import kernel
from rockbed.optimizers.rowloop import sum_of_squares
from rockbed.types import F32


@kernel
def _squares(grads: F32, i: int, data: F32, row: int, decay: np.float32) -> Any:
    return sum_of_squares(grads, i, data, row, decay)


def _specified(values: F32) -> Any:
    """Eight sums, brought together by halves, and the rest in order; every step is rounded to float32."""
    squares = values * values
    whole = squares.size // 8 * 8
    lanes = np.zeros(8, np.float32)
    for start in range(0, whole, 8):
        lanes += squares[start : start + 8]
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    total = lanes[0]
    for square in squares[whole:]:
        total = np.float32(total + square)
    return total


@pytest.mark.parametrize("dim", [1, 3, 7, 8, 9, 16, 23, 64, 129])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_squares_are_summed_in_one_order_on_every_machine(dim: int, decay: float) -> None:
    rng = np.random.default_rng(dim)
    grads = rng.normal(size=(3, dim)).astype(np.float32)
    data = rng.normal(size=(5, dim + 2)).astype(np.float32)
    found = _squares(grads, 2, data, 4, np.float32(decay))
    values = grads[2] + np.float32(decay) * data[4, :dim]
    assert found == _specified(values)
    np.testing.assert_allclose(found, (values.astype(np.float64) ** 2).sum(), rtol=1e-6)


@pytest.mark.parametrize(("value", "total"), [(np.nan, np.nan), (np.inf, np.inf), (1e30, np.inf)])
def test_what_is_not_finite_stays_so(value: float, total: float) -> None:
    grads = np.ones((1, 11), np.float32)
    grads[0, 9] = value
    np.testing.assert_equal(_squares(grads, 0, np.ones((1, 12), np.float32), 0, np.float32(0)), np.float32(total))
