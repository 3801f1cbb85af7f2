"""The multi-hash example prints what TensorFlow's Adagrad gives, computed here by hand in float64."""

import re

import numpy as np
import pytest

from examples.seeds import multihash
from rockbed import PyStorage


def test_every_figure_is_that_of_the_recurrence(storage: PyStorage, capsys: pytest.CaptureFixture[str]) -> None:
    multihash.run(storage)
    printed = capsys.readouterr().out

    # All rows begin as ones. An id's gradient is 1 for each weight, and each row stands for two ids: its gradient is 2.
    weight, squares, losses = 1.0, 0.1, []
    for _ in range(multihash.STEPS):
        losses.append(4 * 4 * weight)
        squares += 2.0**2
        weight -= 0.1 * 2.0 / np.sqrt(squares)
    found = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert found == pytest.approx(losses, abs=2e-6)
    rows = re.findall(r"id (\d): ([\d. ]+)", printed)
    assert [int(key) for key, _ in rows] == [0, 1, 2, 3]
    for _, row in rows:
        assert [float(value) for value in row.split()] == pytest.approx([weight] * 4, abs=1e-6)
    # two tables of two rows of two weights and two sums of squares; four rows of four and four
    assert printed.endswith("4 rows, 64 bytes; a full table: 4 rows, 128 bytes\n")
