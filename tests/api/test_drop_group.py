"""Dropping a group: its rows are gone at once and for good, and its number is free."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import (
    AdaptiveEmbedding,
    Feature,
    FusedEmbedding,
    PyEmbedding,
    PyStorage,
    Ragged,
    ReadOnlyStorage,
    RockbedError,
    UnknownGroup,
)
from rockbed.reports import RowStatus
from tests.api.helpers import (
    SMALL,
    OpenStorage,
    as_after_kill,
    assert_sound,
    embedding,
    engine_of,
    keys_of,
    ones,
    push_in_pieces,
    sgd,
    zeros,
)


def test_a_dropped_group_is_unknown_and_the_others_stay(storage: PyStorage) -> None:
    gone, kept = embedding(storage, group=1), embedding(storage, group=2)
    for rows in (gone, kept):
        rows.apply_gradients(np.arange(10), ones(10))
    assert storage.drop_group(1) == 10
    assert list(storage.groups()) == [2]
    for call in (lambda: gone.lookup(keys_of(1)), lambda: gone.apply_gradients(keys_of(1), ones(1))):
        with pytest.raises(UnknownGroup, match=r"1.*(known: 2|dropped)"):
            call()
    assert (kept.lookup(np.arange(10)) == -0.5).all()
    with pytest.raises(UnknownGroup):
        storage.drop_group(1)
    assert_sound(storage)


@pytest.mark.parametrize("dim", [4, 9])
def test_its_number_is_free_for_another_group(open_storage: OpenStorage, dim: int) -> None:
    storage = open_storage(memory_budget=SMALL)
    push_in_pieces(embedding(storage, 32), np.arange(2_000))
    storage.drop_group(0)
    rows = embedding(storage, dim, seed=3)
    assert not rows.lookup(np.arange(2_000), train=False).any()
    assert storage.stats()["rows"] == 0
    rows.apply_gradients(keys_of(7), ones(1, dim))
    storage.flush()
    assert (rows.lookup(keys_of(7)) == -0.5).all()
    assert_sound(storage)


def test_who_has_the_old_group_open_is_not_given_rows_of_another_width(storage: PyStorage) -> None:
    old = embedding(storage, 4)
    storage.drop_group(0)
    embedding(storage, 8)
    with pytest.raises(UnknownGroup):
        old.lookup(keys_of(1))
    with pytest.raises(UnknownGroup):
        old.apply_gradients(keys_of(1), ones(1))


def _calls(storage: PyStorage, rows: PyEmbedding) -> list[Callable[[], object]]:
    """Every call that a group is opened for."""
    keys, grads = keys_of(1), ones(1)
    fused = FusedEmbedding([Feature("pooled", rows), Feature("sequence", rows, combiner=None)])
    bags = Ragged.from_lists([[1]])
    batch = {"pooled": bags, "sequence": bags}
    kept = fused.lookup(batch)
    return [
        lambda: rows.lookup(keys),
        lambda: rows.lookup(keys, train=False),
        lambda: rows.lookup_async(keys).result(),
        lambda: rows.prefetch(keys),
        lambda: rows.apply_gradients(keys, grads),
        lambda: rows.apply_gradients_async(keys, grads).result(),
        lambda: rows.alter(ttl=5),
        lambda: storage.lookup([(rows, keys)]),
        lambda: storage.apply_gradients([(rows, keys, grads)]),
        lambda: fused.lookup(batch, train=False),
        lambda: fused.apply_gradients(batch, grads, {"sequence": grads}),
        lambda: fused.apply_gradients(kept, grads, {"sequence": grads}),
        rows.drop,
    ]


@pytest.mark.parametrize("group", [0, "rows"])
def test_who_has_the_old_group_open_is_not_given_rows_of_another_one_of_its_number(
    storage: PyStorage, group: int | str
) -> None:
    old = embedding(storage, group=group)
    calls = _calls(storage, old)
    for call in calls[:-1]:
        call()
    assert old.exists()
    storage.drop_group(old.group)
    assert not old.exists()
    new = embedding(storage, group=group)
    assert (new.group, new.config) == (old.group, replace(old.config, ttl_s=None))
    new.apply_gradients(keys_of(1), ones(1))
    for call in calls:
        with pytest.raises(UnknownGroup, match="another one than was opened"):
            call()
    assert (new.lookup(keys_of(1)) == -0.5).all()
    assert (new.exists(), old.exists()) == (True, False)
    assert new.drop() == 1
    assert_sound(storage)


def test_a_part_of_an_adaptive_embedding_that_was_made_anew_is_not_taken_for_the_old_one(storage: PyStorage) -> None:
    def opened() -> AdaptiveEmbedding:
        return AdaptiveEmbedding(storage, sgd(), zeros(), 4, "item", buckets=8)

    old = opened()
    old.lookup(keys_of(1), [1]).apply_gradients(ones(1))
    for part in (old.exact, old.static):
        storage.drop_group(part.group)
        new = opened()
        assert (new.static.group, new.exact.group) == (old.static.group, old.exact.group)
        with pytest.raises(UnknownGroup, match="another one than was opened"):
            old.lookup(keys_of(1), [0])
        old = new


@pytest.mark.parametrize("flushed", [False, True])
def test_a_group_is_the_same_one_after_a_kill_and_as_a_checkpoint_has_it(
    open_storage: OpenStorage, tmp_path: Path, flushed: bool
) -> None:
    storage = open_storage()
    storage.flush()
    first = embedding(storage)
    storage.checkpoint(tmp_path / "first")
    storage.drop_group(0)
    second = embedding(storage)
    second.alter(ttl=5)
    if flushed:
        storage.flush()
    with PyStorage(as_after_kill(storage, tmp_path / "image")) as again:
        assert embedding(again, ttl=5).generation == second.generation != first.generation
    storage.restore_from(tmp_path / "first")
    assert (first.exists(), second.exists()) == (True, False)
    first.lookup(keys_of(1))
    with pytest.raises(UnknownGroup, match="restore_from"):
        second.lookup(keys_of(1))


@pytest.mark.parametrize("flushed", [False, True])
def test_a_drop_survives_a_kill(open_storage: OpenStorage, tmp_path: Path, flushed: bool) -> None:
    storage = open_storage()
    embedding(storage, 4).apply_gradients(np.arange(100), ones(100))
    embedding(storage, 4, group=65_535).apply_gradients(np.arange(100), ones(100))
    if flushed:
        storage.flush()
    storage.drop_group(0)
    storage.drop_group(65_535)
    embedding(storage, 8).apply_gradients(keys_of(5), ones(1, 8))
    image = as_after_kill(storage, tmp_path / "image")
    with PyStorage(image) as again:
        assert list(again.groups()) == [0]
        assert again.get_rows(0, keys_of(5, 6)).status.tolist() == [RowStatus.PRESENT, RowStatus.ABSENT]
        assert_sound(again)


@pytest.mark.embedded
def test_a_drop_that_only_the_journal_has_is_repeated_at_the_next_opening(
    open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(np.arange(100), ones(100))
    storage.flush()
    engine = engine_of(storage)

    def full() -> int:
        raise RockbedError("no room")

    monkeypatch.setattr(engine, "flush", full)
    storage.drop_group(0)
    image = as_after_kill(storage, tmp_path / "image")
    with PyStorage(image, read_only=True) as reader:
        assert reader.groups() == {}
        assert_sound(reader)
    with PyStorage(image) as again:
        assert again.groups() == {}
        assert not embedding(again, 6).lookup(np.arange(100), train=False).any()
        assert_sound(again)
    # until the flush, nobody may make a new group of this number
    with pytest.raises(RockbedError, match="no room"):
        embedding(storage, 6)
    monkeypatch.undo()
    embedding(storage, 6)


def test_the_counts_of_its_admission_rule_go_too(storage: PyStorage) -> None:
    options: dict[str, Any] = {"admission": {"name": "min_count", "count": 3}}
    embedding(storage, **options).lookup(keys_of(1, 1))
    storage.flush()
    storage.drop_group(0)
    assert not embedding(storage, **options).lookup(keys_of(1)).any()
    report = storage.get_rows(0, keys_of(1))
    assert report.explain(0) == "not admitted: 1 sightings of 3"


def test_memory_is_given_back(open_storage: OpenStorage) -> None:
    storage = open_storage()
    embedding(storage, 64).lookup(np.arange(10_000))
    assert engine_of(storage).budget.used_bytes > 10_000 * 256
    storage.drop_group(0)
    assert engine_of(storage).budget.used_bytes == 0


def test_a_group_that_is_being_trained_can_be_dropped(storage: PyStorage) -> None:
    rows = [embedding(storage, group=group) for group in (0, 1)]
    ended: list[type[BaseException]] = []

    def train(number: int) -> None:
        try:
            for step in range(100_000):
                keys = np.arange(step, step + 50)
                rows[number].lookup(keys)
                storage.apply_gradients([(rows[number], keys, ones(50))])
        except BaseException as error:
            ended.append(type(error))

    threads = [threading.Thread(target=train, args=(0,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    rows[1].apply_gradients(np.arange(5), ones(5))
    storage.drop_group(0)
    for thread in threads:
        thread.join()
    assert ended == [UnknownGroup, UnknownGroup]
    assert (rows[1].lookup(np.arange(5)) == -0.5).all()
    assert_sound(storage)


def test_a_reader_drops_nothing(open_storage: OpenStorage) -> None:
    storage = open_storage()
    embedding(storage)
    storage.close()
    with pytest.raises(ReadOnlyStorage):
        open_storage(read_only=True).drop_group(0)
