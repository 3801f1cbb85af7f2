"""Smaller tables: what compressed embeddings save, and what they cost. `python -m examples.compressed` prints a table.

After the tables of H.-J. M. Shi, D. Mudigere, M. Naumov, J. Yang, "Compositional Embeddings Using Complementary
Partitions for Memory-Efficient Recommendation Systems", KDD 2020: the DLRM of examples/torch_dlrm.py, each feature of
more than `--threshold` values with

- a row for each value (full);
- as many rows as the quotient-remainder tables have, which the values share by hashing, so that some are mistaken for
  others (hashed);
- quotient-remainder tables: V / c rows for the remainders and c for the quotients, c being `--collisions`, so that each
  value keeps an embedding of its own; its two rows added, multiplied, or side by side at half the width;
- an adaptive embedding: V / c rows that the values share by hashing, and rows of their own for those that occur
  `--frequent` times: told by a mask from the first step on, or counted by the store, exactly or in a Bloom filter for
  as many values as there are, which has them begin as copies of the shared rows when they have been seen so often.

Features of fewer values have a row for each in every line. Every model begins with embeddings of the same spread, and
goes through the examples once, as in the paper, unless `--epochs` says more. Every figure printed is measured in that
run; memory is that of all rows which the store has after it, with optimizer state, and of what is counted for adaptive
ones.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import rockbed.torch
from examples.flights_data import Split, split
from examples.fm import auc, log_loss
from examples.torch_comparison import RATE, Fused, InRockbed, add_source_options, examples_of, scores, trained
from examples.torch_dlrm import DLRM
from examples.trainer import Plan, add_plan_options, plan_of
from rockbed import BloomFrequency, Frequency, PyInitializer, PyOptimizer, PyStorage, feature_column
from rockbed.server.frequency import Threshold
from rockbed.types import I64

SPREAD = 0.1  # embeddings begin uniformly within +-SPREAD, or with that variance where they are made of two rows


# --- kinds of tables ---


@dataclass(frozen=True)
class Size:
    """occurrences: int64[values], how often each value of a feature is in the training examples. dim: of embeddings.
    collisions: how many values share a remainder, or a bucket. frequent: how many occurrences are worth a row."""

    occurrences: I64
    dim: int
    collisions: int
    frequent: int

    @property
    def values(self) -> int:
        return len(self.occurrences)

    @property
    def rows(self) -> tuple[int, int]:
        """Of the tables of quotients and of remainders."""
        remainders = -(-self.values // self.collisions)
        return -(-self.values // remainders), remainders


Rows = Callable[[Any, bool], Any]
"""From ids int64[n], 0 .. values - 1, and whether to train, to embeddings [n, dim] that torch goes back through."""
Kind = Callable[[InRockbed, str, Size], Rows]
"""Makes the tables of a feature."""


def hashed(store: InRockbed, name: str, size: Size) -> Rows:
    rows = sum(size.rows)
    table = rockbed.torch.Embedding(store.group(name, size.dim, uniform(SPREAD)))
    return lambda ids, train: table.train(train)(ids % rows)


def quotient_remainder(operation: str, spread: float) -> Kind:
    def make(store: InRockbed, name: str, size: Size) -> Rows:
        widths = (size.dim // 2, size.dim - size.dim // 2) if operation == "concat" else (size.dim, size.dim)
        variable = rockbed.get_multihash_variable(
            name,
            list(zip(size.rows, widths, strict=True)),
            operation=operation,
            vocabulary=size.values,
            storage=store.storage,
            optimizer=PyOptimizer(name="adagrad", gamma=RATE),
            initializer=uniform(spread),
            seed=store.seed,
        )
        return lambda ids, train: variable.lookup(ids, train=train)

    return make


def adaptive(threshold: Callable[[Size], Threshold] | None) -> Kind:
    """threshold: of what the store counts; None = a mask says which values have rows of their own."""

    def make(store: InRockbed, name: str, size: Size) -> Rows:
        buckets = -(-size.values // size.collisions)
        column = feature_column.embedding_column(
            feature_column.categorical_column_with_adaptive_embedding("value", buckets),
            size.dim,
            initializer=uniform(SPREAD),
            name=name,
            threshold=None if threshold is None else threshold(size),
        )
        optimizer = PyOptimizer(name="adagrad", gamma=RATE)
        worth_a_row = torch.from_numpy(size.occurrences >= size.frequent)

        def rows(ids: Any, train: bool) -> Any:
            masks = {"value": worth_a_row[ids]} if threshold is None else None
            return rockbed.torch.input_layer(
                {"value": ids}, column, masks, storage=store.storage, optimizer=optimizer, train=train
            )

        return rows

    return make


def uniform(spread: float) -> PyInitializer:
    return PyInitializer(name="random_uniform", min=-spread, max=spread)


# Of two independent rows the variances add up, or are multiplied; that of +-a is a^2 / 3.
KINDS: dict[str, Kind | None] = {
    "full": None,
    "hashed": hashed,
    "quotient-remainder, add": quotient_remainder("add", SPREAD / 2**0.5),
    "quotient-remainder, mult": quotient_remainder("mult", (3 * SPREAD**2) ** 0.25),
    "quotient-remainder, concat": quotient_remainder("concat", SPREAD),
    "adaptive, by a mask": adaptive(None),
    "adaptive, counted": adaptive(lambda size: Frequency(enter=size.frequent)),
    "adaptive, Bloom filter": adaptive(lambda size: BloomFrequency(enter=size.frequent, capacity=size.values)),
}


# --- the model's tables ---


class Compressed(InRockbed):
    """Rows in a storage, those of features of many values by a kind of tables."""

    def __init__(self, storage: PyStorage, data: Split, plan: Plan, kind: Kind | None, options: "Options") -> None:
        super().__init__(storage, plan.seed)
        self._data = data
        self._kind = kind
        self._options = options

    def tables(self, prefix: str, features: Sequence[str], dim: int, initializer: PyInitializer) -> Any:
        columns = {name: self._data.train_keys[:, self._data.features.index(name)] for name in features}
        values = {name: np.unique(keys, return_counts=True) for name, keys in columns.items()}
        large = [name for name in features if len(values[name][0]) > self._options.threshold]
        if self._kind is None or not large:
            return super().tables(prefix, features, dim, initializer)
        compressed = {}
        for name in large:
            keys, occurrences = values[name]
            size = Size(occurrences, dim, self._options.collisions, self._options.frequent)
            compressed[name] = Numbered(keys, self._kind(self, f"{prefix}/{name}", size))
        small = {name: self.group(f"{prefix}/{name}", dim, initializer) for name in features if name not in large}
        return Mixed(features, Fused(small) if small else None, compressed)


class Numbered(nn.Module):
    """Numbers the known values of a feature, ascending, and looks their embeddings up. Others give zeros."""

    def __init__(self, keys: I64, rows: Rows) -> None:
        super().__init__()
        self._keys = keys
        self._rows = rows

    def forward(self, keys: Any) -> Any:
        place = np.searchsorted(self._keys, keys.numpy()).clip(max=len(self._keys) - 1)
        known = self._keys[place] == keys.numpy()
        return self._rows(torch.from_numpy(np.where(known, place, 0)), self.training) * torch.from_numpy(known)[:, None]


class Mixed(nn.Module):
    """Tables of several kinds in the order of the features: those of few values together, the others one by one."""

    def __init__(self, features: Sequence[str], small: Fused | None, compressed: dict[str, Numbered]) -> None:
        super().__init__()
        self._features = features
        self.small = small
        self.compressed = nn.ModuleList(compressed.values())
        self._large = [features.index(name) for name in compressed]
        self._few = [i for i, name in enumerate(features) if name not in compressed]
        self._order = [(self._few + self._large).index(i) for i in range(len(features))]

    def forward(self, keys: Any) -> Any:
        parts = [self.small(keys[:, self._few])] if self.small is not None else []
        parts += [table(keys[:, i])[:, None] for i, table in zip(self._large, self.compressed, strict=True)]
        return torch.cat(parts, dim=1)[:, self._order]


# --- the comparison ---


@dataclass(frozen=True)
class Options:
    """Features of more values than `threshold` are compressed; `collisions`, `frequent`: see Size."""

    threshold: int
    collisions: int
    frequent: int


@dataclass(frozen=True)
class Line:
    """What became of a kind of tables. rows, bytes: in the store. loss, auc: of what was held out."""

    rows: int
    bytes: int
    loss: float
    auc: float


def measured(target: str, data: Split, plan: Plan, kind: Kind | None, options: Options) -> Line:
    """Train a model in a new store."""
    with PyStorage(target) as storage:
        model, _ = trained(DLRM, Compressed(storage, data, plan, kind, options), data, plan)
        found = scores(model, data.test_keys, data.test_dense)
        rows, size = held(storage)
    return Line(rows, size, log_loss(found, data.test_labels), auc(found, data.test_labels))


def held(storage: PyStorage) -> tuple[int, int]:
    """The rows of all groups, and the bytes of their weights and optimizer state, and of what adaptive ones count."""
    groups = storage.stats()["groups"].values()
    sizes = [(each["rows"], PyOptimizer(name=each["optimizer"]).get_space(each["dim"])) for each in groups]
    counts = sum(each["adaptive"]["counts_bytes"] for each in groups if "adaptive" in each)
    return sum(rows for rows, _ in sizes), sum(4 * rows * width for rows, width in sizes) + counts


def table_of(lines: dict[str, Line]) -> str:
    """As markdown: what each line saves and gives up beside the full table."""
    full = lines["full"]
    text = [
        "| tables | rows | MB | saved | held-out loss | given up | AUC | given up |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, line in lines.items():
        beside = ["", "", ""]
        if line is not full:
            beside = [
                f"{1 - line.bytes / full.bytes:.1%}",
                f"{line.loss / full.loss - 1:+.2%}",
                f"{full.auc - line.auc:+.4f}",
            ]
        text.append(
            f"| {name} | {line.rows:,} | {line.bytes / 1e6:.2f} | {beside[0]} | {line.loss:.4f} | {beside[1]} "
            f"| {line.auc:.4f} | {beside[2]} |"
        )
    return "\n".join(text)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 2 when there is nothing to learn from."""
    parser = argparse.ArgumentParser(prog="python -m examples.compressed", description=(__doc__ or "").splitlines()[0])
    add_source_options(parser)
    add_plan_options(parser)
    parser.set_defaults(epochs=1)
    parser.add_argument("--threshold", type=int, default=500, help="compress from more values on (%(default)s)")
    parser.add_argument("--collisions", type=int, default=4, help="values that share a remainder (%(default)s)")
    parser.add_argument("--frequent", type=int, default=20, help="occurrences that are worth a row (%(default)s)")
    options = parser.parse_args(arguments)
    plan = plan_of(options)
    torch.set_num_threads(1)  # as in torch_comparison.run
    try:
        data = split(examples_of(options), plan.seed)
    except (ModuleNotFoundError, OSError, ValueError) as problem:
        print(problem)
        return 2
    lines = {}
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory(prefix="rockbed-compressed-") as directory:
            sizes = Options(options.threshold, options.collisions, options.frequent)
            lines[name] = measured(f"{directory}/store", data, plan, kind, sizes)
    print(table_of(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
