"""check(): every kind of damage has its sentence, nothing else is said, and what is sound is said to be."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import PyStorage
from rockbed.storage import hot_kernels as k
from rockbed.storage.hot import HotTable
from rockbed.storage.record import encode_keys
from rockbed.types import I64
from tests.api.helpers import (
    SMALL,
    Clock,
    OpenStorage,
    adagrad,
    as_after_kill,
    embedding,
    engine_of,
    keys_of,
    ones,
    push_in_pieces,
)

DIM = 2
KEYS = np.arange(10)
SOUND = {1: 4, 3: 10}


def _store(open_storage: OpenStorage, name: str = "store", dim: int = DIM) -> PyStorage:
    """Ten rows in group 3, four in group 1, all in memory and all in rows/."""
    storage = open_storage(name)
    embedding(storage, dim, 3, optimizer=adagrad()).apply_gradients(KEYS, ones(10, dim))
    embedding(storage, dim, 1).apply_gradients(KEYS[:4], ones(4, dim))
    storage.flush()
    return storage


def _table(storage: PyStorage, group: int = 3) -> HotTable:
    return engine_of(storage).groups[group].table


def _rows(table: HotTable, *keys: int) -> I64:
    found, missing = table.find(keys_of(*keys), 0)
    assert not missing
    return found


def _put(
    storage: PyStorage,
    at: tuple[int, int],
    *,
    slot_off: int = 0,
    width: int = 2 * DIM,
    weight: float = 0.0,
    **fields: int,
) -> None:
    """A row put into rows/ underneath the store, in a table file of its own; `fields` change its record.

    at: group and key. weight: the first one.
    """
    place = encode_keys(at[0], keys_of(at[1]))
    place[0, 3] ^= slot_off
    head = {"version": 1, "flags": 0, "group": at[0], "dim": DIM, "key": at[1], "time": 0, "updates": 1, "lsn": 1}
    record = struct.pack("<BBHIqqqQ", *{**head, **fields}.values())
    value = record + struct.pack(f"<{width}f", weight, *range(1, width)) + struct.pack("<i", 2**31 - 1)
    values = np.frombuffer(value, np.uint8).reshape(1, -1).copy()
    engine_of(storage).files.put_run(place, values, np.zeros(1, np.int64))


# --- damage, one kind each ---


def _count_one_more(storage: PyStorage) -> None:
    _table(storage).count += 1


def _lose_an_index_entry(storage: PyStorage) -> None:
    index = _table(storage).index
    index[(index[:, 0] == 5) & (index[:, 1] > 0), 1] = 0


def _exchange_index_entries(storage: PyStorage) -> None:
    index = _table(storage).index
    two, five = (np.flatnonzero((index[:, 0] == key) & (index[:, 1] > 0)) for key in (2, 5))
    index[two, 1], index[five, 1] = index[five, 1], index[two, 1]


def _leave_rows_pinned(storage: PyStorage) -> None:
    table = _table(storage)
    table.flags[_rows(table, 2, 5, 6)] |= k.PINNED


def _spoil_a_weight(storage: PyStorage) -> None:
    table = _table(storage)
    table.data[_rows(table, 4), 1] = np.nan


def _spoil_slots(storage: PyStorage) -> None:
    table = _table(storage)
    table.data[_rows(table, 4, 7), 2 * DIM - 1] = np.inf, -np.inf


def _spoil_a_row_on_disk(storage: PyStorage) -> None:
    _put(storage, (3, 100), weight=np.nan)


def _change_a_weight_in_memory(storage: PyStorage) -> None:
    table = _table(storage)
    table.data[_rows(table, 6), 0] = 42


def _lose_a_row_on_disk(storage: PyStorage) -> None:
    engine_of(storage).files.delete(encode_keys(3, keys_of(6)))


def _lose_the_journal(storage: PyStorage) -> None:
    engine_of(storage).journal.segments[-1][1].unlink()


def _age_a_row_in_memory(storage: PyStorage) -> None:
    table = _table(storage)
    table.header[_rows(table, 6), 3] += 1


def _replace_a_row_on_disk(storage: PyStorage) -> None:
    _put(storage, (3, 6), lsn=99)


def _put_a_row_into_another_slot(storage: PyStorage) -> None:
    _put(storage, (3, 100), slot_off=1)


def _put_a_record_of_another_key(storage: PyStorage) -> None:
    _put(storage, (3, 100), key=101)


def _put_a_record_of_another_group(storage: PyStorage) -> None:
    _put(storage, (3, 100), group=1)


def _put_a_record_of_another_dim(storage: PyStorage) -> None:
    _put(storage, (3, 100), dim=5)


def _put_a_record_of_the_future(storage: PyStorage) -> None:
    _put(storage, (3, 100), version=2)


def _put_a_record_of_another_width(storage: PyStorage) -> None:
    _put(storage, (3, 100), width=DIM)


def _put_a_row_of_an_unknown_group(storage: PyStorage) -> None:
    _put(storage, (9, 100))


def _put_a_row_of_the_last_group(storage: PyStorage) -> None:
    _put(storage, (65_535, 100))


def _spoil_the_journal(storage: PyStorage) -> None:
    segment = engine_of(storage).journal.segments[-1][1]
    segment.write_bytes(b"X" + segment.read_bytes()[1:])


_RECORD = "group 3, key 100: its record says group {}, key {}, dim {} instead of 2. The store is damaged"
_DIFFER = " and {} others differ in memory and on disk"
DAMAGE: list[tuple[Any, ...]] = [
    (_count_one_more, "group 3: 10 rows in memory, 11 counted"),
    (_lose_an_index_entry, "group 3: the index in memory does not lead to 1 of 10 rows"),
    (_exchange_index_entries, "group 3: the index in memory does not lead to 2 of 10 rows"),
    (_leave_rows_pinned, "group 3: 3 rows are pinned by no batch"),
    (_spoil_a_weight, "group 3: 1 rows in memory hold NaN or Inf, the first for key 4", _DIFFER.format(0)),
    (_spoil_slots, "group 3: 2 rows in memory hold NaN or Inf, the first for key ", _DIFFER.format(1)),
    (_spoil_a_row_on_disk, "group 3: 1 rows in rows/ hold NaN or Inf, the first for key 100"),
    (_change_a_weight_in_memory, _DIFFER.format(0)),
    (_lose_a_row_on_disk, "group 3: rows/ lacks 1 rows that were written to it, the first for key 6"),
    (_lose_the_journal, ".log is in use and gone"),
    (_age_a_row_in_memory, "group 3: key 6 and 0 others differ in memory and on disk"),
    (_replace_a_row_on_disk, "group 3: key 6 and 0 others differ in memory and on disk"),
    (_put_a_row_into_another_slot, "group 3: a key of rows/ has the wrong slot"),
    (_put_a_record_of_another_key, _RECORD.format(3, 101, 2)),
    (_put_a_record_of_another_group, _RECORD.format(1, 100, 2)),
    (_put_a_record_of_another_dim, _RECORD.format(3, 100, 5)),
    (_put_a_record_of_the_future, "group 3: records of format 2, this Rockbed reads up to 1"),
    (_put_a_record_of_another_width, "corruption: records of [48, 56] bytes where the group's config gives 56"),
    (_put_a_row_of_an_unknown_group, "rows/ holds rows of group 9, which the catalog does not know"),
    (_put_a_row_of_the_last_group, "rows/ holds rows of group 65535, which the catalog does not know"),
    (_spoil_the_journal, ".log is damaged at byte 0: it does not begin as a journal does"),
]


SENTENCES: dict[Callable[[PyStorage], None], list[str]] = {damage: said for damage, *said in DAMAGE}


@pytest.mark.parametrize("damage", SENTENCES, ids=[damage.__name__[1:] for damage in SENTENCES])
def test_each_kind_of_damage_is_reported_by_its_sentence_and_no_other(
    open_storage: OpenStorage, damage: Callable[[PyStorage], None]
) -> None:
    storage = _store(open_storage)
    before = storage.check()
    assert (before.ok, before.problems, before.rows) == (True, [], SOUND)
    damage(storage)
    report = storage.check()
    assert not report.ok
    assert len(report.problems) == len(SENTENCES[damage])
    for sentence, problem in zip(SENTENCES[damage], report.problems, strict=True):
        assert sentence in problem
    assert report.rows[1] == 4  # the group beside it is read all the same


def test_one_check_reports_the_damage_of_all_groups_files_and_journal(open_storage: OpenStorage) -> None:
    storage = _store(open_storage)
    at_once = [
        _spoil_the_journal,
        _count_one_more,
        _leave_rows_pinned,
        _spoil_slots,
        _put_a_row_into_another_slot,
        _put_a_row_of_an_unknown_group,
        _put_a_row_of_the_last_group,
    ]
    for damage in at_once:
        damage(storage)
    _put(storage, (1, 100), width=DIM, group=3)
    problems = storage.check().problems
    sentences = [sentence for damage in at_once for sentence in SENTENCES[damage]]
    for sentence in [*sentences, "group 1, key 100: its record says"]:
        assert sum(sentence in problem for problem in problems) == 1, sentence
    assert len(problems) == len(sentences) + 1


def test_the_rows_that_differ_are_counted_and_one_is_named(open_storage: OpenStorage) -> None:
    storage = _store(open_storage)
    table = _table(storage)
    table.header[_rows(table, 2, 6, 7), 3] += 1
    (problem,) = storage.check().problems
    assert problem in [f"group 3: key {key} and 2 others differ in memory and on disk" for key in (2, 6, 7)]


def test_the_rows_of_another_store_are_recognised(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage, other = _store(open_storage), _store(open_storage, "other", dim=8)
    embedding(other, 8, 4).apply_gradients(keys_of(1), ones(1, 8))
    storage.close()
    other.close()
    (tmp_path / "store" / "rows").rename(tmp_path / "kept")
    (tmp_path / "other" / "rows").rename(tmp_path / "store" / "rows")
    problems = open_storage().check().problems
    assert len(problems) == 3
    for problem, wrong, right in zip(problems, (72, 104), (48, 56), strict=False):
        assert f"records of [{wrong}] bytes where the group's config gives {right}" in problem
    assert problems[2] == "rows/ holds rows of group 4, which the catalog does not know"


# --- the journal, seen by a reader: a writer's check() begins with a flush, which trims it ---


@pytest.fixture
def reader(open_storage: OpenStorage, tmp_path: Path) -> PyStorage:
    """A reader of a store whose journal has two files, of two entries and of one."""
    storage = _store(open_storage, "original")
    rows = embedding(storage, DIM, 3, optimizer=adagrad())
    rows.apply_gradients(KEYS[:3], ones(3, DIM))
    rows.apply_gradients(np.arange(100, 107), ones(7, DIM))
    engine_of(storage).journal.rotate()
    embedding(storage, DIM, 1).apply_gradients(KEYS[2:8], ones(6, DIM))
    as_after_kill(storage, tmp_path / "store")
    return open_storage(read_only=True)


def test_a_reader_counts_each_row_once_on_disk_or_changed_by_the_journal(reader: PyStorage) -> None:
    report = reader.check()
    # rows that the replay changed are newer in memory than on disk: that is no damage
    assert report.problems == []
    assert report.rows == {1: 4 + 4, 3: 10 + 7}
    assert report.journal_entries == 3


@pytest.mark.parametrize(
    ("file", "at", "problem"),
    [
        (0, 100, "entry [0-9]+ does not match its digest"),
        (1, 100, "entry [0-9]+ does not match its digest"),
        (0, 40, "no entry begins there"),
        (0, -16, "entry [0-9]+ is cut short"),
        (1, -16, None),
    ],
)
def test_damage_of_the_journal_is_reported_but_not_a_torn_end_that_nobody_was_promised(
    reader: PyStorage, file: int, at: int, problem: str | None
) -> None:
    segment = sorted((reader.path / "journal").glob("*.log"))[file]
    raw = bytearray(segment.read_bytes())
    if at < 0:
        del raw[at:]
    else:
        raw[at] ^= 1
    segment.write_bytes(raw)
    report = reader.check()
    assert len(report.problems) == (problem is not None)
    for found in report.problems:
        assert segment.name in found
        assert problem is not None
        assert re.search(problem, found)
    assert report.rows == {1: 8, 3: 17}


# --- counts ---


def test_a_wrong_count_of_rows_in_the_statistics_is_put_right(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=SMALL)
    push_in_pieces(embedding(storage, group=3), np.arange(3_000))  # most of them are on disk only
    for wrong in (0, 77, 9_999):
        engine_of(storage).groups[3].counters.rows = wrong
        report = storage.check()
        assert (report.problems, report.rows) == ([], {3: 3_000})
        assert storage.stats()["groups"][3]["rows"] == storage.stats()["rows"] == 3_000


def test_rows_that_have_expired_are_counted_until_they_are_swept(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(clock=clock, ttl=10)
    embedding(storage).apply_gradients(KEYS, ones(10))
    clock.now += 11
    engine_of(storage).groups[0].counters.rows = 0
    report = storage.check()
    assert (report.problems, report.rows) == ([], {0: 10})
    assert storage.stats()["rows"] == 10


def test_rows_of_a_group_that_cannot_be_read_are_not_counted_anew(open_storage: OpenStorage) -> None:
    storage = _store(open_storage)
    _put_a_record_of_another_dim(storage)
    engine_of(storage).groups[3].counters.rows = 77
    assert storage.check().rows == {1: 4}
    assert storage.stats()["groups"][3]["rows"] == 77
