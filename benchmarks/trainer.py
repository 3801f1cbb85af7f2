"""One of several clients of a server: `python -m benchmarks.trainer` takes a Task as a line of JSON, connects, looks up
its share of the rows so that they are there, draws its batches, and prints "ready". Each further line is a number of
seconds to go on for; a line of JSON, a Report, answers it.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.contenders.base import INITIAL_BOUND, LEARNING_RATE
from benchmarks.data import F32, Batch, draw, gradients, run_of
from benchmarks.workloads import STEP_KEYS, Sizes
from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.errors import RockbedError


@dataclass(frozen=True, kw_only=True)
class Task:
    """kind: "lookup" (uniform), "apply" or "train" (Zipf). rows: of each table. number: this client, 0..clients-1."""

    target: str
    kind: str
    rows: int
    dim: int
    tables: int
    number: int
    clients: int
    sizes: Sizes


@dataclass(kw_only=True)
class Report:
    """keys: of the steps that succeeded; seconds: all in all; cpu_s: this process' own; calls: seconds of each call."""

    keys: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    errors: list[str] = field(default_factory=list)
    calls: dict[str, list[float]] = field(default_factory=lambda: {"lookup": [], "push": []})


class Trainer:
    """Goes through its batches again and again."""

    def __init__(self, task: Task) -> None:
        self._storage = PyStorage(task.target)
        optimizer = PyOptimizer(name="adagrad", gamma=LEARNING_RATE)
        initializer = PyInitializer(name="random_uniform", min=-INITIAL_BOUND, max=INITIAL_BOUND)
        self._tables = [
            PyEmbedding(self._storage, optimizer, initializer, task.dim, table) for table in range(task.tables)
        ]
        for table, rows in enumerate(self._tables):
            share = run_of(
                task.number * task.rows // task.clients, (task.number + 1) * task.rows // task.clients, table
            )
            for start in range(0, len(share.keys), task.sizes.batch_keys):
                rows.lookup(share.keys[start : start + task.sizes.batch_keys])
        random = np.random.default_rng([task.number, *task.kind.encode()])
        n = STEP_KEYS if task.kind == "train" else task.sizes.batch_keys
        self._steps: list[list[Batch]] = [
            [draw(task.rows, n, task.kind != "lookup", random, table) for table in range(task.tables)]
            for _ in range(task.sizes.pushes)
        ]
        self._grads: list[F32] = [gradients(n, task.dim, random) for _ in range(task.tables)]
        self._looks_up, self._pushes = task.kind != "apply", task.kind != "lookup"

    def train(self, seconds: float) -> Report:
        """Take one step after the other; a call that fails ends its step, and is reported."""
        report = Report()
        begin, cpu = time.perf_counter(), time.process_time()
        at = 0
        while time.perf_counter() < begin + seconds:
            step = self._steps[at % len(self._steps)]
            at += 1
            try:
                self._step(step, report)
            except RockbedError as error:
                report.errors.append(f"{type(error).__name__}: {error}")
            else:
                report.keys += sum(len(batch.keys) for batch in step)
        report.seconds, report.cpu_s = time.perf_counter() - begin, time.process_time() - cpu
        return report

    def _step(self, step: list[Batch], report: Report) -> None:
        def timed(kind: str, call: Callable[..., Any], *arguments: Any) -> None:
            start = time.perf_counter()
            call(*arguments)
            report.calls[kind].append(time.perf_counter() - start)

        if self._looks_up:
            timed("lookup", self._storage.lookup, [(self._tables[batch.table], batch.keys) for batch in step])
        if self._pushes:
            push = [
                (self._tables[batch.table], batch.keys, grad) for batch, grad in zip(step, self._grads, strict=True)
            ]
            timed("push", self._storage.apply_gradients, push)


def main() -> None:
    sent = json.loads(sys.stdin.readline())
    trainer = Trainer(Task(**{**sent, "sizes": Sizes(**sent["sizes"])}))
    trainer.train(0.5)  # not counted: the first calls load compiled kernels
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(trainer.train(float(line)))), flush=True)


if __name__ == "__main__":
    main()
