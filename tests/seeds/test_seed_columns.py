"""The examples of columns print what TensorFlow's FTRL gives, computed here in float64."""

import math
from typing import Any

import numpy as np
import pytest

from examples.seeds import adaptive, fused_columns
from rockbed import PyStorage, SparseTensor, WrongShape
from rockbed.client.hashing import hash_buckets

LR, L1, L2, FIRST = 0.1, 2.0, 1e-5, 0.1
TOLERANCE = 3e-6  # of weights near 1, after a few steps in float32 whose formulas round five times, and six digits


def weights_by_hand(steps: int) -> list[float]:
    """What a weight is before each step with the gradient 2, in float64: TensorFlow's FtrlOptimizer, from ones.

    From its documentation, with learning_rate_power -0.5: accum' = accum + g^2, linear += g - (sqrt(accum') -
    sqrt(accum)) / lr * w; w is 0 where |linear| <= l1, else (sign(linear) l1 - linear) / (sqrt(accum') / lr + 2 l2).
    """
    w, accum, linear, g = 1.0, FIRST, 0.0, 2.0
    found = []
    for _ in range(steps):
        found.append(w)
        linear += g - (math.sqrt(accum + g * g) - math.sqrt(accum)) / LR * w
        accum += g * g
        w = (math.copysign(L1, linear) - linear) / (math.sqrt(accum) / LR + 2 * L2) if abs(linear) > L1 else 0.0
    return found


def test_by_hand_agrees_with_a_step_on_paper() -> None:
    # accum' = 4.1, linear = 2 - (2.0248457 - 0.3162278) / 0.1 = -15.0861790, w = 13.0861790 / (20.248457 + 0.00002)
    assert weights_by_hand(2)[1] == pytest.approx(0.6462797, abs=1e-7)


@pytest.mark.parametrize(("example", "samples"), [(adaptive, 10), (fused_columns, 5)])
def test_every_figure_is_that_of_the_recurrence(
    storage: PyStorage, capsys: pytest.CaptureFixture[str], example: Any, samples: int
) -> None:
    example.run(storage)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == example.STEPS * (samples + 1)
    for weight, start in zip(weights_by_hand(example.STEPS), range(0, len(lines), samples + 1), strict=True):
        rows = np.array([line.split() for line in lines[start : start + samples]], np.float64)
        np.testing.assert_allclose(rows, np.full((samples, 3), weight), rtol=0, atol=TOLERANCE)
        word, loss = lines[start + samples].split()
        assert word == "loss"
        assert float(loss) == pytest.approx(2 * samples * 3 * weight, abs=2 * samples * 3 * TOLERANCE)


def test_half_of_the_adaptive_ids_have_rows_of_their_own(storage: PyStorage) -> None:
    # no two of the ids share a bucket, so that each row is trained by the gradient 2 alone
    assert np.unique(hash_buckets(np.arange(10), 100)).size == 10
    adaptive.run(storage)
    names, groups = storage.names(), storage.stats()["groups"]
    assert [groups[names[f"col_emb_embedding/{part}"]]["rows"] for part in ("static", "exact")] == [5, 5]


def test_the_shape_on_the_page_is_refused() -> None:
    with pytest.raises(WrongShape, match=r"indices\[4\] = \[4, 4\] lies outside of dense_shape \[5, 4\]"):
        SparseTensor(fused_columns.IDS.indices, fused_columns.IDS.values, [5, 4])
