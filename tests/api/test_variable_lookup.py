"""Sparse lookups of variables against TensorFlow's rules in float64, forward and back, on one storage and several."""

from itertools import product
from typing import Any

import numpy as np
import pytest

import rockbed
from rockbed import (
    InvalidBackward,
    InvalidConfig,
    KvVariable,
    PyStorage,
    SparseTensor,
    WrongDtype,
    WrongShape,
    embedding_lookup_sparse,
    safe_embedding_lookup_sparse,
)
from rockbed.client.hashing import fingerprint64
from rockbed.types import F32, F64, I64
from tests.api.helpers import OpenStorage, ones
from tests.api.variables import initial, storages, variable

MAX_NORM = 1.2  # rows of dim 4, uniform on -1..1, are longer or shorter
SETTINGS = list(product(("sum", "mean", "sqrtn"), (False, True), (None, MAX_NORM)))
settings = pytest.mark.parametrize(("combiner", "weighted", "max_norm"), SETTINGS)

Bags = list[list[tuple[int, float]]]
"""The ids of each row and their weights."""


def sparse_ids(weighted: bool, *, positive: bool = False, seed: int = 6) -> tuple[SparseTensor, SparseTensor | None]:
    """[2, 4, 6]: two empty rows, one of ids below 0 alone, ids that repeat; weights of both signs, and 0."""
    random = np.random.default_rng(seed)
    indices, values = [], []
    for a, b in np.ndindex(2, 4):
        n = 0 if (a, b) in ((0, 1), (1, 3)) else int(random.integers(1, 6))
        indices += [[a, b, place] for place in range(n)]
        values += random.integers(-3 if (a, b) != (1, 0) else -9, 0 if (a, b) == (1, 0) else 12, n).tolist()
    shape = [2, 4, 6]
    ids = SparseTensor(np.array(indices), np.array(values), shape)
    if not weighted:
        return ids, None
    weights = random.choice(np.array([0.25, 1, 3] if positive else [-1.5, 0, 0.25, 1, 3], np.float32), len(values))
    return ids, SparseTensor(np.array(indices), weights, shape)


def bags_of(ids: SparseTensor, weights: SparseTensor | None, combiner: str, default: int | None, safe: bool) -> Bags:
    """What each row holds: of the safe form those of all axes but the last, else of the first."""
    rows = list(np.ndindex(*ids.dense_shape[:-1])) if safe else [(a,) for a in range(ids.dense_shape[0])]
    bags: Bags = [[] for _ in rows]
    for i, place in enumerate(ids.indices.tolist()):
        weight = 1.0 if weights is None else float(weights.values[i])
        if not safe or (ids.values[i] >= 0 and (weight > 0 or combiner == "sum")):
            bags[rows.index(tuple(place[: len(rows[0])]))].append((int(ids.values[i]), weight))
    return [bag or ([] if default is None else [(default, 1.0)]) for bag in bags]


def combined(bags: Bags, row_of: dict[int, F64], combiner: str, max_norm: float | None) -> F64:
    out = np.zeros((len(bags), 4))
    for b, bag in enumerate(bags):
        for key, weight in bag:
            norm = np.sqrt((row_of[key] ** 2).sum())
            out[b] += weight * row_of[key] * (1 if max_norm is None or norm <= max_norm else max_norm / norm)
        squares, total = sum(w * w for _, w in bag), sum(w for _, w in bag)
        divisor = {"sum": 1.0, "mean": total, "sqrtn": squares**0.5}[combiner]
        out[b] = out[b] / divisor if divisor else 0.0
    return out


def slopes(bags: Bags, row_of: dict[int, F64], combiner: str, max_norm: float | None, grads: F64) -> dict[int, F64]:
    """The gradient of each row, by differences."""
    found: dict[int, F64] = {}
    for key in {key for bag in bags for key, _ in bag}:
        found[key] = np.zeros(4)
        for j in range(4):
            step = np.eye(4)[j] * 1e-6
            high = combined(bags, {**row_of, key: row_of[key] + step}, combiner, max_norm)
            low = combined(bags, {**row_of, key: row_of[key] - step}, combiner, max_norm)
            found[key][j] = ((high - low) * grads).sum() / 2e-6
    return found


def rows_of(of: KvVariable, keys: I64) -> dict[int, F64]:
    distinct = sorted({*keys.tolist(), 0, 7})
    return dict(zip(distinct, initial(of, *distinct).astype(np.float64), strict=True))


@settings
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("safe", [False, True])
def test_sparse_lookups_and_their_gradients_are_as_in_float64(
    open_storage: OpenStorage, combiner: str, weighted: bool, max_norm: float | None, count: int, safe: bool
) -> None:
    rows = variable(storages(open_storage, count))
    for default, positive in ((None, False), (7, True)):
        ids, weights = sparse_ids(weighted, positive=positive)
        bags = bags_of(ids, weights, combiner, default if safe else None, safe)
        row_of = rows_of(rows, ids.values)
        if safe:
            out = safe_embedding_lookup_sparse(rows, ids, weights, combiner, default, max_norm)
        else:
            out = embedding_lookup_sparse(rows, ids, weights, combiner, max_norm)
        shape = (2, 4, 4) if safe else (2, 4)
        assert (out.shape, out.dtype) == (shape, np.float32)
        wanted = combined(bags, row_of, combiner, max_norm)
        np.testing.assert_allclose(out, wanted.reshape(shape), rtol=1e-5, atol=2e-6)
        grads = np.random.default_rng(8).normal(size=shape).astype(np.float32)
        assert out.apply_gradients(grads)
        for key, slope in slopes(bags, row_of, combiner, max_norm, grads.reshape(-1, 4).astype(np.float64)).items():
            np.testing.assert_allclose(rows.lookup([key])[0], row_of[key] - slope, rtol=1e-4, atol=2e-5)
        with pytest.raises(InvalidBackward, match="has been applied"):
            out.apply_gradients(grads)
        rows.drop()
        rows = variable(rows.storages)


@pytest.mark.parametrize("count", [1, 2])
def test_a_row_without_ids_is_zeros_and_has_no_gradient_unless_it_has_a_default(
    open_storage: OpenStorage, count: int
) -> None:
    rows = variable(storages(open_storage, count))
    ids = SparseTensor(np.array([[1, 0]]), np.array([-5]), [4, 2])
    out = safe_embedding_lookup_sparse(rows, ids)
    assert not out.any()
    out.apply_gradients(ones(4))
    assert sum(storage.stats()["rows"] for storage in rows.storages) == 0  # TensorFlow would have looked up id 0
    filled = safe_embedding_lookup_sparse(rows, ids, default_id=7)
    np.testing.assert_array_equal(filled, np.repeat(initial(rows, 7), 4, axis=0))
    filled.apply_gradients(ones(4))
    np.testing.assert_allclose(rows.lookup([7]), initial(rows, 7) - 4, rtol=1e-6)
    plain = embedding_lookup_sparse(rows, ids)
    np.testing.assert_array_equal(plain[1:2], initial(rows, -5))
    assert not plain[[0, 2, 3]].any()


@pytest.mark.parametrize("count", [1, 2])
def test_ids_that_have_no_sign_are_never_pruned(open_storage: OpenStorage, count: int) -> None:
    places = storages(open_storage, count)
    at = np.array([[0, 0], [1, 0]])
    unsigned = variable(places, "unsigned", key_dtype=np.uint64)
    out = safe_embedding_lookup_sparse(unsigned, SparseTensor(at, np.array([2**64 - 1, 3], np.uint64), [3, 1]))
    np.testing.assert_array_equal(out, [*initial(unsigned, 2**64 - 1, 3), np.zeros(4)])
    words = variable(places, "words", key_dtype=str)
    keys = fingerprint64(["b", "a", "else"]).tolist()
    out = safe_embedding_lookup_sparse(words, SparseTensor(at, np.array(["b", "a"]), [3, 1]), default_id="else")
    np.testing.assert_array_equal(out, initial(words, *keys))


@pytest.mark.parametrize("count", [1, 2])
def test_a_padding_key_stands_for_nothing(open_storage: OpenStorage, count: int) -> None:
    rows = variable(storages(open_storage, count), padding_key=5)
    ids = SparseTensor(np.array([[0, 0], [0, 1], [1, 0]]), np.array([5, 8, 5]), [2, 2])
    for lookup in (embedding_lookup_sparse, safe_embedding_lookup_sparse):
        np.testing.assert_array_equal(lookup(rows, ids), [initial(rows, 8)[0], np.zeros(4)])


@pytest.mark.parametrize("count", [1, 2])
def test_a_sparse_lookup_without_training_makes_no_rows(open_storage: OpenStorage, count: int) -> None:
    rows = variable(storages(open_storage, count))
    ids, _ = sparse_ids(False)
    found = safe_embedding_lookup_sparse(rows, ids, train=False)
    assert found.any()
    assert sum(storage.stats()["rows"] for storage in rows.storages) == 0
    with pytest.raises(InvalidBackward, match="train=False"):
        found.apply_gradients(np.ones((2, 4, 4), np.float32))


def test_what_a_sparse_lookup_cannot_be_is_an_error(storage: PyStorage) -> None:
    rows = variable(storage)
    at = np.array([[0, 0], [1, 0]])
    ids = SparseTensor(at, np.array([1, 2]), [2, 1])

    def weights(values: Any, where: I64 = at, shape: tuple[int, int] = (2, 1)) -> SparseTensor:
        return SparseTensor(where, values, shape)

    full: F32 = np.ones(2, np.float32)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"combiner": "avg"}, InvalidConfig, "combiner is 'avg', not one of sum, mean, sqrtn"),
        ({"combiner": None}, InvalidConfig, "combiner is None"),
        ({"max_norm": 0.0}, InvalidConfig, "max_norm"),
        ({"sp_ids": np.array([[1, 2]])}, WrongDtype, "sp_ids is a ndarray, not a rockbed.SparseTensor"),
        ({"sp_ids": SparseTensor(at, np.array(["a", "b"]), [2, 1])}, WrongDtype, "has int64 keys"),
        ({"sp_weights": full}, WrongDtype, "sp_weights is a ndarray"),
        ({"sp_weights": weights(full, np.array([[0, 0], [0, 1]]), (2, 2))}, WrongShape, "other indices"),
        ({"sp_weights": weights(full, shape=(3, 1))}, WrongShape, "other indices"),
        ({"sp_weights": weights(np.ones(2))}, WrongDtype, "float32, not float64"),
        ({"sp_weights": weights(full * np.float32(np.nan))}, InvalidConfig, "NaN"),
    ]
    for given, error, message in cases:
        for lookup in (embedding_lookup_sparse, safe_embedding_lookup_sparse):
            with pytest.raises(error, match=message):
                lookup(rows, **{"sp_ids": ids, **given})
    for default in ("a", 2.0, [1], 2**63):
        with pytest.raises(WrongDtype, match=r"default_id is .*not a key of variable 'test/rows'"):
            safe_embedding_lookup_sparse(rows, ids, default_id=default)
    anything: list[Any] = [rows.embedding, None]
    for what in anything:
        for find in (rockbed.embedding_lookup, embedding_lookup_sparse, safe_embedding_lookup_sparse):
            with pytest.raises(WrongDtype, match="see rockbed"):
                find(what, ids)
    assert storage.stats()["rows"] == 0


def test_triples_out_of_order_or_of_the_shape_are_an_error(storage: PyStorage) -> None:
    rows = variable(storage)
    for indices, shape in (([[1, 0], [0, 0]], [2, 1]), ([[0, 0], [2, 0]], [2, 1]), ([[0, 0]], [2, 1])):
        with pytest.raises(WrongShape):
            safe_embedding_lookup_sparse(rows, SparseTensor(np.array(indices), np.array([1, 2]), shape))
