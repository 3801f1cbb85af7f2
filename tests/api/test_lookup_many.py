"""Lookups of several embeddings at once."""

from typing import Any

import numpy as np
import pytest

from rockbed import InvalidConfig, PyEmbedding, PyStorage, UnknownGroup, WrongDtype
from tests.api.helpers import SMALL, Clock, OpenStorage, embedding, keys_of, ones, push_in_pieces, uniform

COUNTS = ("rows", "inserts", "expired", "lookup_keys", "not_admitted", "misses", "push_keys")


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


@pytest.mark.parametrize("train", [True, False])
def test_padding_keys_expired_rows_new_keys_and_rows_on_disk_are_as_in_a_lookup_of_its_own(
    open_storage: OpenStorage, clock: Clock, train: bool
) -> None:
    n = 3_000
    keys = np.arange(2 * n)

    def tables(name: str) -> tuple[PyStorage, list[PyEmbedding]]:
        storage = open_storage(name, clock=clock, memory_budget=SMALL)
        options: list[dict[str, Any]] = [
            {"padding_key": 7},
            {"ttl": 10.0},
            {"miss_value": 3.0},
            {"admission": {"name": "min_count", "count": 2}},
            {"ttl": 100.0, "refresh": "lookup"},
        ]
        return storage, [embedding(storage, 4, group, **given) for group, given in enumerate(options)]

    (one, singly), (other, together) = tables("a"), tables("b")
    for rows in (*singly, *together):
        push_in_pieces(rows, keys[:n])
    clock.now += 8
    for rows in (*singly, *together):
        push_in_pieces(rows, keys[: n // 2])
    one.flush()
    other.flush()
    clock.now += 6
    asked = [*zip(together, [keys] * 5, strict=True), (together[0], keys[::-1].copy())]
    expected = [rows.lookup(keys, train=train) for rows in singly]
    for i, found in enumerate(other.lookup(asked, train=train)):
        np.testing.assert_array_equal(found, expected[i] if i < 5 else expected[0][::-1])
    if train:
        push_in_pieces(together[3], keys)
        push_in_pieces(singly[3], keys)
        np.testing.assert_array_equal(together[3].lookup(keys, train=False), singly[3].lookup(keys, train=False))
    for group in (1, 2, 3, 4):
        mine, theirs = (storage.stats()["groups"][group] for storage in (one, other))
        assert {name: mine[name] for name in COUNTS} == {name: theirs[name] for name in COUNTS}
