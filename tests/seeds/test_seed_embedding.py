"""The embedding example prints what Adam's recurrence gives, computed here in float64."""

import numpy as np
import pytest

from examples.seeds import embedding
from rockbed import PyStorage
from rockbed.types import F64


def test_every_figure_is_that_of_the_recurrence(storage: PyStorage, capsys: pytest.CaptureFixture[str]) -> None:
    embedding.run(storage)
    lines = capsys.readouterr().out.splitlines()
    printed = np.array([line.split(": ")[1].split() for line in lines], np.float64)

    # Kingma, Ba 2015, algorithm 1
    weights: F64 = np.ones((embedding.N, embedding.DIMENSION))
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    expected = [weights.copy()]
    for step in range(embedding.STEPS):
        g = embedding.gradients_of(step).astype(np.float64)
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g**2
        t = step + 1
        weights -= 0.001 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        expected.append(weights.copy())
    np.testing.assert_allclose(printed, np.concatenate(expected), atol=1.1e-6)
    assert [line.split(",")[0] for line in lines[:: embedding.N]] == ["before", "step 1", "step 2"]
