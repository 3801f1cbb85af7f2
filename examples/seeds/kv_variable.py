"""A KvVariable as tfplus' guide shows it: dim 64 in 5 shards, FTRL, saved and restored.

`python -m examples.seeds.kv_variable [TARGET [NAME]]`: TARGET is a directory or grpc://HOST:PORT, a temporary store
without one; NAME is that of the checkpoint, on a server one that its directory of exports does not have yet.
"""

import sys
import tempfile

import numpy as np

import rockbed
from examples.seeds.target import opened

IDS = np.array([1, 2, 3, 6, 8, 9, 1_000_000_000_000_000])
DIM, SHARDS, STEPS = 64, 5, 3


def run(storage: rockbed.PyStorage, checkpoint: str) -> None:
    """Train the loss sum(2 * rows), save, train on, restore; print the loss of each step, and the rows."""
    with rockbed.variable_scope("test", storage=storage):
        variable = rockbed.get_kv_variable(
            "variable",
            DIM,
            key_dtype=np.int64,
            initializer="ones",
            partitioner=rockbed.fixed_size_partitioner(SHARDS),
            # TensorFlow's FtrlOptimizer(0.005, l1=0.025, l2=1e-5): its accumulators begin at 0.1, and its l2 counts
            # twice in the denominator
            optimizer=rockbed.PyOptimizer(name="ftrl", alpha=0.005, l1=0.025, l2=2 * 1e-5, initial_accumulator=0.1),
        )
    print(f"{variable.name}, shards: {' '.join(map(str, variable.part_of(IDS)))}")
    for step in range(STEPS):
        train(variable, step)
    show("trained", variable)
    saver = rockbed.Saver([variable])
    saver.save(checkpoint)
    train(variable, STEPS)
    show("trained on", variable)
    saver.restore(checkpoint)
    show("restored", variable)


def train(variable: rockbed.KvVariable, step: int) -> None:
    """One step on the loss sum(2 * rows), whose gradient is 2 everywhere."""
    rows = rockbed.embedding_lookup(variable, IDS)
    print(f"step {step}: loss {(2 * rows).sum(dtype=np.float64):.6f}")
    rows.apply_gradients(np.full_like(rows, 2))


def show(title: str, variable: rockbed.KvVariable) -> None:
    """Print the row of each id."""
    for key, row in zip(IDS, variable.lookup(IDS, train=False), strict=True):
        print(f"{title}, id {key}: {' '.join(f'{value:.8f}' for value in row)}")


if __name__ == "__main__":
    with opened(sys.argv[1:]) as storage, tempfile.TemporaryDirectory() as folder:
        run(storage, sys.argv[2] if len(sys.argv) > 2 else f"{folder}/checkpoint")
