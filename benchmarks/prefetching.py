"""What fetching the rows of the next batch gains while a trainer computes on this one, where rows are on disk.

`python -m benchmarks.prefetching` trains on uniform keys of a store far larger than its memory budget, with and without
`rockbed.torch.prefetching`, by turns, in this process and through a server.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import rockbed.torch
from benchmarks.servers import rockbed_server
from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage

ROWS, DIM, BATCH = 1_000_000, 32, 4096
BUDGET = 16 << 20  # bytes: a twentieth of the rows
HIDDEN = 512


def opened(storage: PyStorage) -> PyEmbedding:
    """The group that is trained."""
    optimizer, initializer = PyOptimizer(name="adagrad", gamma=0.01), PyInitializer(name="random_uniform")
    return PyEmbedding(storage, optimizer, initializer, DIM, 1)


def fill(folder: Path) -> None:
    """Make the store, with a row for each of the keys 0 .. ROWS - 1."""
    with PyStorage(folder) as storage:
        rows = opened(storage)
        for start in range(0, ROWS, 1 << 16):
            rows.lookup(np.arange(start, min(ROWS, start + (1 << 16))))


def batches(steps: int, seed: int) -> Iterator[Any]:
    """int64[BATCH] of uniform keys."""
    random = np.random.default_rng(seed)
    return (torch.from_numpy(random.integers(0, ROWS, BATCH)) for _ in range(steps))


def seconds_a_step(module: Any, dense: Any, steps: int, seed: int, *, ahead: bool) -> float:
    """Of a training loop: lookup, a network of two layers, backward, push."""
    keys_of = batches(steps, seed)
    loader = rockbed.torch.prefetching(keys_of, lambda keys: [(module, keys)]) if ahead else keys_of
    optimizer = torch.optim.SGD(dense.parameters(), lr=1e-4)
    began = time.perf_counter()
    for keys in loader:
        loss = dense(module(keys)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - began) / steps


def measured(target: str, rounds: int, steps: int, **options: Any) -> tuple[list[float], list[float]]:
    """Seconds a step of each round, without and with prefetching."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dense = nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    without, with_ = [], []
    with PyStorage(target, **options) as storage:
        module = rockbed.torch.Embedding(opened(storage))
        seconds_a_step(module, dense, steps, 0, ahead=True)  # compiles
        for i in range(rounds):
            without.append(seconds_a_step(module, dense, steps, 2 * i + 1, ahead=False))
            with_.append(seconds_a_step(module, dense, steps, 2 * i + 2, ahead=True))
    return without, with_


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefetching", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="of a round (%(default)s)")
    options = parser.parse_args()
    print(f"{ROWS:,} rows of dim {DIM}, batches of {BATCH} uniform keys, a memory budget of {BUDGET >> 20} MB")
    with tempfile.TemporaryDirectory(prefix="rockbed-bench-") as name, ExitStack() as ending:
        folder = Path(name)
        for where in ("in this process", "through a server"):
            fill(folder / where)
            if where == "in this process":
                found = measured(str(folder / where), options.rounds, options.steps, memory_budget=BUDGET)
            else:
                server = rockbed_server(folder / where, "--memory-budget", str(BUDGET))
                ending.callback(server.stop)
                found = measured(server.address()[0], options.rounds, options.steps)
            ratios = [a / b for a, b in zip(*found, strict=True)]
            without, with_ = (1e3 * statistics.median(each) for each in found)
            print(
                f"{where:16}: {without:.1f} ms a step, {with_:.1f} with prefetching: "
                f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
