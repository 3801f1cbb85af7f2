"""A two-tower model in PyTorch: its rows in Rockbed, and the same model on torch.nn.Embedding beside it.

P. Covington, J. Adams, E. Sargin, "Deep Neural Networks for YouTube Recommendations", RecSys 2016, and others since:
one network makes a vector of who asks (a user, a place and an hour), another one of what is offered (a film, a plane),
and the score is their dot product. So the vectors of offers can be made beforehand, and the best be searched for.

`python -m examples.torch_two_tower` trains both on flights, from the same initial rows in the same order, and compares
losses and AUC. `--movielens PATH` takes film ratings: the score is a number of stars, judged by its RMSE; printed as
well is how often a film that was liked, and held out, is among the `TOP` best of those that its user had not yet rated.
`--criteo PATH` and `--synthetic ROWS` take other examples; with `--served` the rows in Rockbed are behind a server.
Every figure printed is measured in that run.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch import nn

from examples.criteo_data import CATEGORIES, COUNTS
from examples.flights_data import LIKED_STARS, Split
from examples.torch_comparison import Rows, base_score, run
from examples.trainer import Plan
from rockbed import PyInitializer
from rockbed.types import F32, I64

HIDDEN = 32  # units of the hidden layer
TOP = 100
# Features of the side that asks; the others are of the side that is offered. Criteo does not tell whose its features
# are: its counts and its first categories stand on this side.
ASKING = {
    *("month", "weekday", "hour", "origin", "origin x hour", "date x origin x hour", "departure"),
    *("user", "weekday x hour"),
    *(*COUNTS, *CATEGORIES[:13]),
    "a",
}


class Tower(nn.Module):
    """One side: from the vectors of its features, and its numbers, to a vector [n, factors]."""

    def __init__(self, side: str, asking: bool, rows: Rows, data: Split, plan: Plan) -> None:
        super().__init__()
        self.columns = [i for i, name in enumerate(data.features) if (name in ASKING) == asking]
        self.numbers = [i for i, name in enumerate(data.numbers) if (name in ASKING) == asking]
        names = [data.features[i] for i in self.columns]
        initializer = PyInitializer(name="random_normal", stddev=0.1)
        self.vectors = rows.tables(f"two-tower/{side}", names, plan.factors, initializer)
        inputs = len(self.columns) * plan.factors + len(self.numbers)
        self.network = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, plan.factors))

    def forward(self, keys: Any, numbers: Any) -> Any:
        """Of all columns of an example, keys [n, features] and numbers [n, k], it takes those of its side."""
        vectors = self.vectors(keys[:, self.columns])
        return self.network(torch.cat([vectors.flatten(1), numbers[:, self.numbers]], dim=1))


class TwoTower(nn.Module):
    """Both towers, and the score of what they make."""

    def __init__(self, rows: Rows, data: Split, plan: Plan) -> None:
        super().__init__()
        self.asking = Tower("asking", True, rows, data, plan)
        self.offered = Tower("offered", False, rows, data, plan)
        self.base = nn.Parameter(torch.tensor(base_score(data)))

    def forward(self, keys: Any, numbers: Any) -> Any:
        """Scores, [n], of keys [n, features] and numbers [n, k]: log odds, or stars."""
        return (self.asking(keys, numbers) * self.offered(keys, numbers)).sum(dim=1) + self.base


def recall(model: TwoTower, data: Split) -> str:
    """For films: how many of those liked and held out are found. Empty for other examples."""
    if "item" not in data.features:
        return ""
    user, item = (data.features.index(name) for name in ("user", "item"))
    films = np.unique(data.train_keys[:, item])
    each: I64 = np.zeros((len(films), len(data.features)), np.int64)
    each[:, item] = films
    asked = data.test_keys[(data.test_labels >= LIKED_STARS) & np.isin(data.test_keys[:, item], films)]
    model.eval()
    with torch.no_grad():
        offers = model.offered(torch.from_numpy(each), torch.zeros(len(films), 0))
        scores = model.asking(torch.from_numpy(asked), torch.zeros(len(asked), 0)) @ offers.T
    wanted = np.searchsorted(films, asked[:, item])
    users, place = np.unique(np.concatenate([asked[:, user], data.train_keys[:, user]]), return_inverse=True)
    rated = np.zeros((len(users), len(films)), bool)
    rated[place[len(asked) :], np.searchsorted(films, data.train_keys[:, item])] = True
    return f"; recall@{TOP} {found(scores.numpy(), wanted, rated[place[: len(asked)]], TOP):.3f}"


def found(scores: F32, wanted: I64, left_out: Any, top: int) -> float:
    """The part of the queries whose wanted offer is among the `top` of highest score.

    scores: float32[queries, offers]. wanted: int64[queries]. left_out: bool[queries, offers], those not to count.
    """
    better = (scores > np.take_along_axis(scores, wanted[:, None], axis=1)) & ~left_out
    return float((better.sum(axis=1) < top).mean())


def main(arguments: list[str] | None = None) -> int:
    """The exit status: see torch_comparison.run."""
    return run("torch_two_tower", __doc__ or "", TwoTower, arguments, rated=True, more=recall)


if __name__ == "__main__":
    sys.exit(main())
