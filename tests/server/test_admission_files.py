"""Admission inside a store: what is kept of the counts, where, and that a bad rule leaves no trace."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import PyEmbedding, PyStorage
from rockbed.errors import GroupConflict, InvalidConfig, RockbedError, StorageCorrupt, StorageFull, UnknownName
from rockbed.server import admission_files
from rockbed.types import I64, Bool
from tests.api.helpers import SMALL, OpenStorage, as_after_kill, assert_sound, embedding, engine_of, ones, uniform

MIN_COUNT: dict[str, Any] = {"name": "min_count", "count": 3}
BLOOM: dict[str, Any] = {"name": "counting_bloom", "count": 3, "capacity": 5_000, "fpr": 1e-6}
PROBABILITY: dict[str, Any] = {"name": "probability", "p": 0.3}
ALL_RULES = pytest.mark.parametrize("rule", [MIN_COUNT, BLOOM, PROBABILITY], ids=lambda rule: rule["name"])
KEYS = np.arange(-500, 500)
ONCE, TWICE = KEYS[:400], KEYS[400:]


def group_of(storage: PyStorage, rule: Any, **options: Any) -> PyEmbedding:
    return embedding(storage, initializer=uniform(), seed=2, admission=rule, **options)


def admitted(rows: PyEmbedding, keys: I64) -> Bool:
    """Looks up, for training, and says who has a row."""
    got: Bool = np.asarray(rows.lookup(keys).any(axis=1))
    return got


def counted(storage: PyStorage, keys: I64) -> list[int]:
    """The sightings of keys, as the rule knows them."""
    admission = engine_of(storage).groups[0].admission
    assert admission is not None
    return [int(n) for n in admission.seen(keys)]


def file_of(storage: PyStorage) -> Path:
    return storage.path / "admission" / "0.npz"


# --- what is kept ---


@ALL_RULES
@pytest.mark.parametrize("budget", [SMALL, 1 << 24])
def test_counting_goes_on_over_reopenings_as_if_there_had_been_none(
    open_storage: OpenStorage, rule: dict[str, Any], budget: int
) -> None:
    unbroken = group_of(open_storage("unbroken", memory_budget=budget), rule)
    rng = np.random.default_rng(1)
    for _ in range(4):
        storage = open_storage(memory_budget=budget)
        rows = group_of(storage, rule)
        sent = rng.choice(KEYS, 700)
        np.testing.assert_array_equal(rows.lookup(sent), unbroken.lookup(sent))
        storage.flush()
        sent = rng.choice(KEYS, 300)
        np.testing.assert_array_equal(rows.lookup(sent), unbroken.lookup(sent))
        storage.close()  # which keeps what was counted after the flush, too
    stored = open_storage()
    found = group_of(stored, rule).lookup(KEYS, train=False)
    np.testing.assert_array_equal(found, unbroken.lookup(KEYS, train=False))
    assert 0 < found.any(axis=1).sum() < KEYS.size
    assert_sound(stored)


def test_a_session_that_only_counts_is_kept(open_storage: OpenStorage) -> None:
    for session in range(3):  # no push, no row: nothing but sightings
        storage = open_storage()
        rows = group_of(storage, MIN_COUNT)
        assert counted(storage, KEYS) == [session] * KEYS.size
        assert admitted(rows, KEYS).tolist() == [session == 2] * KEYS.size
        storage.close()


@ALL_RULES
def test_after_a_kill_counts_are_those_of_the_last_flush(
    open_storage: OpenStorage, tmp_path: Path, rule: dict[str, Any]
) -> None:
    storage = open_storage()
    rows = group_of(storage, rule)
    rows.lookup(KEYS)
    storage.flush()
    expected = counted(storage, KEYS)
    rows.lookup(KEYS)
    again = open_storage(str(as_after_kill(storage, tmp_path / "killed")))
    group_of(again, rule)
    assert counted(again, KEYS) == expected


def test_a_group_that_counted_nothing_since_is_not_written_again(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = group_of(storage, MIN_COUNT)
    rows.lookup(KEYS)
    storage.flush()
    before = file_of(storage).stat()
    rows.apply_gradients(KEYS, ones(KEYS.size))
    rows.lookup(KEYS, train=False)
    storage.flush()
    assert file_of(storage).stat().st_ino == before.st_ino
    rows.lookup(KEYS[:1])
    storage.flush()
    assert file_of(storage).stat().st_ino != before.st_ino


def test_counts_that_could_not_be_written_are_written_at_the_next_flush(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage()
    group_of(storage, MIN_COUNT).lookup(KEYS)

    def full(path: Path, content: bytes) -> None:
        raise StorageFull("no room left: a test says so")

    with monkeypatch.context() as patch:
        patch.setattr(admission_files, "write_atomically", full)
        with pytest.raises(StorageFull):
            storage.flush()
    storage.close()
    again = open_storage()
    group_of(again, MIN_COUNT)
    assert counted(again, KEYS) == [1] * KEYS.size


# --- a rule that changes ---


def test_counts_are_kept_when_only_the_count_asked_for_changes(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    rows = group_of(storage, MIN_COUNT)
    rows.lookup(KEYS)
    rows.lookup(TWICE)
    storage.close()
    storage = open_storage()
    rows = group_of(storage, {**MIN_COUNT, "count": 4, "keys_max": 5_000})
    assert counted(storage, KEYS) == [1] * ONCE.size + [2] * TWICE.size
    killed = as_after_kill(storage, tmp_path / "killed")  # the change is in the journal only
    storage.close()
    for name in ("store", str(killed)):
        again = open_storage(name)
        rows = group_of(again, {**MIN_COUNT, "count": 4, "keys_max": 5_000})
        assert not admitted(rows, KEYS).any()
        np.testing.assert_array_equal(admitted(rows, KEYS), np.isin(KEYS, TWICE))


def test_another_rule_counts_anew_and_rows_stay(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = group_of(storage, MIN_COUNT)
    for _ in range(2):
        rows.lookup(KEYS)
    with_rows = rows.lookup(TWICE)
    storage.close()
    storage = open_storage()
    rows = group_of(storage, {**BLOOM, "count": 2})
    assert counted(storage, KEYS) == [0] * KEYS.size
    np.testing.assert_array_equal(admitted(rows, KEYS), np.isin(KEYS, TWICE))
    np.testing.assert_array_equal(rows.lookup(TWICE), with_rows)
    storage.close()


def test_counts_from_before_a_time_without_the_rule_do_not_come_back(open_storage: OpenStorage) -> None:
    for rule, seen in ((MIN_COUNT, 0), (None, None), (MIN_COUNT, 0), (MIN_COUNT, 0)):
        storage = open_storage()
        rows = group_of(storage, rule)
        if seen is not None:
            assert counted(storage, KEYS) == [seen] * KEYS.size
        if storage.stats()["last_lsn"] == 1:  # the first time only
            rows.lookup(KEYS)
        storage.close()


def test_other_spellings_of_a_rule_are_the_same_rule(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = group_of(storage, {"name": "min_count", "filter_freq": np.int64(3)})
    again = group_of(storage, {**MIN_COUNT, "keys_max": 1 << 24})  # the default, said
    rows.lookup(KEYS)
    again.lookup(KEYS)
    assert admitted(rows, KEYS).all()
    with pytest.raises(GroupConflict, match="admission"):
        group_of(storage, {**MIN_COUNT, "count": 4})
    storage.close()
    storage = open_storage()
    lsn = storage.stats()["last_lsn"]
    group_of(storage, {"name": "min_count", "min_count": 3})
    assert storage.stats()["last_lsn"] == lsn  # no change, so nothing is recorded


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ({"name": "min_count", "count": 0}, InvalidConfig, "count=0"),
        ({"name": "min_count", "count": 3, "cuont": 3}, UnknownName, "cuont"),
        ({"name": "lottery"}, UnknownName, "counting_bloom, min_count, probability"),
        ({"name": "counting_bloom", "count": 65_536, "fpr": 2}, InvalidConfig, "count=65536.*fpr=2"),
        ({"name": "probability", "p": np.float32(1.5)}, InvalidConfig, "p="),
        ({}, InvalidConfig, "give a mapping like.*min_count"),
        (3, InvalidConfig, "mapping"),
        ("min_count", InvalidConfig, "mapping"),
        ([("name", "min_count")], InvalidConfig, "mapping"),
    ],
)
def test_a_bad_rule_creates_and_changes_nothing(
    open_storage: OpenStorage, rule: Any, error: type[RockbedError], message: str
) -> None:
    storage = open_storage()
    group_of(storage, MIN_COUNT, group=1)
    storage.close()
    storage = open_storage()
    before = storage.stats()["last_lsn"]
    for group in (0, 1):  # a new one, and one that is there
        with pytest.raises(error, match=message):
            group_of(storage, rule, group=group)
    assert list(storage.stats()["groups"]) == [1]
    assert storage.stats()["last_lsn"] == before
    storage.close()
    assert list(open_storage().stats()["groups"]) == [1]


def test_a_flush_while_a_group_is_created_does_not_lose_it(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    storage = open_storage()
    append = engine_of(storage).journal.append

    def then_flush(*entry: Any) -> int:
        lsn = append(*entry)
        storage.flush()  # as the background thread may, at this moment
        return lsn

    with monkeypatch.context() as patch:
        patch.setattr(engine_of(storage).journal, "append", then_flush)
        rows = embedding(storage)
    rows.apply_gradients(KEYS, ones(KEYS.size))
    again = open_storage(str(as_after_kill(storage, tmp_path / "killed")))
    np.testing.assert_array_equal(embedding(again).lookup(KEYS, train=False), np.full((KEYS.size, 4), -0.5))


def test_a_group_whose_entry_cannot_be_written_is_not_there(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage()

    def full(*_: Any) -> int:
        raise StorageFull("no room left: a test says so")

    with monkeypatch.context() as patch:
        patch.setattr(engine_of(storage).journal, "append", full)
        with pytest.raises(StorageFull):
            group_of(storage, MIN_COUNT)
    assert storage.stats()["groups"] == {}
    assert group_of(storage, {**MIN_COUNT, "count": 1}).lookup(KEYS).any()


# --- damage ---


@ALL_RULES
def test_a_damaged_file_is_named_and_nothing_is_changed(open_storage: OpenStorage, rule: dict[str, Any]) -> None:
    storage = open_storage()
    rows = group_of(storage, rule)
    rows.lookup(KEYS)
    rows.lookup(TWICE)
    expected = counted(storage, KEYS)
    path = file_of(storage)
    storage.close()
    whole = path.read_bytes()
    for damaged in (
        b"",
        b"PK",
        whole[: len(whole) // 2],
        whole[:-1],
        whole[100:],
        bytes(len(whole)),
        b"\x93NUMPY" + whole,
    ):
        path.write_bytes(damaged)
        with pytest.raises(StorageCorrupt, match=r"0\.npz is damaged.*remove it"):
            open_storage()
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    storage = open_storage()
    group_of(storage, rule)
    assert counted(storage, KEYS) == expected
    storage.close()
    path.unlink()
    storage = open_storage()  # as the message says
    rows = group_of(storage, rule)
    assert counted(storage, KEYS) == [0] * KEYS.size
    assert_sound(storage)


@ALL_RULES
def test_whatever_byte_is_damaged_the_counts_are_right_or_the_file_is_refused(
    open_storage: OpenStorage, rule: dict[str, Any]
) -> None:
    storage = open_storage()
    group_of(storage, {**rule, "capacity": 100} if "capacity" in rule else rule).lookup(KEYS[:40])
    storage.flush()
    expected = counted(storage, KEYS)
    path, groups = file_of(storage), engine_of(storage).groups.values()
    whole = path.read_bytes()
    rng = np.random.default_rng(4)
    refused = 0
    for at in range(len(whole)):
        changed = whole[at] ^ 1 << int(rng.integers(8))
        path.write_bytes(whole[:at] + bytes([changed]) + whole[at + 1 :])
        try:
            admission_files.load(path.parent, groups)
        except StorageCorrupt:
            refused += 1
        else:
            assert counted(storage, KEYS) == expected, f"byte {at} of {len(whole)}"
    assert refused > len(whole) // 3
    for end in range(0, len(whole), 5):
        path.write_bytes(whole[:end])
        with pytest.raises(StorageCorrupt):
            admission_files.load(path.parent, groups)
    path.write_bytes(whole)
    admission_files.load(path.parent, groups)
    assert counted(storage, KEYS) == expected
