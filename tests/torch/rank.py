"""A rank of test_ranks.py, or all of them in one process: trains on its share of the batches and tells the losses."""

import json
import os
import sys
from typing import Any

import numpy as np
import torch

import rockbed.torch
from rockbed import Feature, PyEmbedding, PyInitializer, PyOptimizer, PyStorage

STEPS, BATCH = 8, 12


KINDS = {"sgd": False, "adagrad": True}
"""The optimizers, and whether the pushes of the ranks are joined. With SGD two of halves are one of the whole."""


def model_of(storage: PyStorage, rule: str) -> Any:
    """A bag of keys and a sequence, with a network above."""
    groups = 2 * list(KINDS).index(rule) + np.arange(2)
    tables = [
        PyEmbedding(
            storage,
            PyOptimizer(name=rule, gamma=0.3),
            PyInitializer(name="random_uniform", min=-1.0, max=1.0),
            4,
            int(group),
        )
        for group in groups
    ]

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            features = [Feature("bag", tables[0], "mean", default_key=3), Feature("one", tables[1], None)]
            self.sparse = rockbed.torch.EmbeddingCollection(features, scale="mean")
            torch.manual_seed(1)
            self.dense = torch.nn.Linear(8, 1)

        def forward(self, keys: Any) -> Any:
            n = len(keys)
            out = self.sparse(
                {
                    "bag": (keys[:, :2].reshape(-1), torch.arange(0, 2 * n + 1, 2)),
                    "one": (keys[:, 2].contiguous(), torch.arange(n + 1)),
                }
            )
            return self.dense(torch.cat([out["bag"], out["one"]], dim=1))

    return Model()


def train(target: str, rule: str, rank: int = 0, ranks: int = 1) -> list[float]:
    """The loss of each step over the rank's share of the batch, before the step."""
    random = np.random.default_rng(1)
    losses = []
    joined = ranks > 1 and KINDS[rule]
    with PyStorage(target) as storage:
        model = model_of(storage, rule)
        if joined:
            rockbed.torch.join_ranks(storage)
        if ranks > 1:
            model = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(STEPS):
            keys = torch.from_numpy(random.integers(-1, 9, (BATCH, 3)))
            loss = model(keys[rank::ranks]).pow(2).mean()
            if ranks > 1 and not joined:
                torch.distributed.barrier()  # nobody pushes before all have looked up
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if ranks > 1 and not joined:
                torch.distributed.barrier()  # nobody looks up before all have pushed
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    target, rank, meeting = sys.argv[1:]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
    told = {rule: train(target, rule, int(rank), 2) for rule in KINDS}
    torch.distributed.destroy_process_group()
    print(json.dumps(told), flush=True)
    # Not by the end of the file: a thread of gloo's that lets go of a tensor while Python is being torn down ends the
    # process ("terminate called without an active exception", one in ten on a busy machine).
    os._exit(0)
