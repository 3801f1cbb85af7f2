"""DeepFM on the flights in PyTorch: its rows in Rockbed, and the same model on torch.nn.Embedding beside it.

H. Guo, R. Tang, Y. Ye, Z. Li, X. He, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI
2017: the score of a factorization machine plus that of a network that sees the same vectors.

`python -m examples.torch_deepfm` trains both from the same initial rows in the same order, and compares losses and AUC.
With `--served` Rockbed's rows are behind a server. Every figure printed is measured in that run.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import rockbed.torch
from examples.flights_data import Split, read_flights, split, synthetic
from examples.fm import auc
from examples.processes import Server
from examples.trainer import Plan, add_plan_options, plan_of
from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.types import F32, I64

RATE, DENSE_RATE = 0.02, 0.001  # of Adagrad on the rows, of Adam on the network
STEPS_COMPARED = 100
LOSS_TOLERANCE = 1e-5  # float32 sums in another order
AUC_TOLERANCE = 0.003  # after thousands of steps those differences have grown

Tables = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""Keys [n, features] to weights [n, features, 1], and to vectors [n, features, factors]."""


class DeepFM(nn.Module):
    """The network and the formula. tables: where the rows come from."""

    def __init__(self, tables: Tables, features: int, factors: int, hidden: int = 32) -> None:
        super().__init__()
        self.weights, self.vectors = tables
        self.deep = nn.Sequential(
            nn.Linear(features * factors, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, keys: Any) -> Any:
        """Scores (log odds), [n], of keys [n, features]."""
        vectors = self.vectors(keys)
        pairs = (vectors.sum(dim=1).square() - vectors.square().sum(dim=1)).sum(dim=1) / 2  # Rendle 2010, lemma 3.1
        return self.weights(keys).sum(dim=(1, 2)) + pairs + self.deep(vectors.flatten(1)).squeeze(1)


class Known(nn.Module):
    """A torch.nn.Embedding of the keys of the training examples, for any keys: those not among them give zeros."""

    def __init__(self, keys: I64, rows: F32) -> None:
        super().__init__()
        self._keys = keys  # ascending
        with_zeros = np.concatenate([np.zeros((1, rows.shape[1]), np.float32), rows])
        self.rows = nn.Embedding.from_pretrained(torch.from_numpy(with_zeros), freeze=False, padding_idx=0)

    def forward(self, keys: Any) -> Any:
        place = np.searchsorted(self._keys, keys.numpy()).clip(max=len(self._keys) - 1)
        return self.rows(torch.from_numpy(np.where(self._keys[place] == keys.numpy(), place + 1, 0)))


@dataclass(frozen=True)
class Trained:
    """losses: of each step. auc: on what was held out. seconds: of all steps."""

    losses: list[float]
    auc: float
    seconds: float


def embeddings(storage: PyStorage, plan: Plan) -> tuple[PyEmbedding, PyEmbedding]:
    """The groups of the weights and of the vectors."""
    optimizer = PyOptimizer(name="adagrad", gamma=RATE)
    weights = PyEmbedding(storage, optimizer, PyInitializer(name="zeros"), 1, 1, seed=plan.seed)
    initializer = PyInitializer(name="random_normal", stddev=0.05)
    return weights, PyEmbedding(storage, optimizer, initializer, plan.factors, 2, seed=plan.seed)


def trained(tables: Tables, data: Split, plan: Plan) -> Trained:
    """Train the network and the rows. Those that are torch's have an optimizer of torch; Rockbed has its own."""
    torch.manual_seed(plan.seed)
    model = DeepFM(tables, data.train_keys.shape[1], plan.factors)
    optimizers = [torch.optim.Adam(model.deep.parameters(), lr=DENSE_RATE)]
    rows = [weights for name, weights in model.named_parameters() if not name.startswith("deep.")]
    if rows:
        optimizers.append(torch.optim.Adagrad(rows, lr=RATE))
    losses = []
    started = time.perf_counter()
    for keys, labels in batches(data, plan):
        loss = nn.functional.binary_cross_entropy_with_logits(model(keys), labels)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - started
    return Trained(losses, auc(scores(model, data.test_keys), data.test_labels), seconds)


def batches(data: Split, plan: Plan) -> Iterator[tuple[Any, Any]]:
    """(keys, labels), in an order that is a function of (seed, epoch)."""
    for epoch in range(plan.epochs):
        order = np.random.default_rng((plan.seed, epoch)).permutation(len(data.train_labels))
        for start in range(0, len(order), plan.batch):
            rows = order[start : start + plan.batch]
            yield torch.from_numpy(data.train_keys[rows]), torch.from_numpy(data.train_labels[rows])


def scores(model: DeepFM, keys: I64, chunk: int = 8192) -> F32:
    """Scores of int64[n, features]; nothing is inserted."""
    model.eval()
    with torch.no_grad():
        found = [model(torch.from_numpy(keys[i : i + chunk])).numpy() for i in range(0, len(keys), chunk)]
    return np.concatenate(found)


def compare(target: str, data: Split, plan: Plan) -> tuple[Trained, Trained]:
    """Train with Rockbed's rows, and with torch's, which begin as the same."""
    with PyStorage(target) as storage:
        groups = embeddings(storage, plan)
        keys = np.unique(data.train_keys)
        weights, vectors = (Known(keys, each.lookup(keys)) for each in groups)
        ours = trained((rockbed.torch.Embedding(groups[0]), rockbed.torch.Embedding(groups[1])), data, plan)
    return ours, trained((weights, vectors), data, plan)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 when the two did not end alike, 2 when there is nothing to learn from."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.torch_deepfm", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--served", action="store_true", help="through a server, not in this process")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--flights", type=int, metavar="ROWS", help="only so many flights, taken evenly over the year")
    source.add_argument("--synthetic", type=int, metavar="ROWS", help="so many made-up examples instead")
    add_plan_options(parser)
    options = parser.parse_args(arguments)
    plan = plan_of(options)
    try:
        examples = synthetic(options.synthetic) if options.synthetic else read_flights(options.flights)
    except ModuleNotFoundError as problem:
        print(problem)
        return 2
    data = split(examples, plan.seed)
    with tempfile.TemporaryDirectory(prefix="rockbed-deepfm-") as directory, ExitStack() as ending:
        target = f"{directory}/store"
        if options.served:
            target = ending.enter_context(Server(Path(target), Path(directory) / "server.log")).target
        ours, theirs = compare(target, data, plan)
    for name, result in (("rockbed", ours), ("torch.nn", theirs)):
        steps = f"{len(result.losses)} steps in {result.seconds:.1f} s"
        print(f"{name:8} held-out AUC {result.auc:.5f}; last loss {result.losses[-1]:.5f}; {steps}")
    away = float(np.abs(np.subtract(ours.losses, theirs.losses)[:STEPS_COMPARED]).max())
    print(f"The losses of the first {min(len(ours.losses), STEPS_COMPARED)} steps differ by {away:.1e} at the most.")
    return 0 if away <= LOSS_TOLERANCE and abs(ours.auc - theirs.auc) <= AUC_TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
