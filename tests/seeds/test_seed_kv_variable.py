"""The KvVariable example prints what TensorFlow's FTRL recurrence gives, computed here in float64."""

from pathlib import Path

import numpy as np
import pytest

from examples.seeds import kv_variable
from rockbed import PyStorage
from tests.splitmix import mix64

RATE, L1, L2, GRADIENT = 0.005, 0.025, 1e-5, 2.0


def after(steps: int) -> float:
    """A weight that began at 1, by the recurrence of TensorFlow's ApplyFtrl (lr_power -0.5, accumulator from 0.1)."""
    weight, accumulator, linear = 1.0, 0.1, 0.0
    for _ in range(steps):
        grown = accumulator + GRADIENT**2
        linear += GRADIENT - (grown**0.5 - accumulator**0.5) / RATE * weight
        quadratic = grown**0.5 / RATE + 2 * L2
        weight = (np.sign(linear) * L1 - linear) / quadratic if abs(linear) > L1 else 0.0
        accumulator = grown
    return weight


def test_every_figure_is_that_of_the_recurrence(
    storage: PyStorage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kv_variable.run(storage, str(tmp_path / "checkpoint"))
    lines = capsys.readouterr().out.splitlines()

    shards = [((mix64(key % 2**64) & 0x3FFF) * 5) >> 14 for key in kv_variable.IDS.tolist()]
    assert lines[0] == f"test/variable, shards: {' '.join(map(str, shards))}"
    losses = [line for line in lines if line.startswith("step")]
    count = kv_variable.IDS.size * kv_variable.DIM
    assert [line.split(":")[0] for line in losses] == [f"step {step}" for step in range(4)]
    # float32 rows: their roundings add up over 448 weights, each of them the same
    np.testing.assert_allclose(
        [float(line.split("loss ")[1]) for line in losses],
        [2 * count * after(step) for step in range(4)],
        rtol=1e-6,
    )
    rows = [line for line in lines[1:] if not line.startswith("step")]
    assert [line.split(": ")[0] for line in rows] == [
        f"{title}, id {key}" for title in ("trained", "trained on", "restored") for key in kv_variable.IDS
    ]
    printed = np.array([line.split(": ")[1].split() for line in rows], np.float64)
    expected = np.repeat([after(3), after(4), after(3)], kv_variable.IDS.size)[:, None]
    assert printed.shape == (expected.size, 64)
    np.testing.assert_allclose(printed, np.broadcast_to(expected, printed.shape), rtol=1e-6, atol=1e-8)
