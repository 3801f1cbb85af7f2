"""Quotient-remainder embeddings, as DeepRec's guide shows them: tables [[2, 2], [2, 2]] put side by side, ids 0 to 3.

`python -m examples.seeds.multihash [TARGET]`: TARGET is a directory or grpc://HOST:PORT, a temporary store without one.
"""

import sys

import numpy as np

import rockbed
from examples.seeds.target import opened

IDS = np.array([0, 1, 2, 3])
STEPS = 3


def run(storage: rockbed.PyStorage) -> None:
    """Train the loss sum(embeddings), whose gradient is 1 everywhere, and print what becomes of the embeddings."""
    variable = rockbed.get_multihash_variable(
        "multihash",
        dims=[[2, 2], [2, 2]],
        num_of_partitions=2,
        complementary_strategy="Q-R",
        operation="concat",
        initializer=rockbed.PyInitializer(name="ones"),
        # TensorFlow's Adagrad: sums of squares begin at 0.1, and nothing to speak of is added to the root
        optimizer=rockbed.PyOptimizer(name="adagrad", gamma=0.1, initial_accumulator=0.1, epsilon=1e-20),
        storage=storage,
    )
    for step in range(STEPS):
        embeddings = variable.lookup(IDS)
        print(f"step {step}: loss {embeddings.sum():.6f}")
        embeddings.apply_gradients(np.ones_like(embeddings))
    for key, row in zip(IDS, variable.lookup(IDS, train=False), strict=True):
        print(f"id {key}: {' '.join(f'{value:.6f}' for value in row)}")
    memory = variable.memory()
    print(f"{memory.rows} rows, {memory.bytes} bytes; a full table: {memory.full_rows} rows, {memory.full_bytes} bytes")


if __name__ == "__main__":
    with opened(sys.argv[1:]) as storage:
        run(storage)
