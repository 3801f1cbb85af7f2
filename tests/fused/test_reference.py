"""The specification's gradient against finite differences of its forward pass, and both against bags done by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import Feature, PyStorage, Ragged
from rockbed.types import F64
from tests.api.helpers import QUIET, embedding
from tests.fused import reference

LISTS = [[1, -2, 2, 1], [], [-3, 9], [2, 3], [9]]  # 9 is the padding key
WEIGHTS = [[0.5, 3.0, -1.0, 2.0], [], [1.0, 1.0], [0.0, 1.5], [2.0]]
ROWS = {0: [3.0, 4.0], 1: [0.1, -0.2], 2: [1.0, 2.0], 3: [-2.0, 0.5]}


def row_of(key: int) -> F64:
    return np.array(ROWS[key])


@pytest.mark.parametrize(
    ("combiner", "weighted", "max_norm", "default", "wanted"),
    [
        ("sum", False, None, None, [[1.2, 1.6], [0, 0], [0, 0], [-1, 2.5], [0, 0]]),
        ("sum", True, None, None, [[0.25 - 1, -0.5 - 2], [0, 0], [0, 0], [-3, 0.75], [0, 0]]),
        ("mean", True, None, 0, [[0.1, -0.2], [3, 4], [3, 4], [-2, 0.5], [3, 4]]),
        ("mean", True, 1.0, 0, [[0.1, -0.2], [0.6, 0.8], [0.6, 0.8], np.array([-4, 1]) / np.sqrt(17), [0.6, 0.8]]),
        ("sqrtn", True, None, None, [np.array([0.25, -0.5]) / np.sqrt(4.25), [0, 0], [0, 0], [-2, 0.5], [0, 0]]),
        (None, False, None, None, [ROWS[1], [0, 0], ROWS[2], ROWS[1], [0, 0], [0, 0], ROWS[2], ROWS[3], [0, 0]]),
    ],
)
def test_the_specification_pools_as_one_does_by_hand_and_its_gradient_is_the_slope(
    tmp_path: Path, combiner: str | None, weighted: bool, max_norm: float | None, default: int | None, wanted: Any
) -> None:
    ragged = Ragged.from_lists(LISTS, WEIGHTS if weighted else None)
    with PyStorage(tmp_path / "store", **QUIET) as storage:
        rows = embedding(storage, 2, padding_key=9)
        feature = Feature("f", rows, combiner, max_norm=max_norm, default_key=default)
    found = reference.forward(feature, ragged, row_of)
    np.testing.assert_allclose(found, np.array(wanted), atol=1e-12)

    gradient = np.random.default_rng(1).normal(size=found.shape)
    sums = {key: np.zeros(2) for key in ROWS}
    for key, each in reference.backward(feature, ragged, row_of, gradient):
        sums[key] += each
    for key in ROWS:
        for i in range(2):
            values = []
            for nudge in (1e-6, -1e-6):
                nudged = {k: np.array(v) for k, v in ROWS.items()}
                nudged[key][i] += nudge
                values.append(float((gradient * reference.forward(feature, ragged, nudged.__getitem__)).sum()))
            assert sums[key][i] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-8)
