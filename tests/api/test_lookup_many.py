"""Lookups of several embeddings at once."""

from typing import Any

import numpy as np
import pytest

from rockbed import InvalidConfig, PyStorage, UnknownGroup, WrongDtype
from tests.api.helpers import OpenStorage, embedding, keys_of, ones, uniform


def test_each_gets_what_a_lookup_of_its_own_gives(storage: PyStorage) -> None:
    tables = [embedding(storage, dim, dim, initializer=uniform()) for dim in (1, 4, 9)]
    random = np.random.default_rng(1)
    keys = [random.integers(-50, 50, n) for n in (30, 0, 70)]
    found = storage.lookup(list(zip(tables, keys, strict=True)))
    for table, own, got in zip(tables, keys, found, strict=True):
        assert got.shape == (own.size, table.dim)
        np.testing.assert_array_equal(got, table.lookup(own))
    assert storage.lookup([]) == []
    assert storage.stats()["rows"] == np.unique(keys[0]).size + np.unique(keys[2]).size


def test_one_embedding_may_stand_there_twice_and_serving_makes_no_rows(storage: PyStorage) -> None:
    rows = embedding(storage, miss_value=3.0)
    rows.apply_gradients(keys_of(1), ones(1))
    one, two = storage.lookup([(rows, keys_of(1)), (rows, keys_of(2).astype(np.uint64))], train=False)
    assert (one[0, 0], two[0, 0]) == (-0.5, 3.0)
    assert storage.stats()["rows"] == 1


@pytest.mark.parametrize("item", [5, (1, 2), ("x",)])
def test_what_is_no_lookup_is_refused(storage: PyStorage, item: Any) -> None:
    with pytest.raises(WrongDtype, match=r"list of \(PyEmbedding, keys\)"):
        storage.lookup([item])


def test_embeddings_of_another_storage_and_dropped_ones_are_refused(open_storage: OpenStorage) -> None:
    storage, other = open_storage("a"), open_storage("b")
    mine, strange = embedding(storage), embedding(other)
    with pytest.raises(InvalidConfig, match="another storage"):
        storage.lookup([(mine, keys_of(1)), (strange, keys_of(1))])
    gone = embedding(storage, group=3)
    storage.drop_group(3)
    with pytest.raises(UnknownGroup):
        storage.lookup([(mine, keys_of(1)), (gone, keys_of(1))])
    assert storage.stats()["rows"] == 0  # nothing is made for any unless all can be
