"""Which new keys get a row, and what the others are given meanwhile."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import Parameters
from rockbed.types import Bool
from tests.api.helpers import (
    SMALL,
    OpenStorage,
    as_after_kill,
    assert_sound,
    embedding,
    keys_of,
    ones,
    push_in_pieces,
    uniform,
)

THREE: dict[str, Any] = {"name": "min_count", "count": 3}
BLOOM: dict[str, Any] = {"name": "counting_bloom", "count": 3, "capacity": 10_000, "fpr": 1e-4}


@pytest.mark.parametrize("rule", [THREE, BLOOM])
def test_a_key_is_admitted_at_its_nth_sighting_whether_across_calls_or_within_one(
    open_storage: OpenStorage, rule: dict[str, Any]
) -> None:
    storage = open_storage()
    rows = embedding(storage, initializer=uniform(), admission=rule)
    assert not rows.lookup(keys_of(1, 2, 2)).any()
    assert storage.stats()["groups"][0]["not_admitted"] == 3
    got = rows.lookup(keys_of(1, 2, 3, 3, 3))  # key 2 for the third time, key 3 three times at once
    assert [bool(row.any()) for row in got] == [False, True, True, True, True]
    assert storage.stats()["rows"] == 2
    assert rows.lookup(keys_of(1)).any()
    assert storage.stats()["groups"][0]["not_admitted"] == 4
    assert_sound(storage)


@pytest.mark.parametrize("rule", [THREE, BLOOM])
def test_lookups_without_training_do_not_count(open_storage: OpenStorage, rule: dict[str, Any]) -> None:
    rows = embedding(open_storage(), initializer=uniform(), admission=rule)
    for _ in range(5):
        assert not rows.lookup(keys_of(1, 1), train=False).any()
    assert not rows.lookup(keys_of(1, 1)).any()
    assert rows.lookup(keys_of(1)).any()


def test_each_sighting_admits_with_the_probability_given_and_the_same_everywhere(open_storage: OpenStorage) -> None:
    keys = np.arange(20_000) - 10_000
    rule = {"name": "probability", "p": 0.2}
    rows = embedding(open_storage(), initializer=uniform(), admission=rule)
    first: Bool = np.asarray(rows.lookup(keys).any(axis=1))
    second: Bool = np.asarray(rows.lookup(keys).any(axis=1))
    # five standard deviations of a binomial share of 20,000
    assert abs(first.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 20_000)
    assert abs(second.mean() - 0.36) < 5 * np.sqrt(0.36 * 0.64 / 20_000)
    assert second[first].all()
    other = embedding(open_storage("other", memory_budget=SMALL), initializer=uniform(), admission=rule)
    np.testing.assert_array_equal(np.asarray(other.lookup(keys[::-1]).any(axis=1))[::-1], first)
    elsewhere = embedding(open_storage("seeded"), initializer=uniform(), admission=rule, seed=1)
    assert (elsewhere.lookup(keys).any(axis=1) != first).any()


def test_a_bloom_filter_admits_hardly_any_key_too_early_and_none_too_late(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, initializer=uniform(), admission={**BLOOM, "fpr": 0.01})
    keys = np.arange(10_000)
    early = rows.lookup(keys).any(axis=1) | rows.lookup(keys).any(axis=1)
    assert early.mean() < 0.02
    assert rows.lookup(keys).any(axis=1).all()
    assert 0 < storage.stats()["groups"][0]["admission_bytes"] < 100_000


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0.0), (2.5, 2.5), (-1, -1.0)])
def test_an_unadmitted_key_gives_the_number_asked_for(open_storage: OpenStorage, value: float, expected: float) -> None:
    rows = embedding(open_storage(), initializer=uniform(), admission=THREE, unadmitted_value=value, miss_value=7.0)
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2)), np.full((2, 4), expected))
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2), train=False), np.full((2, 4), 7.0))


def test_an_unadmitted_or_missing_key_may_give_the_row_that_it_would_begin_with(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(
        storage,
        initializer=uniform(),
        seed=5,
        admission=THREE,
        unadmitted_value="initializer",
        miss_value="initializer",
    )
    first = rows.lookup(keys_of(1, 2))
    missed = rows.lookup(keys_of(2, 1, 9), train=False)
    assert storage.stats()["rows"] == 0
    np.testing.assert_array_equal(missed[[1, 0]], first)
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 1)), first[[0, 0]])
    assert storage.stats()["rows"] == 1
    np.testing.assert_array_equal(rows.lookup(keys_of(9, 9, 9)), missed[[2, 2, 2]])


@pytest.mark.parametrize("absent", ["init", "skip"])
def test_a_push_to_an_unadmitted_key_is_dropped_counted_and_no_sighting(open_storage: OpenStorage, absent: str) -> None:
    storage = open_storage()
    rows = embedding(storage, admission=THREE, absent=absent)
    rows.lookup(keys_of(1, 2, 2, 2))
    rows.apply_gradients(keys_of(1, 2, 1), ones(3))
    np.testing.assert_array_equal(rows.lookup(keys_of(1, 2), train=False), [[0] * 4, [-0.5] * 4])
    stats = storage.stats()["groups"][0]
    assert stats["skipped_unadmitted"] + stats["skipped_absent"] == 2
    assert stats["skipped_unadmitted" if absent == "init" else "skipped_absent"] == 2
    assert stats["rows"] == 1
    rows.lookup(keys_of(1))
    assert storage.stats()["rows"] == 1  # its second sighting: neither the push nor the reading counted
    rows.lookup(keys_of(1))
    assert storage.stats()["rows"] == 2
    assert_sound(storage)


@pytest.mark.parametrize("rule", [THREE, BLOOM])
def test_counts_and_admitted_keys_outlive_reopening_and_restoring(
    open_storage: OpenStorage, tmp_path: Path, rule: dict[str, Any]
) -> None:
    storage = open_storage()
    rows = embedding(storage, admission=rule)
    rows.lookup(keys_of(1, 1, 2, 2, 2))
    rows.apply_gradients(keys_of(2), ones(1))
    storage.checkpoint(tmp_path / "checkpoint")
    storage.close()
    type(storage).restore(tmp_path / "checkpoint", tmp_path / "restored")
    for name in ("store", "restored"):
        again = open_storage(name)
        rows = embedding(again, admission=rule, unadmitted_value=9.0)
        np.testing.assert_array_equal(rows.lookup(keys_of(2, 3))[:, 0], [-0.5, 9])
        np.testing.assert_array_equal(rows.lookup(keys_of(1))[:, 0], [0])  # its third sighting
        assert again.stats()["rows"] == 2


def test_admitted_rows_outlive_a_kill(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    rows = embedding(storage, admission=THREE)
    rows.lookup(keys_of(2, 2, 2))
    rows.apply_gradients(keys_of(2), ones(1))
    killed = open_storage(str(as_after_kill(storage, tmp_path / "killed")))
    np.testing.assert_array_equal(embedding(killed, admission=THREE).lookup(keys_of(2)), [[-0.5] * 4])


def test_admission_works_with_more_rows_than_memory_holds(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=SMALL)
    rows = embedding(storage, admission={"name": "min_count", "count": 2}, unadmitted_value=3.0)
    keys = np.arange(5_000)
    np.testing.assert_array_equal(rows.lookup(keys)[:, 0], np.full(5_000, 3.0))
    np.testing.assert_array_equal(rows.lookup(keys[:4_000])[:, 0], np.zeros(4_000))
    push_in_pieces(rows, keys)
    stats = storage.stats()["groups"][0]
    assert (stats["rows"], stats["inserts"], stats["skipped_unadmitted"]) == (4_000, 4_000, 1_000)
    np.testing.assert_array_equal(rows.lookup(keys)[:, 0], np.where(keys < 4_000, -0.5, 0))
    assert_sound(storage)


def test_a_rule_may_be_given_as_parameters(open_storage: OpenStorage) -> None:
    params = Parameters()
    params.insert("name", "min_count")
    params.insert("count", 2)
    rows = embedding(open_storage(), initializer=uniform(), admission=params)
    assert [bool(rows.lookup(keys_of(1)).any()) for _ in range(2)] == [False, True]
