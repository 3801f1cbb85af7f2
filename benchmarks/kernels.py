"""Rows per second of every update rule and initializer on one core: `python -m benchmarks.kernels [--dim 16]`.

Each call works on 65,536 random, distinct rows of a slab of a million; the figure is the median of the calls. The rules
take turns, so that a slow spell of the machine hits all of them. The last lines are, to compare with, a
bare Adagrad loop that does not ask for rows ahead, the search for the rows' keys and a bare one that does not ask ahead
either, the gather of the weights and one that asks for rows at some distances, the statistics of the gradients that
every push makes, and a gather of as many bytes as Adagrad reads (np.take).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from rockbed.kernels import kernel
from rockbed.optimizers import initializer_names, make_initializer, make_optimizer, optimizer_names
from rockbed.storage.gradient_kernels import squared_norms
from rockbed.storage.hot_kernels import TOUCHED, gather, prefetch_weights
from rockbed.storage.index import find, find_one, insert_rows
from rockbed.storage.memory import reserve
from rockbed.types import F32, I64

CAPACITY = 1_000_000
BATCH = 65_536
REPEATS = 9
SEED = 1
DISTANCES = 8, 24, 64, 128  # rows ahead

Call = Callable[[I64], object]


@kernel
def adagrad_without_prefetch(data: F32, rows: I64, grads: F32, lr: np.float32, eps: np.float32) -> None:
    """The inner loop of rockbed.optimizers.adagrad, with every row met unprepared."""
    n, dim = grads.shape
    d = np.uint64(dim)
    for i in range(n):
        r = np.uint64(rows[i])
        for j in range(d):
            g = grads[i, j]
            m = data[r, d + j] + g * g
            data[r, d + j] = m
            data[r, j] -= lr * g / (np.sqrt(m) + eps)


@kernel
def find_without_prefetch(index: I64, keys: I64, rows: I64) -> None:
    """rockbed.storage.index.find, with every entry met unprepared."""
    for i in range(keys.shape[0]):
        rows[i] = find_one(index, keys[i])


@kernel
def gather_ahead(data: F32, rows: I64, dim: int, out: F32, ahead: int) -> None:
    """rockbed.storage.hot_kernels.gather, asking for rows at a given distance."""
    n = rows.shape[0]
    for i in range(n):
        if i + ahead < n:
            prefetch_weights(data, rows[i + ahead], dim)
        r = rows[i]
        for j in range(dim):
            out[i, j] = data[r, j]


def rates(calls: dict[str, Call], repeats: int) -> dict[str, float]:
    """Name -> million rows a second, every call once per round on fresh random rows."""
    rng = np.random.default_rng(SEED)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(np.arange(BATCH))  # compiles, and touches the pages
    for _ in range(repeats):
        for name, call in calls.items():
            # New rows for each call: the same ones would lie in the cache for the second.
            rows = rng.permutation(CAPACITY)[:BATCH]
            started = time.perf_counter()
            call(rows)
            taken[name].append(time.perf_counter() - started)
    return {name: BATCH / statistics.median(times) / 1e6 for name, times in taken.items()}


def rule_call(name: str, dim: int) -> Call:
    rng = np.random.default_rng(SEED)
    rule = make_optimizer(name)
    data = np.empty((CAPACITY, dim + rule.state_width(dim)), np.float32)
    data[:, :dim] = 0.1
    data[:, dim:] = rule.initial_state(dim)
    grads = rng.normal(size=(BATCH, dim)).astype(np.float32)
    lr = np.full(BATCH, rule.lr, np.float32)
    step = rng.integers(1, 100, BATCH)
    return lambda rows: rule.apply(data, rows, grads, lr, step)


def initializer_call(name: str, dim: int) -> Call:
    initializer = make_initializer(name, **({"value": 1.0} if name == "constant" else {}))
    data = np.zeros((CAPACITY, 2 * dim), np.float32)
    return lambda rows: initializer.fill(data, rows, rows, dim, SEED, 0)


def gather_call(data: F32, out: F32, ahead: int) -> Call:
    return lambda rows: gather_ahead(data, rows, out.shape[1], out, ahead)


def reference_calls(dim: int) -> dict[str, Call]:
    rng = np.random.default_rng(SEED)
    data = np.full((CAPACITY, 2 * dim), 0.1, np.float32)
    grads = rng.normal(size=(BATCH, dim)).astype(np.float32)
    out, weights = np.empty((BATCH, 2 * dim), np.float32), np.empty((BATCH, dim), np.float32)
    lr, eps = np.float32(0.01), np.float32(1e-10)
    index, flags, found = (
        reserve((2 * CAPACITY, 2), np.int64),
        reserve((CAPACITY,), np.uint8),
        np.empty(BATCH, np.int64),
    )
    insert_rows(index, np.arange(CAPACITY), rng.permutation(CAPACITY))
    return {
        "adagrad": rule_call("adagrad", dim),
        "adagrad without prefetch": lambda rows: adagrad_without_prefetch(data, rows, grads, lr, eps),
        "find": lambda keys: find(index, keys, flags, TOUCHED, found),
        "find without prefetch": lambda keys: find_without_prefetch(index, keys, found),
        "gather": lambda rows: gather(data, rows, dim, weights),
        **{f"gather, {ahead} rows ahead": gather_call(data, weights, ahead) for ahead in DISTANCES},
        "squared_norms of gradients": lambda rows: squared_norms(grads),
        "np.take of the same rows": lambda rows: np.take(data, rows, axis=0, out=out, mode="clip"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=16, help="weights per row (default 16)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"calls of each (default {REPEATS})")
    arguments = parser.parse_args()
    dim = arguments.dim
    print(f"dim {dim}, {BATCH:,} of {CAPACITY:,} rows a call, one core, median of {arguments.repeats}, M rows/s")
    sections: list[tuple[str, dict[str, Call]]] = [
        ("rules", {name: rule_call(name, dim) for name in optimizer_names()}),
        ("initializers", {name: initializer_call(name, dim) for name in initializer_names()}),
        ("reference", reference_calls(dim)),
    ]
    for title, calls in sections:
        print(f"\n{title}")
        for name, rate in rates(calls, arguments.repeats).items():
            print(f"  {name:26}{rate:8.1f}")


if __name__ == "__main__":
    main()
