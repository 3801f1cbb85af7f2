"""step="global" after a kill: a push is replayed at the step that it was made at, and the step itself is restored."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.crash.global_writer import KEYS, RATE, STEPS, gradient, open_rows
from tests.source_tree import ROOT

# Three updates of at most some 0.1 each, in float32: 2^-24 of a weight of 0.2 and some 2^-21 of an update, each time.
TOLERANCE = 5e-7


def adam(steps: tuple[int, ...]) -> float:
    """The weight after the pushes, had they been made at these steps (Kingma, Ba 2015, algorithm 1; from a zero)."""
    weight = mean = square = 0.0
    for step, pushed_at in zip(steps, STEPS, strict=False):
        mean = 0.9 * mean + 0.1 * gradient(pushed_at)
        square = 0.999 * square + 0.001 * gradient(pushed_at) ** 2
        weight -= RATE * mean / (1 - 0.9**step) / (math.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return weight


def push_and_be_killed(directory: Path, flushed: int) -> None:
    """Run the writer up to its kill."""
    command = [sys.executable, "-m", "tests.crash.global_writer", str(directory), str(flushed)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"pushed\n"
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("flushed", [0, 1, 2])
def test_a_replayed_push_uses_the_global_step_that_it_was_made_at(tmp_path: Path, flushed: int) -> None:
    push_and_be_killed(tmp_path / "store", flushed)
    storage, rows = open_rows(tmp_path / "store")
    with storage:
        assert rows.global_step == STEPS[-1]
        weights = rows.lookup(KEYS, train=False)
        np.testing.assert_allclose(weights, adam(STEPS), rtol=0, atol=TOLERANCE)
        rows.apply_gradients(KEYS, np.zeros((KEYS.size, 2), np.float32))  # nobody has to set the step anew


def test_the_steps_of_the_writer_tell_its_own_from_any_other() -> None:
    first, second, last = STEPS
    for others in [(1, 2, 3), (last, last, last), (first, 2, 3), (first, second, 3), (first, last, last), (first,) * 3]:
        assert abs(adam(others) - adam(STEPS)) > 1_000 * TOLERANCE, others
