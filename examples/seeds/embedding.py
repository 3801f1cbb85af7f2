"""Rows looked up and trained by key, as damo-embedding's page shows it: eight keys, dimension 16, group 1.

`python -m examples.seeds.embedding [TARGET]`: TARGET is a directory or grpc://HOST:PORT, a temporary store without one.
"""

import sys

import numpy as np

from examples.seeds.target import opened
from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.types import F32

N, DIMENSION, GROUP = 8, 16, 1
STEPS = 2


def gradients_of(step: int) -> F32:
    """Made-up gradients, other ones for each key and step: float32[N, DIMENSION]."""
    whole = np.linspace(-1, 1, N * DIMENSION).reshape(N, DIMENSION) / (step + 1)
    return whole.astype(np.float32)


def run(storage: PyStorage) -> None:
    """Look rows up, push gradients, and print the weights before and after."""
    optimizer = PyOptimizer(name="adam", gamma=0.001, beta1=0.9, beta2=0.999, epsilon=1e-8)
    embedding = PyEmbedding(storage, optimizer, PyInitializer(name="ones"), DIMENSION, GROUP)
    keys = np.random.default_rng(1).integers(-(2**62), 2**62, N)
    weights = np.zeros(N * DIMENSION, np.float32)
    embedding.lookup(keys, weights)
    show("before", weights)
    for step in range(STEPS):
        embedding.apply_gradients(keys, gradients_of(step))
        embedding.lookup(keys, weights)
        show(f"step {step + 1}", weights)


def show(title: str, weights: F32) -> None:
    """Print the weights, a line for each key."""
    for row, values in enumerate(weights.reshape(N, DIMENSION)):
        print(f"{title}, row {row}: {' '.join(f'{value:.6f}' for value in values)}")


if __name__ == "__main__":
    with opened(sys.argv[1:]) as storage:
        run(storage)
