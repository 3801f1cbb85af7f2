"""DLRM in PyTorch: its rows in Rockbed, and the same model on torch.nn.Embedding beside it.

M. Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", arXiv:1906.00091,
2019: a network makes a vector of the dense features, every categorical feature has a table of vectors, and what another
network sees is how they go together: the dot product of each two of them.

`python -m examples.torch_dlrm` trains both on flights, from the same initial rows in the same order, and compares
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


class DLRM(nn.Module):
    """The two networks and what is between them. Without dense features there is no bottom network, nor its vector."""

    def __init__(self, rows: Rows, data: Split, plan: Plan) -> None:
        super().__init__()
        dim = plan.factors
        initializer = PyInitializer(name="random_uniform", min=-0.1, max=0.1)
        self.vectors = rows.tables("dlrm", data.features, dim, initializer)
        self.bottom = None
        if data.numbers:
            layers = (nn.Linear(len(data.numbers), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, dim), nn.ReLU())
            self.bottom = nn.Sequential(*layers)
        count = len(data.features) + bool(data.numbers)
        self.pairs = torch.tril_indices(count, count, offset=-1)
        inputs = self.pairs.shape[1] + (dim if data.numbers else 0)
        self.top = nn.Sequential(
            nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )

    def forward(self, keys: Any, numbers: Any) -> Any:
        """Scores (log odds), [n], of keys [n, features] and numbers [n, k]."""
        vectors, seen = self.vectors(keys), []
        if self.bottom is not None:
            seen.append(self.bottom(numbers))
            vectors = torch.cat([seen[0][:, None, :], vectors], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        seen.append(products[:, self.pairs[0], self.pairs[1]])
        return self.top(torch.cat(seen, dim=1)).squeeze(1)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: see torch_comparison.run."""
    return run("torch_dlrm", __doc__ or "", DLRM, arguments)


if __name__ == "__main__":
    sys.exit(main())
