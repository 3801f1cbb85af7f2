"""The trainer: goes through the batches, and after a crash continues with the step after the last one applied.

`python -m examples.trainer DIRECTORY EXAMPLES.npz` trains in a process of its own and prints a line of JSON a step.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from examples.flights_data import Examples, Split, split
from examples.fm import FactorizationMachine
from rockbed import PyStorage
from rockbed.types import I64

CLIENT = "trainer"  # the name under which the store counts this trainer's requests


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What, besides the examples, decides the result: the same plan gives the same rows, bit for bit."""

    epochs: int = 3
    batch: int = 1024
    factors: int = 8
    seed: int = 1

    def steps_per_epoch(self, examples: int) -> int:
        return -(-examples // self.batch)


@dataclass(frozen=True)
class Step:
    """One step done. number: from 1, over all epochs. epoch: from 0. loss: of this batch, before the step."""

    number: int
    epoch: int
    loss: float
    examples: int


def train(storage: PyStorage, model: FactorizationMachine, data: Split, plan: Plan) -> Iterator[Step]:
    """Run the plan from where the store stands.

    The order of the examples is a function of (seed, epoch), and each step's push carries the step's number. So
    after a crash the store itself knows how far training came, to the step, and the rest goes as it would have gone.
    """
    per_epoch = plan.steps_per_epoch(len(data.train_labels))
    shuffled = -1
    order: I64 = np.empty(0, np.int64)
    for number in range(storage.last_request(CLIENT) + 1, plan.epochs * per_epoch + 1):
        epoch, place = divmod(number - 1, per_epoch)
        if epoch != shuffled:
            shuffled, order = epoch, np.random.default_rng((plan.seed, epoch)).permutation(len(data.train_labels))
        rows = order[place * plan.batch : (place + 1) * plan.batch]
        loss = model.step(data.train_keys[rows], data.train_labels[rows], (CLIENT, number))
        yield Step(number, epoch, loss, len(rows))


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=Plan.epochs, help="times through the examples (%(default)s)")
    parser.add_argument("--batch", type=int, default=Plan.batch, help="examples a step (%(default)s)")
    parser.add_argument("--factors", type=int, default=Plan.factors, help="floats a vector (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=Plan.seed, help="of the split, the order and the rows (%(default)s)"
    )


def plan_of(options: argparse.Namespace) -> Plan:
    return Plan(epochs=options.epochs, batch=options.batch, factors=options.factors, seed=options.seed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.trainer", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("examples", type=Path)
    add_plan_options(parser)
    options = parser.parse_args()
    plan = plan_of(options)
    data = split(Examples.load(options.examples), plan.seed)
    with PyStorage(str(options.directory)) as storage:
        for step in train(storage, FactorizationMachine(storage, plan.factors, plan.seed), data, plan):
            print(json.dumps(asdict(step)), flush=True)


if __name__ == "__main__":
    main()
