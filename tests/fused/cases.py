"""Features of every combination of settings, batches with every kind of bag, and what training makes of them."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from rockbed import Feature, FusedEmbedding, FusedOutput, PyEmbedding, PyStorage, Ragged
from rockbed.types import F32, F64
from tests.api.helpers import embedding, keys_of, uniform
from tests.api.model import Model, Row
from tests.fused import reference

PADDING = 5
MAX_NORM = 0.8  # rows of dim 3, uniform on -1..1, are mostly longer, some shorter
SIGNED = [-(2**63), -2, -1, 0, 1, 2, 3, 4, PADDING, 2**40, 2**63 - 1]
UNSIGNED = [0, 1, 2, 3, 4, PADDING, 2**40, 2**63 + 1, 2**64 - 1]


def two_tables(storage: PyStorage, **options: Any) -> list[PyEmbedding]:
    """Groups of dims 3, with a padding key, and 8. Rows begin at random; lookups without training find them so, too."""
    options = {"initializer": uniform(), "miss_value": "initializer", **options}
    return [embedding(storage, 3, 1, padding_key=PADDING, **options), embedding(storage, 8, 2, **options)]


def every_feature(tables: Sequence[PyEmbedding]) -> list[Feature]:
    """One for each combination of settings and each table; those whose name has "weighted" in it are for bags with
    weights."""
    features = []
    for table in tables:
        for combiner, weights, max_norm, default in product(
            ("sum", "mean", "sqrtn"), ("weighted", "plain"), (None, MAX_NORM), (None, 2)
        ):
            name = f"{table.group}-{combiner}-{weights}-{max_norm}-{default}"
            features.append(Feature(name, table, combiner, max_norm=max_norm, default_key=default))
        for max_norm, prune in product((None, MAX_NORM), (True, False)):
            name = f"{table.group}-sequence-plain-{max_norm}-{prune}"
            features.append(Feature(name, table, None, max_norm=max_norm, prune_negative=prune))
        features.append(Feature(f"{table.group}-negative-weighted", table, "mean", prune_negative=False))
    return features


def random_bags(random: np.random.Generator, size: int, *, unsigned: bool, weighted: bool) -> Ragged:
    """Bags of 0 to 5 keys out of few; the first has none, the second one that is pruned wherever pruning is on."""
    pool = np.array(UNSIGNED, np.uint64) if unsigned else np.array(SIGNED, np.int64)
    counts = random.integers(0, 6, size)
    counts[:2] = [0, 1][:size]
    offsets = np.concatenate([[0], counts.cumsum()])
    keys: Any = random.choice(pool, int(offsets[-1]))
    weights = random.choice(np.array([-1.5, 0, 0.25, 1, 3], np.float32), keys.size) if weighted else None
    if keys.size:
        keys[0] = PADDING if unsigned else -1
    return Ragged(keys, offsets, weights)


def random_batch(
    random: np.random.Generator, features: Sequence[Feature], size: int, *, unsigned: bool = False
) -> dict[str, Ragged]:
    return {
        each.name: random_bags(random, size, unsigned=unsigned, weighted="weighted" in each.name) for each in features
    }


def rows_of(table: PyEmbedding) -> Callable[[int], F64]:
    """The weights of a key as they are now, for the specification."""
    known: dict[int, F64] = {}

    def row_of(key: int) -> F64:
        if key not in known:
            known[key] = table.lookup(keys_of(key), train=False)[0].astype(np.float64)
        return known[key]

    return row_of


def assert_as_specified(features: Sequence[Feature], batch: dict[str, Ragged], out: FusedOutput) -> None:
    """What was found is what the specification makes of the rows as they are now."""
    for each in features:
        wanted = reference.forward(each, batch[each.name], rows_of(each.embedding))
        # float32 sums of some ten rows against float64
        np.testing.assert_allclose(out[each.name], wanted, rtol=1e-5, atol=2e-6, err_msg=each.name)


def random_gradients(random: np.random.Generator, out: FusedOutput) -> tuple[F32, dict[str, F32]]:
    """Of the shapes of an output: pooled, and by sequence."""
    pooled = random.normal(size=out.pooled.shape).astype(np.float32)
    return pooled, {name: random.normal(size=rows.shape).astype(np.float32) for name, rows in out.sequences.items()}


class Specification:
    """What the rows of a fused embedding's groups become by pushes, with SGD or Adagrad at a rate of 0.5."""

    def __init__(self, fused: FusedEmbedding, *, adagrad: bool = False, sequential: bool = False) -> None:
        self.fused = fused
        self.sequential = sequential
        self.tables = {each.embedding.group: each.embedding for each in fused.features}
        self.models = {group: Model(table.dim, adagrad=adagrad) for group, table in self.tables.items()}

    def weights(self, group: int, key: int) -> F64:
        """A row's weights. One that was not pushed yet is as the store has it, or would begin it (two_tables)."""
        rows = self.models[group].rows
        if key not in rows:
            found = self.tables[group].lookup(keys_of(key), train=False)[0].astype(np.float64)
            rows[key] = Row(found, np.zeros(found.size))
        return rows[key].weights

    def push(self, batch: dict[str, Ragged], pooled: F32, sequences: dict[str, F32]) -> None:
        """To be called before the same push to the store."""
        occurrences: dict[int, list[tuple[int, F64]]] = {group: [] for group in self.tables}
        for each in self.fused.features:
            group, columns = each.embedding.group, self.fused.columns.get(each.name)
            arriving = sequences[each.name] if columns is None else pooled[:, columns]
            row_of = partial(self.weights, group)
            occurrences[group] += reference.backward(each, batch[each.name], row_of, arriving.astype(np.float64))
        for group, found in occurrences.items():
            sums: dict[int, F64] = {}
            for key, gradient in found:
                if self.sequential:
                    self.models[group].step(key, gradient)
                else:
                    sums[key] = sums.get(key, np.zeros(gradient.size)) + gradient
            for key, total in sums.items():
                self.models[group].step(key, total)

    def assert_met(self) -> None:
        """The store has these rows."""
        for group, model in self.models.items():
            keys = keys_of(*model.rows)
            found = self.tables[group].lookup(keys, train=False)
            # float32 sums of some hundred gradients of about 1 against float64
            np.testing.assert_allclose(found, model.weights(keys), rtol=1e-4, atol=1e-4, err_msg=f"group {group}")
