"""`combine` and its gradient against loops in float64."""

from itertools import product

import numpy as np
import pytest

from rockbed.client.combining import combine, combine_gradients
from rockbed.errors import InvalidConfig, WrongShape
from rockbed.types import F32, F64, I64

OFFSETS = np.array([0, 3, 3, 4, 4, 9, 11, 11])
CASES = list(product(["sum", "mean", "sqrtn"], [False, True], [None, 0.9]))


def batch(weighted: bool, seed: int = 3) -> tuple[F32, F32 | None]:
    """Eleven rows of dim 5, of norms on both sides of 0.9, and weights of both signs."""
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(11, 5)) * rng.uniform(0.05, 1.0, (11, 1))).astype(np.float32)
    return rows, rng.uniform(-0.5, 2.0, 11).astype(np.float32) if weighted else None


def reference(rows: F64, offsets: I64, weights: F32 | None, combiner: str, max_norm: float | None) -> F64:
    """The rules as TensorFlow states them, a bag at a time."""
    out = np.zeros((offsets.size - 1, rows.shape[1]))
    for b in range(offsets.size - 1):
        total = 0.0
        for i in range(offsets[b], offsets[b + 1]):
            w = 1.0 if weights is None else float(weights[i])
            norm = np.sqrt((rows[i] ** 2).sum())
            row = rows[i] if max_norm is None or norm <= max_norm else rows[i] * max_norm / norm
            out[b] += w * row
            total += w * w if combiner == "sqrtn" else w
        divisor = {"sum": 1.0, "mean": total, "sqrtn": abs(total) ** 0.5}[combiner]
        out[b] = out[b] / divisor if divisor else 0.0
    return out


@pytest.mark.parametrize(("combiner", "weighted", "max_norm"), CASES)
def test_bags_are_combined_as_in_float64(combiner: str, weighted: bool, max_norm: float | None) -> None:
    rows, weights = batch(weighted)

    out = combine(rows, OFFSETS, weights, combiner, max_norm)

    assert out.dtype == np.float32
    assert not out[[1, 3, 6]].any()  # the bags without rows
    wanted = reference(rows.astype(np.float64), OFFSETS, weights, combiner, max_norm)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)  # sums of at most five float32


@pytest.mark.parametrize(("combiner", "weighted", "max_norm"), CASES)
def test_a_gradient_is_the_slope_of_what_was_combined(combiner: str, weighted: bool, max_norm: float | None) -> None:
    rows, weights = batch(weighted)
    grads = np.random.default_rng(4).normal(size=(7, 5)).astype(np.float32)

    out = combine_gradients(rows, OFFSETS, weights, combiner, max_norm, grads)

    assert out.dtype == np.float32
    exact, step = rows.astype(np.float64), 1e-6
    for i, j in np.ndindex(rows.shape):
        moved = [exact.copy(), exact.copy()]
        moved[0][i, j] += step
        moved[1][i, j] -= step
        high, low = (reference(each, OFFSETS, weights, combiner, max_norm) for each in moved)
        slope = float(((high - low) * grads).sum() / (2 * step))
        assert out[i, j] == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
def test_without_rows_there_are_zeros_and_no_gradients(combiner: str) -> None:
    rows, offsets = np.empty((0, 4), np.float32), np.zeros(4, np.int64)

    np.testing.assert_array_equal(combine(rows, offsets, None, combiner, 1.0), np.zeros((3, 4), np.float32))
    assert combine_gradients(rows, offsets, None, combiner, 1.0, np.ones((3, 4), np.float32)).shape == (0, 4)
    assert combine(rows, np.zeros(1, np.int64), None, combiner, None).shape == (0, 4)


def test_weights_that_add_up_to_nothing_give_zeros_and_send_none_back() -> None:
    rows, weights = np.ones((2, 3), np.float32), np.array([1, -1], np.float32)
    offsets = np.array([0, 2])

    assert not combine(rows, offsets, weights, "mean", None).any()
    assert not combine_gradients(rows, offsets, weights, "mean", None, np.ones((1, 3), np.float32)).any()


def test_large_weights_of_a_mean_do_not_overflow() -> None:
    rows, weights = np.full((2, 2), 8, np.float32), np.full(2, 3e38, np.float32)

    np.testing.assert_array_equal(combine(rows, np.array([0, 2]), weights, "mean", None), np.full((1, 2), 8))


@pytest.mark.parametrize(
    ("combiner", "max_norm", "error"),
    [("avg", None, "combiner is 'avg'"), ("sum", 0.0, "max_norm"), ("sum", float("nan"), "max_norm")],
)
def test_what_cannot_be_combined_is_said(combiner: str, max_norm: float | None, error: str) -> None:
    with pytest.raises(InvalidConfig, match=error):
        combine(np.ones((1, 2), np.float32), np.array([0, 1]), None, combiner, max_norm)


def test_arrays_that_do_not_fit_together_are_said() -> None:
    rows = np.ones((3, 2), np.float32)

    with pytest.raises(WrongShape, match="from 0 to 3"):
        combine(rows, np.array([0, 2]), None, "sum", None)
    with pytest.raises(WrongShape, match="2 weights for 3 keys"):
        combine(rows, np.array([0, 3]), np.ones(2, np.float32), "sum", None)
    with pytest.raises(WrongShape, match=r"gradients of 1 bags are \[1, 2\], not \[3, 2\]"):
        combine_gradients(rows, np.array([0, 3]), None, "sum", None, np.ones((3, 2), np.float32))
