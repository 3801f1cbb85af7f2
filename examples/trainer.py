"""The trainer: goes through the batches, and after a crash continues with the step after the last one applied.

`python -m examples.trainer TARGET EXAMPLES.npz` trains in a process of its own and prints a line of JSON a step. TARGET
is a directory, or the address of a server, on which several trainers may work at once (`--trainers`, `--trainer`).
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from examples.flights_data import Examples, Split, split
from examples.fm import FactorizationMachine
from rockbed import PyStorage
from rockbed.types import I64


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
class Share:
    """The steps of one trainer among several: every `trainers`-th step is that of `trainer` (from 0)."""

    trainer: int = 0
    trainers: int = 1

    @property
    def client(self) -> str:
        """The name under which the store remembers this trainer's last step."""
        return f"trainer-{self.trainer}"


@dataclass(frozen=True)
class Step:
    """One step done. number: from 1, over all epochs. epoch: from 0. loss: of this batch, before the step."""

    number: int
    epoch: int
    loss: float
    examples: int


def train(
    storage: PyStorage, model: FactorizationMachine, data: Split, plan: Plan, share: Share = Share()
) -> Iterator[Step]:
    """Run a share of the plan, by default all of it, from where the store stands.

    The order of the examples is a function of (seed, epoch), and each step's push carries the step's number. So
    after a crash the store itself knows how far the trainer came, to the step, and the rest goes as it would have gone.
    """
    per_epoch = plan.steps_per_epoch(len(data.train_labels))
    shuffled = -1
    order: I64 = np.empty(0, np.int64)
    last = storage.last_request(share.client)
    for number in range(share.trainer + 1, plan.epochs * per_epoch + 1, share.trainers):
        if number <= last:
            continue
        epoch, place = divmod(number - 1, per_epoch)
        if epoch != shuffled:
            shuffled, order = epoch, np.random.default_rng((plan.seed, epoch)).permutation(len(data.train_labels))
        rows = order[place * plan.batch : (place + 1) * plan.batch]
        loss = model.step(data.train_keys[rows], data.train_labels[rows], (share.client, number))
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
    parser.add_argument("target", help="a store's directory, or grpc://host:port of a server")
    parser.add_argument("examples", type=Path, help="a file that Examples.save has written")
    add_plan_options(parser)
    parser.add_argument("--trainers", type=int, default=1, help="how many share the steps (%(default)s)")
    parser.add_argument("--trainer", type=int, default=0, help="which of them this is, from 0 (%(default)s)")
    parser.add_argument("--count", action="store_true", help="count in a group of its own how often a key is pushed")
    options = parser.parse_args()
    plan = plan_of(options)
    data = split(Examples.load(options.examples), plan.seed)
    with PyStorage(options.target) as storage:
        model = FactorizationMachine(storage, plan.factors, plan.seed, count=options.count)
        for step in train(storage, model, data, plan, Share(options.trainer, options.trainers)):
            sys.stdout.write(json.dumps(asdict(step)) + "\n")  # print may write the line's end apart from the line
            sys.stdout.flush()


if __name__ == "__main__":
    main()
