"""Adaptive embedding, as DeepRec's page shows it: ten ids, of which a mask gives five rows of their own.

`python -m examples.seeds.adaptive [TARGET]`: TARGET is a directory or grpc://HOST:PORT, a temporary store without one.
"""

import sys

import numpy as np

from examples.seeds.target import opened
from rockbed import PyInitializer, PyOptimizer, PyStorage, SparseTensor, feature_column

STEPS = 4
IDS = SparseTensor(
    np.array([[i, 0] for i in range(10)]), values=np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 0]), dense_shape=[10, 1]
)
MASK = np.array([1, 0, 1, 0, 1, 0, 0, 1, 0, 1], np.int32)


def run(storage: PyStorage) -> None:
    """Train by the sum of twice what is looked up, and print each step's rows and loss."""
    columns = feature_column.categorical_column_with_adaptive_embedding("col_emb", hash_bucket_size=100, dtype=np.int64)
    w = feature_column.embedding_column(columns, dimension=3, initializer=PyInitializer(name="ones"))
    # TensorFlow's FtrlOptimizer(0.1, l1_regularization_strength=2.0, l2_regularization_strength=1e-5): its accumulator
    # begins at 0.1, and l2 counts twice in its formula
    ftrl = PyOptimizer(name="ftrl", lr=0.1, l1=2.0, l2=2 * 1e-5, initial_accumulator_value=0.1)
    for _ in range(STEPS):
        emb = feature_column.input_layer({"col_emb": IDS}, [w], {"col_emb": MASK}, storage=storage, optimizer=ftrl)
        loss = (emb * 2.0).sum()
        emb.apply_gradients(np.full_like(emb, 2.0))
        for row in emb:
            print(" ".join(f"{value:.6f}" for value in row))
        print(f"loss {loss:.5f}")


if __name__ == "__main__":
    with opened(sys.argv[1:]) as storage:
        run(storage)
