"""Fused columns, as DeepRec's page shows them: five ids on a diagonal, looked up and combined where their rows are.

`python -m examples.seeds.fused_columns [TARGET]`: TARGET is a directory or grpc://HOST:PORT, a temporary store without
one.
"""

import sys

import numpy as np

from examples.seeds.target import opened
from rockbed import PyInitializer, PyOptimizer, PyStorage, SparseTensor, feature_column

STEPS = 3
# The page says dense_shape=[5, 4], outside of which [4, 4] lies; a SparseTensor of Rockbed's does not take that.
IDS = SparseTensor(
    np.array([[0, 0], [1, 1], [2, 2], [3, 3], [4, 4]]), values=np.array([1, 2, 3, 4, 5]), dense_shape=[5, 5]
)


def run(storage: PyStorage) -> None:
    """Train by the sum of twice what is looked up, and print each step's rows and loss."""
    columns = feature_column.categorical_column_with_embedding("col_emb", dtype=np.int64)
    w = feature_column.embedding_column(columns, dimension=3, initializer=PyInitializer(name="ones"))
    w.use_fused_lookup = True
    # TensorFlow's FtrlOptimizer(0.1, l1_regularization_strength=2.0, l2_regularization_strength=1e-5): its accumulator
    # begins at 0.1, and l2 counts twice in its formula
    ftrl = PyOptimizer(name="ftrl", lr=0.1, l1=2.0, l2=2 * 1e-5, initial_accumulator_value=0.1)
    for _ in range(STEPS):
        emb = feature_column.input_layer({"col_emb": IDS}, [w], storage=storage, optimizer=ftrl)
        loss = (emb * 2.0).sum()
        emb.apply_gradients(np.full_like(emb, 2.0))
        for row in emb:
            print(" ".join(f"{value:.6f}" for value in row))
        print(f"loss {loss:.5f}")


if __name__ == "__main__":
    with opened(sys.argv[1:]) as storage:
        run(storage)
