"""DeepFM in PyTorch: its rows in Rockbed, and the same model on torch.nn.Embedding beside it.

H. Guo, R. Tang, Y. Ye, Z. Li, X. He, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI
2017: the score of a factorization machine plus that of a network that sees the same vectors, and the dense features.

`python -m examples.torch_deepfm` trains both on flights, from the same initial rows in the same order, and compares
losses and AUC. `--movielens PATH`, `--criteo PATH` and `--synthetic ROWS` take other examples; with `--served` the rows
in Rockbed are behind a server. Every figure printed is measured in that run.
"""

import sys
from typing import Any

import torch
from torch import nn

from examples.flights_data import Split
from examples.torch_comparison import Rows, run
from examples.trainer import Plan
from rockbed import PyInitializer

HIDDEN = 32  # units a layer


class DeepFM(nn.Module):
    """The network and the formula."""

    def __init__(self, rows: Rows, data: Split, plan: Plan) -> None:
        super().__init__()
        self.weights = rows.table("deepfm/weights", 1, PyInitializer(name="zeros"))
        self.vectors = rows.table("deepfm/vectors", plan.factors, PyInitializer(name="random_normal", stddev=0.05))
        self.deep = nn.Sequential(
            nn.Linear(len(data.features) * plan.factors + len(data.numbers), HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, 1),
        )

    def forward(self, keys: Any, numbers: Any) -> Any:
        """Scores (log odds), [n], of keys [n, features] and numbers [n, k]."""
        vectors = self.vectors(keys)
        pairs = (vectors.sum(dim=1).square() - vectors.square().sum(dim=1)).sum(dim=1) / 2  # Rendle 2010, lemma 3.1
        deep = self.deep(torch.cat([vectors.flatten(1), numbers], dim=1))
        return self.weights(keys).sum(dim=(1, 2)) + pairs + deep.squeeze(1)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: see torch_comparison.run."""
    return run("torch_deepfm", __doc__ or "", DeepFM, arguments)


if __name__ == "__main__":
    sys.exit(main())
