"""Rows stored as they are, and what is said of single ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import (
    BatchTooLarge,
    DimMismatch,
    InvalidConfig,
    PyStorage,
    ReadOnlyStorage,
    RockbedError,
    RowNotFinite,
    UnknownGroup,
    WrongDtype,
    WrongShape,
)
from rockbed.reports import RowReport, RowStatus
from tests.api.helpers import (
    SMALL,
    Clock,
    OpenStorage,
    adagrad,
    as_after_kill,
    assert_sound,
    embedding,
    keys_of,
    ones,
    push_in_pieces,
)

RNG = np.random.default_rng(5)


def _weights(n: int, dim: int = 4) -> Any:
    return RNG.normal(size=(n, dim)).astype(np.float32)


def _said(report: RowReport) -> list[str]:
    return [report.explain(i) for i in range(report.keys.size)]


# --- storing ---


def test_a_row_is_stored_as_it_was_sent(storage: PyStorage) -> None:
    rows = embedding(storage, optimizer=adagrad())
    keys, weights, slots = keys_of(3, -1, 7), _weights(3), np.abs(_weights(3))
    counts, times = keys_of(5, 6, 7), keys_of(1_000, 2_000, 3_000)
    assert storage.put_rows(0, keys, weights, slots=slots, update_num=counts, update_time_ms=times) == 3
    np.testing.assert_array_equal(rows.lookup(keys, train=False), weights)
    found = storage.get_rows(0, keys)
    np.testing.assert_array_equal(found.weights, weights)
    np.testing.assert_array_equal(found.slots, slots)
    assert found.slot_widths == {"sum_squares": 4}
    assert (found.update_num.tolist(), found.update_time_ms.tolist()) == ([5, 6, 7], [1_000, 2_000, 3_000])
    assert_sound(storage)


def test_what_is_left_out_is_as_in_a_new_row_written_now(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(clock=clock)
    embedding(storage, optimizer=adagrad())
    storage.put_rows(0, keys_of(1), _weights(1))
    found = storage.get_rows(0, keys_of(1))
    assert (found.update_num[0], found.update_time_ms[0]) == (0, int(clock.now * 1000))
    assert not found.slots.any()


def test_training_goes_on_from_a_stored_row(storage: PyStorage) -> None:
    rows = embedding(storage, optimizer=adagrad())
    storage.put_rows(0, keys_of(1), ones(1), slots=ones(1, value=3.0))
    rows.apply_gradients(keys_of(1), ones(1))
    np.testing.assert_allclose(rows.lookup(keys_of(1)), 1 - 0.5 / np.sqrt(4.0), rtol=1e-6)


def test_rows_that_exist_are_replaced_or_kept(storage: PyStorage) -> None:
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1, 2), ones(2))
    sent = ones(3, value=9.0)
    assert storage.put_rows(0, keys_of(1, 2, 3), sent, mode="keep") == 1
    assert rows.lookup(keys_of(1, 2, 3))[:, 0].tolist() == [-0.5, -0.5, 9.0]
    assert storage.put_rows(0, keys_of(1, 2, 3), sent) == 3
    assert (rows.lookup(keys_of(1, 2, 3)) == 9.0).all()
    assert storage.stats()["groups"][0]["rows"] == 3


def test_a_row_on_disk_is_replaced_too(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=SMALL)
    rows, keys = embedding(storage, 32), np.arange(3_000)
    push_in_pieces(rows, keys)
    some = np.array([5, 700, 2_900, 5_000])
    assert storage.put_rows(0, some, _weights(4, 32), mode="keep") == 1
    sent = _weights(4, 32)
    assert storage.put_rows(0, some, sent) == 4
    np.testing.assert_array_equal(rows.lookup(some, train=False), sent)
    assert (rows.lookup(np.arange(10, 20)) == -0.5).all()
    assert_sound(storage)


def test_admission_does_not_keep_a_stored_row_out(storage: PyStorage) -> None:
    rows = embedding(storage, admission={"name": "min_count", "count": 3})
    storage.put_rows(0, keys_of(1), ones(1))
    assert (rows.lookup(keys_of(1)) == 1.0).all()


def test_a_row_that_has_expired_by_its_time_is_left_out_and_a_time_to_come_is_now(
    open_storage: OpenStorage, clock: Clock
) -> None:
    storage = open_storage(clock=clock, ttl=10)
    embedding(storage)
    now_ms = int(clock.now * 1000)
    times = np.array([now_ms - 10_000, now_ms - 9_999, now_ms + 60_000])
    assert storage.put_rows(0, keys_of(1, 2, 3), ones(3), update_time_ms=times) == 2
    assert storage.get_rows(0, keys_of(1, 2, 3)).update_time_ms.tolist() == [0, now_ms - 9_999, now_ms]


def test_stored_rows_survive_a_kill_and_a_close(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    rows = embedding(storage, optimizer=adagrad())
    keys, weights, slots = np.arange(100), _weights(100), np.abs(_weights(100))
    storage.put_rows(0, keys, weights, slots=slots, update_num=keys + 1)
    rows.apply_gradients(keys[:50], ones(50))
    before = storage.get_rows(0, keys)
    image = as_after_kill(storage, tmp_path / "image")
    storage.close()
    for path in (image, tmp_path / "store"):
        with PyStorage(path) as again:
            found = again.get_rows(0, keys)
            for name in ("weights", "slots", "update_num", "update_time_ms"):
                np.testing.assert_array_equal(getattr(found, name), getattr(before, name))
            assert_sound(again)


def _nan(n: int) -> Any:
    weights = ones(n)
    weights[-1, 2] = np.nan
    return weights


@pytest.mark.parametrize(
    ("sent", "options", "error", "said"),
    [
        (ones(2, 5), {}, DimMismatch, r"dim 4"),
        (ones(1), {}, DimMismatch, r"2"),
        (ones(2).astype(np.float64), {}, WrongDtype, "float32"),
        (None, {}, WrongDtype, "weights"),
        (np.zeros(8, np.float32), {}, WrongShape, "two axes"),
        (_nan(2), {}, RowNotFinite, "key 2"),
        (ones(2), {"slots": ones(2, 3)}, DimMismatch, "slots"),
        (ones(2), {"slots": _nan(2)}, RowNotFinite, "key 2"),
        (ones(2), {"update_num": keys_of(1)}, WrongShape, "update_num"),
        (ones(2), {"update_num": keys_of(1, -1)}, InvalidConfig, "update_num holds -1"),
        (ones(2), {"update_time_ms": np.ones(2)}, WrongDtype, "update_time_ms"),
        (ones(2), {"update_time_ms": keys_of(-5, 1)}, InvalidConfig, "update_time_ms"),
        (ones(2), {"mode": "merge"}, InvalidConfig, "'merge'"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_changes_nothing(
    storage: PyStorage, sent: Any, options: dict[str, Any], error: type[RockbedError], said: str
) -> None:
    embedding(storage, optimizer=adagrad())
    with pytest.raises(error, match=said):
        storage.put_rows(0, keys_of(1, 2), sent, **options)
    assert storage.stats()["rows"] == 0
    assert_sound(storage)


def test_keys_that_have_no_one_row_are_refused(storage: PyStorage) -> None:
    embedding(storage, padding_key=0)
    with pytest.raises(InvalidConfig, match="more than once, the first 5"):
        storage.put_rows(0, keys_of(5, 1, 5), ones(3))
    with pytest.raises(InvalidConfig, match="padding key"):
        storage.put_rows(0, keys_of(5, 0), ones(2))
    with pytest.raises(UnknownGroup, match="group 9"):
        storage.put_rows(9, keys_of(5), ones(1))
    with pytest.raises(UnknownGroup, match="-1"):
        storage.put_rows(-1, keys_of(5), ones(1))


def test_more_rows_than_memory_holds_are_refused_whole(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=SMALL)
    embedding(storage, 32)
    with pytest.raises(BatchTooLarge, match="memory_budget"):
        storage.put_rows(0, np.arange(5_000), ones(5_000, 32))
    assert storage.stats()["rows"] == 0
    assert_sound(storage)


def test_a_reader_stores_nothing_and_may_ask(open_storage: OpenStorage) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(keys_of(1), ones(1))
    storage.close()
    reader = open_storage(read_only=True)
    with pytest.raises(ReadOnlyStorage):
        reader.put_rows(0, keys_of(1), ones(1))
    assert reader.get_rows(0, keys_of(1)).status.tolist() == [RowStatus.PRESENT]


# --- asking ---


def test_each_key_is_explained(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(clock=clock, ttl=100)
    rows = embedding(storage, admission={"name": "min_count", "count": 3}, padding_key=0)
    rows.lookup(keys_of(1, 1, 1, 2, 2, 4, 4, 4))
    rows.apply_gradients(keys_of(1), ones(1))
    storage.shrink(min_count=1)  # takes 4
    clock.now += 40
    report = storage.get_rows(0, keys_of(1, 2, 3, 4, 0))
    at = np.datetime_as_string(np.datetime64(int(clock.now - 40), "s"))
    assert _said(report) == [
        "present: 1 updates, the last 40 s ago, expires in 60 s, in memory",
        "not admitted: 2 sightings of 3",
        "never seen",
        f"removed at {at}Z by shrink (count)",
        "the padding key",
    ]
    clock.now += 60
    assert "expired at" in _said(storage.get_rows(0, keys_of(1)))[0]


def test_many_keys_are_explained_in_their_order(storage: PyStorage) -> None:
    rows = embedding(storage)
    keys = np.random.default_rng(1).permutation(5_000)
    rows.apply_gradients(keys[:2_500], ones(2_500))
    report = storage.get_rows(0, keys)
    assert report.keys.tolist() == keys.tolist()
    assert report.status.tolist() == [RowStatus.PRESENT] * 2_500 + [RowStatus.ABSENT] * 2_500
    assert (report.weights[:2_500] == -0.5).all()
    assert len(report.removed_by) == 5_000
    assert storage.get_rows(0, keys[:0]).keys.size == 0


def test_asking_changes_nothing(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=SMALL)
    rows = embedding(storage, 32, admission={"name": "min_count", "count": 1})
    for start in range(0, 3_000, 200):
        rows.lookup(np.arange(start, start + 200))
    storage.flush()
    before = storage.stats()["groups"]
    report = storage.get_rows(0, np.array([5, 2_999, 5, 10_000]))
    assert storage.stats()["groups"] == before
    assert report.in_memory.tolist() == [False, True, False, False]
    assert _said(report)[0] == _said(report)[2]
    assert "on disk" in _said(report)[0]


def test_chance_and_forgotten_counts_are_said(storage: PyStorage) -> None:
    embedding(storage, admission={"name": "probability", "p": 1e-9}).lookup(keys_of(1))
    assert _said(storage.get_rows(0, keys_of(1))) == ["not admitted: 1 sightings, chance decides"]
    counted = embedding(storage, group=1, admission={"name": "min_count", "count": 9, "keys_max": 4})
    counted.lookup(np.arange(5))
    assert "unknown number of sightings of 9" in _said(storage.get_rows(1, keys_of(77)))[0]


def test_an_expired_row_that_was_swept_is_removed_because_it_had_expired(
    open_storage: OpenStorage, clock: Clock
) -> None:
    storage = open_storage(clock=clock, ttl=10)
    embedding(storage).lookup(keys_of(1))
    clock.now += 10
    storage.shrink()
    assert "because it had expired" in _said(storage.get_rows(0, keys_of(1)))[0]
