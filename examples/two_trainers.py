"""Act 3: two trainer processes share one model through a server, which is killed half-way and started again.

Each takes every second step of the plan, and neither waits for the other. Everything they share is rows of the server:
the model has no dense part that they would have to exchange (examples/fm.py). A push that was under way when the server
was killed is sent again by its client until it is answered, and applied once. So two things are checked at the end:

- How often each key was pushed, which a group of its own has counted: exactly what the plan says.
- The AUC on what was held out, against that of act 1: it may differ by AUC_TOLERANCE.
"""

import random
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from rich.console import Console

from examples.flights_data import Split
from examples.fm import FactorizationMachine, auc
from examples.printing import Bars
from examples.processes import Server, Trainers
from examples.trainer import Plan
from rockbed import PyStorage

TRAINERS = 2
# While one trainer computes a gradient, the other pushes: a gradient is about a step old when it is applied. On all
# flights that took 0.0012 to 0.0033 of the AUC in 15 runs (one process that applies each gradient a step late loses
# 0.0019). On few examples the order counts more, as one trainer may be seconds ahead when the server is back: 6,000
# ratings differed by up to 0.0046. Twice that is allowed; whether pushes were lost is for the counts to say.
AUC_TOLERANCE = 0.01


def train_together(console: Console, directory: Path, examples: Path, data: Split, plan: Plan, alone: float) -> bool:
    """All of the act; whether the counts are exact and the AUC is near `alone`, that of one trainer by itself.

    directory: for the server's store and its log. examples: the file with what `data` was split from.
    """
    console.rule("Act 3: two trainers, one server, and kill -9 for the server")
    with Server(directory / "served", directory / "server.log") as server:
        _train_and_kill(console, server, examples, data, plan)
        with PyStorage(server.target) as storage:
            model = FactorizationMachine(storage, plan.factors, plan.seed, count=True)
            fine = [check_counts(console, model, data, plan), check_auc(console, model, data, alone)]
        server.stop()
    return all(fine)


def _train_and_kill(console: Console, server: Server, examples: Path, data: Split, plan: Plan) -> None:
    steps = plan.epochs * plan.steps_per_epoch(len(data.train_labels))
    fatal = random.randint(max(1, round(0.4 * steps)), max(1, round(0.6 * steps)))  # a moment that no seed decides
    started = time.perf_counter()
    with Trainers(server.target, examples, plan, TRAINERS, count=True) as trainers, closing(Bars(console)) as bars:
        for done, _ in enumerate(trainers.steps(), start=1):
            bars.show(f"processes {' and '.join(map(str, trainers.pids))}", done, steps)
            if done == fatal:
                time.sleep(random.random() * 0.02)  # somewhere within the steps that follow
                server.kill()
                killed = time.perf_counter()
                said = server.start()
                console.print(
                    f"Killed the server with SIGKILL when {done:,} of {steps:,} steps had been reported. The next one, "
                    f"{time.perf_counter() - killed:.1f} s later:\n{said}",
                    highlight=False,
                )
        trainers.check()
    console.print(f"Both trainers came to their end in {time.perf_counter() - started:.1f} s, their start included.")


def check_counts(console: Console, model: FactorizationMachine, data: Split, plan: Plan) -> bool:
    """Whether each key was pushed as often as the plan says: no push lost, and none applied twice."""
    keys, occurrences = np.unique(data.train_keys, return_counts=True)
    planned, pushed = plan.epochs * occurrences, model.pushed(keys)
    wrong = int((pushed != planned).sum())
    verdict = f"[red]{wrong:,} keys NOT as often[/]" if wrong else "[green]every key as often[/]"
    console.print(
        f"Gradients planned: {int(planned.sum()):,}, of {len(keys):,} keys; counted by the server: "
        f"{int(pushed.sum()):,}, {verdict} as planned."
    )
    return wrong == 0


def check_auc(console: Console, model: FactorizationMachine, data: Split, alone: float) -> bool:
    """Whether the AUC on what was held out is within AUC_TOLERANCE of `alone`."""
    together = auc(model.predict(data.test_keys), data.test_labels)
    near = abs(together - alone) <= AUC_TOLERANCE
    verdict = "[green]within[/]" if near else "[red]NOT within[/]"
    console.print(
        f"Held-out AUC {together:.4f}, of one trainer {alone:.4f}: {together - alone:+.4f}, {verdict} {AUC_TOLERANCE}, "
        "which is allowed because gradients are a step old when they are applied."
    )
    return near
