"""A process that pushes at its own global steps, says so, and waits to be killed.

python -m tests.crash.global_writer DIRECTORY FLUSHED: flushes after the first FLUSHED pushes; the journal has the rest.
"""

import sys
from pathlib import Path

import numpy as np

from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage

STEPS = (3, 50, 700)  # far from a row's own count, from one another, and from where the bias corrections end
RATE = 0.1
KEYS = np.arange(-2, 3)


def gradient(step: int) -> float:
    """Of every weight."""
    return 1.0 + step % 4


def open_rows(directory: Path) -> tuple[PyStorage, PyEmbedding]:
    """Nothing is written back by itself."""
    storage = PyStorage(directory, write_back_interval=1e6)
    adam, zeros = PyOptimizer(name="adam", gamma=RATE), PyInitializer(name="zeros")
    return storage, PyEmbedding(storage, adam, zeros, 2, 1, step="global")


def main() -> None:
    """Push, report, wait."""
    storage, rows = open_rows(Path(sys.argv[1]))
    for number, step in enumerate(STEPS, 1):
        rows.global_step = step
        rows.apply_gradients(KEYS, np.full((KEYS.size, 2), gradient(step), np.float32))
        if number == int(sys.argv[2]):
            storage.flush()
    print("pushed", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
