"""kill -9 at random moments: what was acknowledged is there exactly once, in all groups or in none."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rockbed import PyStorage
from tests.crash.steps import ADAPTIVE, DIMS, KEYS, SHRUNK, Model
from tests.crash.writer import CLIENT, open_store

ROOT = Path(__file__).parents[2]


class Run:
    """One life of the writer, from its start to its end by SIGKILL (or by itself)."""

    def __init__(self, directory: Path, seed: int, chance: random.Random) -> None:
        steps = chance.choice([30, 150, 100_000])
        fsync = chance.choice(["never", "interval", "always"])
        command = [sys.executable, "-m", "tests.crash.writer", str(directory), str(seed), fsync, str(steps)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        stream = self.process.stdout
        assert stream is not None
        kind = chance.choice(["early", "step", "step", "closing"])
        self.lines: list[str] = []
        if kind == "early":  # while it opens and replays
            time.sleep(chance.uniform(0.2, 0.9))
        else:
            wanted = "closing" if kind == "closing" and steps < 1_000 else f"{chance.randrange(1, 120)} lines"
            for raw in stream:
                self.lines.append(raw.decode().strip())
                if self.lines[-1] == wanted or (wanted.endswith("lines") and len(self.lines) >= int(wanted.split()[0])):
                    break
            time.sleep(chance.uniform(0, 0.03))
        os.kill(self.process.pid, signal.SIGKILL)
        self.lines += [raw.decode().strip() for raw in stream]
        stream.close()
        self.status = self.process.wait()

    @property
    def acknowledged(self) -> int:
        """The last step that was reported; 0 where there was none."""
        return max((int(line.split()[1]) for line in self.lines if line.startswith("pushed")), default=0)


def follow(model: Model, lines: list[str]) -> set[int]:
    """Apply what was reported. Returns the keys of which an unfinished shrink may have removed any."""
    doubtful: set[int] = set()
    for line in lines:
        if line.startswith("pushed"):
            model.apply_up_to(int(line.split()[1]))
        elif line == "shrinking":
            doubtful = model.rare()
        elif line == "shrunk":
            model.forget(doubtful)
            doubtful = set()
    return doubtful


def compare(directory: Path, model: Model, acknowledged: int, doubtful: set[int]) -> int:
    """Open the store and compare every row. Returns the last step that it holds."""
    storage, embeddings = open_store(directory)
    with storage:
        assert storage.check().problems == []
        last = storage.last_request(CLIENT)
        assert acknowledged <= last <= acknowledged + 1, (
            "an acknowledged push is lost, or one that nobody made is there"
        )
        for group, embedding in embeddings.items():
            keys = np.arange(-KEYS[group] // 2, KEYS[group] // 2)
            rows = embedding.lookup(keys, train=False).astype(np.float64)
            if group == SHRUNK:
                model.forget({key for key in doubtful if not rows[key + KEYS[group] // 2].any()})
            model.apply_up_to(last)
            wanted = np.zeros((keys.size, DIMS[group]))
            for (g, key), row in model.rows.items():
                if g == group:
                    wanted[key + KEYS[group] // 2] = row.weights
            if group == ADAPTIVE:
                np.testing.assert_allclose(rows, wanted, rtol=2e-5, atol=2e-6)
            else:
                np.testing.assert_array_equal(rows, wanted)
    return last


def kill_again_and_again(tmp_path: Path, seed: int, kills: int) -> None:
    chance = random.Random(seed)
    directory, model = tmp_path / "store", Model(seed)
    last = 0
    for _ in range(kills):
        run = Run(directory, seed, chance)
        assert run.status in (0, -signal.SIGKILL), f"the writer failed by itself: {run.lines[-3:]}"
        doubtful = follow(model, run.lines)
        last = compare(directory, model, max(last, run.acknowledged), doubtful)
        check_checkpoints(tmp_path)
    assert last > 0


def check_checkpoints(tmp_path: Path) -> None:
    """A checkpoint that has its final name is whole; one that has not does no harm."""
    for checkpoint in tmp_path.glob("checkpoint-*"):
        PyStorage.restore(checkpoint, tmp_path / "restored")
        storage, _ = open_store(tmp_path / "restored")
        with storage:
            assert storage.check().problems == []
            assert storage.last_request(CLIENT) >= int(checkpoint.name.split("-")[1])
        shutil.rmtree(tmp_path / "restored")
        shutil.rmtree(checkpoint)


def test_five_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, seed=1, kills=5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4, 5])
def test_fifty_kills_and_more_lose_and_double_nothing(tmp_path: Path, seed: int) -> None:
    kill_again_and_again(tmp_path, seed=seed, kills=14)
