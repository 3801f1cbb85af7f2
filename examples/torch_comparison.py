"""What the models in PyTorch share: the same model trained twice, its rows in Rockbed and in torch.nn.Embedding.

A model asks `Rows` for its tables and does not know which of the two it got. Both begin with the same rows, go through
the same batches in the same order, and have the same optimizers: Adagrad on the rows, Adam on the rest.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

import rockbed.torch
from examples.criteo_data import read_criteo
from examples.flights_data import Examples, Split, read_flights, read_movielens, split, synthetic
from examples.fm import auc
from examples.processes import Server
from examples.trainer import Plan, add_plan_options, plan_of
from rockbed import Feature, PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.types import F32, I64

RATE, DENSE_RATE = 0.02, 0.001  # of Adagrad on the rows, of Adam on the rest
STEPS_COMPARED = 100
LOSS_TOLERANCE = 1e-5  # float32 sums in another order
SCORE_TOLERANCE = 0.003  # of AUC or RMSE: after thousands of steps those differences have grown


# --- where rows are ---


class Rows(Protocol):
    """Makes the tables of a model."""

    @property
    def parameters(self) -> list[Any]:
        """The rows that an optimizer of torch has to train."""
        ...

    def table(self, name: str, dim: int, initializer: PyInitializer) -> Any:
        """One table for all features: a module from keys [n, features] to rows [n, features, dim]."""
        ...

    def tables(self, prefix: str, features: Sequence[str], dim: int, initializer: PyInitializer) -> Any:
        """A table for each feature: a module from keys [n, features] to rows [n, features, dim]."""
        ...


class InRockbed:
    """Rows in a storage: groups with the tables' names, "prefix/feature" for those of features."""

    def __init__(self, storage: PyStorage, seed: int) -> None:
        self.storage = storage
        self.seed = seed
        self.parameters: list[Any] = []  # the storage trains its rows itself

    def group(self, name: str, dim: int, initializer: PyInitializer) -> PyEmbedding:
        optimizer = PyOptimizer(name="adagrad", gamma=RATE)
        return PyEmbedding(self.storage, optimizer, initializer, dim, name, seed=self.seed)

    def table(self, name: str, dim: int, initializer: PyInitializer) -> Any:
        return rockbed.torch.Embedding(self.group(name, dim, initializer))

    def tables(self, prefix: str, features: Sequence[str], dim: int, initializer: PyInitializer) -> Any:
        return Fused({name: self.group(f"{prefix}/{name}", dim, initializer) for name in features})


class Fused(nn.Module):
    """A group for each feature, all of them looked up in one call."""

    def __init__(self, groups: dict[str, PyEmbedding]) -> None:
        super().__init__()
        self.names = list(groups)
        self.sparse = rockbed.torch.EmbeddingCollection([Feature(name, groups[name], "sum") for name in groups])

    def forward(self, keys: Any) -> Any:
        ends = torch.arange(len(keys) + 1)  # one key a bag
        out = self.sparse({name: (keys[:, i].contiguous(), ends) for i, name in enumerate(self.names)})
        return out.pooled.reshape(*keys.shape, -1)


class InTorch:
    """Rows in torch.nn.Embedding, of the keys to train on, as they begin in a store of this seed."""

    def __init__(self, storage: PyStorage, seed: int, data: Split) -> None:
        self._rockbed = InRockbed(storage, seed)
        self._data = data
        self.parameters: list[Any] = []

    def table(self, name: str, dim: int, initializer: PyInitializer) -> Any:
        return self._known(self._data.train_keys, self._rockbed.group(name, dim, initializer))

    def tables(self, prefix: str, features: Sequence[str], dim: int, initializer: PyInitializer) -> Any:
        known = []
        for name in features:
            group = self._rockbed.group(f"{prefix}/{name}", dim, initializer)
            known.append(self._known(self._data.train_keys[:, self._data.features.index(name)], group))
        return SideBySide(known)

    def _known(self, keys: I64, group: PyEmbedding) -> "Known":
        distinct = np.unique(keys)
        table = Known(distinct, group.lookup(distinct))
        self.parameters += table.parameters()
        return table


class Known(nn.Module):
    """A torch.nn.Embedding of known keys, for any keys: those not among them give zeros."""

    def __init__(self, keys: I64, rows: F32) -> None:
        super().__init__()
        self._keys = keys  # ascending
        with_zeros = np.concatenate([np.zeros((1, rows.shape[1]), np.float32), rows])
        self.rows = nn.Embedding.from_pretrained(torch.from_numpy(with_zeros), freeze=False, padding_idx=0)

    def forward(self, keys: Any) -> Any:
        place = np.searchsorted(self._keys, keys.numpy()).clip(max=len(self._keys) - 1)
        return self.rows(torch.from_numpy(np.where(self._keys[place] == keys.numpy(), place + 1, 0)))


class SideBySide(nn.Module):
    """A table for each column of keys."""

    def __init__(self, tables: Sequence[Any]) -> None:
        super().__init__()
        self.columns = nn.ModuleList(tables)

    def forward(self, keys: Any) -> Any:
        return torch.stack([table(keys[:, i]) for i, table in enumerate(self.columns)], dim=1)


# --- training ---

Build = Callable[[Rows, Split, Plan], Any]
"""Makes a model: a module from keys int64[n, features] and numbers float32[n, k] to scores [n], log odds or ratings."""


@dataclass(frozen=True)
class Trained:
    """losses: of each step. score: AUC or RMSE of what was held out. seconds: of all steps. more: what the model's file
    has to say besides."""

    losses: list[float]
    score: float
    seconds: float
    more: str = ""


def trained(build: Build, rows: Rows, data: Split, plan: Plan) -> tuple[Any, list[float]]:
    """Make a model and go through all batches. Returns the model, and the loss of each step."""
    torch.manual_seed(plan.seed)
    model = build(rows, data, plan)
    known = {id(each) for each in rows.parameters}
    dense = [each for each in model.parameters() if id(each) not in known]
    optimizers = [torch.optim.Adam(dense, lr=DENSE_RATE)]
    if rows.parameters:
        optimizers.append(torch.optim.Adagrad(rows.parameters, lr=RATE))
    functional = nn.functional
    loss_of = functional.mse_loss if data.rated else functional.binary_cross_entropy_with_logits
    losses = []
    for keys, numbers, labels in batches(data, plan):
        loss = loss_of(model(keys, numbers), labels)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # and with this the rows that Rockbed has are updated
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return model, losses


def batches(data: Split, plan: Plan) -> Iterator[tuple[Any, Any, Any]]:
    """(keys, numbers, labels), in an order that is a function of (seed, epoch)."""
    for epoch in range(plan.epochs):
        order = np.random.default_rng((plan.seed, epoch)).permutation(len(data.train_labels))
        for start in range(0, len(order), plan.batch):
            rows = order[start : start + plan.batch]
            yield tuple(torch.from_numpy(part[rows]) for part in (data.train_keys, data.train_dense, data.train_labels))


def scores(model: Any, keys: I64, numbers: F32, chunk: int = 8192) -> F32:
    """What the model says of int64[n, features] and float32[n, k]; nothing is inserted."""
    model.eval()
    with torch.no_grad():
        parts = [
            model(torch.from_numpy(keys[i : i + chunk]), torch.from_numpy(numbers[i : i + chunk])).numpy()
            for i in range(0, len(keys), chunk)
        ]
    return np.concatenate(parts)


def score(model: Any, data: Split) -> float:
    """RMSE of ratings, AUC otherwise, of what was held out."""
    found = scores(model, data.test_keys, data.test_dense)
    if data.rated:
        return float(np.sqrt(np.square(found - data.test_labels, dtype=np.float64).mean()))
    return auc(found, data.test_labels)


def base_score(data: Split) -> float:
    """The score that fits all training examples best: their mean rating, or the log odds of a yes."""
    mean = float(data.train_labels.mean(dtype=np.float64))
    if data.rated:
        return mean
    mean = min(max(mean, 1e-3), 1 - 1e-3)  # no odds are infinite where all say the same
    return float(np.log(mean / (1 - mean)))


More = Callable[[Any, Split], str]


def compare(
    build: Build, target: str, scratch: str, data: Split, plan: Plan, more: More | None = None
) -> tuple[Trained, Trained]:
    """Train with rows in a new store, `target`, and with torch's. scratch: the directory of another store, whose rows
    of the same seed torch's begin as."""

    def result(rows: Rows) -> Trained:
        started = time.perf_counter()
        model, losses = trained(build, rows, data, plan)
        seconds = time.perf_counter() - started
        return Trained(losses, score(model, data), seconds, more(model, data) if more else "")

    with PyStorage(target) as storage:
        ours = result(InRockbed(storage, plan.seed))
    with PyStorage(scratch) as storage:
        theirs = InTorch(storage, plan.seed, data)
        return ours, result(theirs)


# --- the command line ---


def examples_of(options: argparse.Namespace, *, rated: bool = False) -> Examples:
    """The examples that were asked for. Raises ModuleNotFoundError, OSError or ValueError with what is amiss."""
    if options.movielens is not None:
        return read_movielens(options.movielens, rated=rated)
    if options.criteo is not None:
        return read_criteo(options.criteo)
    if options.synthetic is not None:
        return synthetic(options.synthetic)
    return read_flights(options.flights)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--flights", type=int, metavar="ROWS", help="only so many flights, taken evenly over the year")
    source.add_argument("--movielens", type=Path, metavar="PATH", help="this u.data file of MovieLens 100K instead")
    source.add_argument("--criteo", type=Path, metavar="PATH", help="this file of Criteo's instead: csv, or Kaggle's")
    source.add_argument("--synthetic", type=int, metavar="ROWS", help="so many made-up examples instead")


def run(
    program: str,
    about: str,
    build: Build,
    arguments: list[str] | None,
    *,
    rated: bool = False,
    more: More | None = None,
) -> int:
    """The main function of a model's file. rated: films are judged by their stars. more: adds to what is printed.

    Returns the exit status: 0, 1 when the two did not end alike, 2 when there is nothing to learn from.
    """
    parser = argparse.ArgumentParser(prog=f"python -m examples.{program}", description=about.splitlines()[0])
    parser.add_argument("--served", action="store_true", help="through a server, not in this process")
    add_source_options(parser)
    add_plan_options(parser)
    options = parser.parse_args(arguments)
    plan = plan_of(options)
    torch.set_num_threads(1)  # in layers as small as these threads wait for one another longer than they compute
    try:
        data = split(examples_of(options, rated=rated), plan.seed)
    except (ModuleNotFoundError, OSError, ValueError) as problem:
        print(problem)
        return 2
    with tempfile.TemporaryDirectory(prefix="rockbed-torch-") as directory, ExitStack() as ending:
        target = f"{directory}/store"
        if options.served:
            target = ending.enter_context(Server(Path(target), Path(directory) / "server.log")).target
        ours, theirs = compare(build, target, f"{directory}/scratch", data, plan, more)
    return verdict(ours, theirs, "RMSE" if data.rated else "AUC")


def verdict(ours: Trained, theirs: Trained, measure: str) -> int:
    """Print both beside each other. Returns 0 if they are alike, 1 if not."""
    for name, result in (("rockbed", ours), ("torch.nn", theirs)):
        steps = f"{len(result.losses)} steps in {result.seconds:.1f} s"
        print(
            f"{name:8} held-out {measure} {result.score:.5f}; last loss {result.losses[-1]:.5f}; {steps}{result.more}"
        )
    away = float(np.abs(np.subtract(ours.losses, theirs.losses)[:STEPS_COMPARED]).max())
    print(f"The losses of the first {min(len(ours.losses), STEPS_COMPARED)} steps differ by {away:.1e} at the most.")
    return 0 if away <= LOSS_TOLERANCE and abs(ours.score - theirs.score) <= SCORE_TOLERANCE else 1
