"""A DeepFM written for damo-embedding, trained: `python -m benchmarks.predecessor_worker MODULE DATA SEED`.

MODULE is where Embedding and damo_embedding_init come from. Runs in the working directory, also where nothing of
Rockbed but this file can be imported, and writes result.npz there: scores of what was held out, seconds of each step.
"""

import sys
import time
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import nn

DIM, HIDDEN, BATCH, EPOCHS = 8, 32, 256, 2
ADAGRAD = {"name": "adagrad", "gamma": 0.02, "lambda": 0.0, "eta": 0.0, "epsilon": 1e-10}
UNIFORM = {"name": "random_uniform", "min": -0.05, "max": 0.05}


class DeepFM(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """Guo et al. 2017. package: whose Embedding it is built on."""

    def __init__(self, package: Any, features: int) -> None:
        super().__init__()
        self.weights = package.Embedding(1, initializer=UNIFORM, optimizer=ADAGRAD, group=0)
        self.vectors = package.Embedding(DIM, initializer=UNIFORM, optimizer=ADAGRAD, group=1)
        self.deep = nn.Sequential(
            nn.Linear(features * DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )

    def forward(self, keys: Any) -> Any:
        """Scores (log odds), [n], of keys [n, features]."""
        weights, vectors = self.weights(keys), self.vectors(keys)
        pairs = (vectors.sum(dim=1).square() - vectors.square().sum(dim=1)).sum(dim=1) / 2
        return weights.sum(dim=(1, 2)) + pairs + self.deep(vectors.flatten(1)).squeeze(1)


def mend(config: Any, util: Any) -> None:
    """In one process, 1.1.12 looks rows up where it means to push their gradients, so they would never learn."""

    def push(step_control: int, group: int, keys: Any, gradients: Any) -> None:
        config.DAMO_INSTANCE.push(step_control, group, keys, gradients)

    util.push = push


def main(module: str, path: str, seed: int) -> None:
    package = import_module(module)
    with np.load(path) as data:
        keys, labels, held_out = data["train_keys"], data["train_labels"], data["test_keys"]
    torch.manual_seed(seed)
    model = DeepFM(package, keys.shape[1])
    package.damo_embedding_init(model, 0, "./rows")
    if module == "damo_embedding":
        mend(import_module("damo_embedding.config"), import_module("damo_embedding.util"))
    optimizer = torch.optim.Adam(model.deep.parameters(), lr=0.001)
    seconds = []
    for epoch in range(EPOCHS):
        order = np.random.default_rng((seed, epoch)).permutation(len(labels))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            began = time.perf_counter()
            score = model(torch.from_numpy(keys[batch]))
            loss = nn.functional.binary_cross_entropy_with_logits(score, torch.from_numpy(labels[batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - began)
    with torch.no_grad():
        scores = [model(torch.from_numpy(held_out[i : i + 4096])).numpy() for i in range(0, len(held_out), 4096)]
    np.savez("result.npz", scores=np.concatenate(scores), seconds=seconds)
    package.damo_embedding_close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
