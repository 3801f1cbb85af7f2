"""Files that are not what was written: said by name, nothing made worse, and what can be kept is kept."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rocksdict

from rockbed import FormatTooNew, JournalCorrupt, PyStorage, StorageCorrupt
from rockbed.storage.segment import file_header
from tests.api.helpers import (
    OpenStorage,
    as_after_kill,
    assert_sound,
    embedding,
    engine_of,
    keys_of,
    ones,
    push_in_pieces,
    sgd,
)

HEAD = struct.Struct("<IIQqQQQQ")  # magic, kind, LSN, time, payload bytes, its digest, synced LSN, digest
SEAL_BYTES = 8
FILE_BYTES = 32


@pytest.fixture
def killed(open_storage: OpenStorage, tmp_path: Path) -> Path:
    """A store whose keys 0..9 were pushed one after another, ten journal entries that rows/ has not seen."""
    storage = open_storage("original")
    rows = embedding(storage)
    for key in range(10):
        rows.apply_gradients(keys_of(key), ones(1))
    return as_after_kill(storage, tmp_path / "store")


@pytest.fixture
def settled(open_storage: OpenStorage) -> Path:
    """A closed store of 3,000 rows, all in table files."""
    storage = open_storage()
    push_in_pieces(embedding(storage), np.arange(3_000))
    storage.close()
    return storage.path


def _segment(store: Path) -> Path:
    return next(p for p in sorted((store / "journal").glob("*.log")) if p.stat().st_size > FILE_BYTES)


def _entries(segment: Path) -> list[tuple[int, int]]:
    """(offset, bytes) of each entry."""
    raw, at, found = segment.read_bytes(), FILE_BYTES, []
    while at < len(raw):
        size = HEAD.size + HEAD.unpack_from(raw, at)[4] + SEAL_BYTES
        found.append((at, size))
        at += size
    return found


def _flip(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0x10
    path.write_bytes(bytes(raw))


def _contents(store: Path) -> dict[str, bytes]:
    parts = [store / "catalog.json", *(store / "journal").rglob("*"), *(store / "rows").glob("*.sst")]
    return {str(p): p.read_bytes() for p in parts if p.is_file()}


def _pushed(storage: PyStorage) -> list[int]:
    got = embedding(storage).lookup(np.arange(10), train=False)[:, 0]
    return [int(key) for key in np.flatnonzero(got == -0.5)]


# --- the journal ---


@pytest.mark.parametrize("kept", [1, 8, HEAD.size - 1, HEAD.size, HEAD.size + 1, -16, -9])
def test_a_torn_tail_was_never_acknowledged_and_is_dropped_silently(
    open_storage: OpenStorage, killed: Path, kept: int
) -> None:
    segment = _segment(killed)
    start, size = _entries(segment)[-1]
    whole = segment.read_bytes()
    segment.write_bytes(whole[: start + (kept if kept > 0 else size + kept)])
    storage = open_storage(read_only=True)
    assert _pushed(storage) == list(range(9))
    storage.close()
    storage = open_storage()
    assert _pushed(storage) == list(range(9))
    embedding(storage).apply_gradients(keys_of(9), ones(1))
    assert _pushed(storage) == list(range(10))
    again = open_storage(str(as_after_kill(storage, killed.parent / "again")))
    assert _pushed(again) == list(range(10))
    assert_sound(again)


@pytest.mark.parametrize("kept", [-8, -1])
def test_an_entry_that_lacks_only_its_seal_is_whole(open_storage: OpenStorage, killed: Path, kept: int) -> None:
    segment = _segment(killed)
    segment.write_bytes(segment.read_bytes()[:kept])
    storage = open_storage()
    assert _pushed(storage) == list(range(10))
    embedding(storage).apply_gradients(keys_of(11), ones(1))
    again = open_storage(str(as_after_kill(storage, killed.parent / "again")))
    assert _pushed(again) == list(range(10))
    assert_sound(again)


def test_a_tail_of_zeros_that_a_power_cut_leaves_is_dropped_silently(open_storage: OpenStorage, killed: Path) -> None:
    segment = _segment(killed)
    segment.write_bytes(segment.read_bytes() + bytes(4096))
    storage = open_storage()
    assert _pushed(storage) == list(range(10))
    assert_sound(storage)


def test_an_empty_newest_segment_is_begun_anew(open_storage: OpenStorage, killed: Path) -> None:
    last = struct.unpack_from("<Q", _segment(killed).read_bytes(), _entries(_segment(killed))[-1][0] + 8)[0]
    for content in (b"", b"ROCKBED", b"ROCKBED-JRNL\1\0\0\0", file_header()):
        (killed / "journal" / f"{last + 1:020d}.log").write_bytes(content)
        storage = open_storage()
        assert _pushed(storage) == list(range(10))
        storage.close()
        break_at = (killed / "journal").glob("*.log")
        assert sum(1 for _ in break_at) == 1
        last = json.loads((killed / "catalog.json").read_text())["catalog"]["flushed_lsn"]


@pytest.mark.parametrize("entry", [0, 5, -1])
@pytest.mark.parametrize("where", ["magic", "size", "digest", "payload"])
def test_damage_in_the_journal_is_found_and_repair_keeps_what_precedes_it(
    open_storage: OpenStorage, killed: Path, entry: int, where: str
) -> None:
    segment = _segment(killed)
    start, _ = _entries(segment)[1:][entry]  # the first of all created the group
    _flip(segment, start + {"magic": 0, "size": 25, "digest": 33, "payload": HEAD.size + 40}[where])
    before = _contents(killed)
    for options in ({}, {"read_only": True}):
        with pytest.raises(JournalCorrupt, match=rf"{segment.name} is damaged at byte {start}: .*repair=True"):
            open_storage(**options)
        assert _contents(killed) == before
    storage = open_storage(repair=True)
    kept = list(range(10))[:entry] if entry >= 0 else list(range(9))
    assert _pushed(storage) == kept
    aside = killed / "journal" / "damaged" / segment.name
    assert aside.read_bytes() == before[str(segment)]
    embedding(storage).apply_gradients(keys_of(9), ones(1))
    again = open_storage(str(as_after_kill(storage, killed.parent / "again")))
    assert _pushed(again) == [*kept, 9]
    assert_sound(storage)
    assert_sound(again)


def test_damage_at_the_very_beginning_of_the_journal_is_found_and_repaired(
    open_storage: OpenStorage, killed: Path
) -> None:
    segment = _segment(killed)
    _flip(segment, 3)
    with pytest.raises(JournalCorrupt, match="at byte 0: it does not begin as a journal does"):
        open_storage()
    storage = open_storage(repair=True)
    assert storage.stats()["rows"] == 0
    embedding(storage).apply_gradients(keys_of(3), ones(1))
    storage.close()
    assert _pushed(open_storage()) == [3]


def test_a_journal_that_lacks_a_segment_is_refused(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage("original")
    rows = embedding(storage)
    for key in range(3):
        rows.apply_gradients(keys_of(key), ones(1))
        engine_of(storage).journal.rotate()
    killed = as_after_kill(storage, tmp_path / "store")
    sorted((killed / "journal").glob("*.log"))[1].unlink()
    with pytest.raises(JournalCorrupt, match=r"lacks the entries 3 to 3\b.* Restore a checkpoint"):
        open_storage()


def test_a_segment_cut_short_before_the_newest_one_is_damage(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage("original")
    rows = embedding(storage)
    for key in range(3):
        rows.apply_gradients(keys_of(key), ones(1))
        engine_of(storage).journal.rotate()
    killed = as_after_kill(storage, tmp_path / "store")
    middle = sorted((killed / "journal").glob("*.log"))[1]
    middle.write_bytes(middle.read_bytes()[:-16])
    with pytest.raises(JournalCorrupt, match="cut short"):
        open_storage()
    storage = open_storage(repair=True)
    assert _pushed(storage) == [0]
    assert len(list((killed / "journal" / "damaged").iterdir())) == 3
    assert_sound(storage)


def test_after_a_repair_pushes_survive_a_kill_even_of_rows_that_were_written_back_before(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    storage = open_storage("original")
    rows = embedding(storage, optimizer=sgd(1.0))
    for _ in range(20):
        rows.apply_gradients(keys_of(1), ones(1))
    engine_of(storage).write_back.write(engine_of(storage).groups[0])  # as eviction does: rows/ is ahead of the catalog
    killed = as_after_kill(storage, tmp_path / "store")
    segment = _segment(killed)
    _flip(segment, _entries(segment)[5][0] + HEAD.size)
    storage = open_storage(repair=True)
    rows = embedding(storage, optimizer=sgd(1.0))
    before = rows.lookup(keys_of(1), train=False)
    for _ in range(3):
        rows.apply_gradients(keys_of(1), ones(1))
    again = open_storage(str(as_after_kill(storage, tmp_path / "again")))
    got = embedding(again, optimizer=sgd(1.0)).lookup(keys_of(1), train=False)
    np.testing.assert_array_equal(got, before - 3)


# --- table files ---


def test_a_truncated_table_file_is_said_and_the_rest_left_alone(open_storage: OpenStorage, settled: Path) -> None:
    table = max((settled / "rows").glob("*.sst"), key=lambda p: p.stat().st_size)
    whole = table.read_bytes()
    table.write_bytes(whole[: len(whole) // 2])
    for options in ({}, {"read_only": True}, {"repair": True}):
        with pytest.raises(StorageCorrupt, match=r"rows/ is damaged .*restore a checkpoint"):
            open_storage(**options)
    table.write_bytes(whole)
    assert embedding(open_storage()).lookup(np.arange(3_000), train=False).sum() == -6_000


def test_a_missing_table_file_is_said(open_storage: OpenStorage, settled: Path) -> None:
    table = max((settled / "rows").glob("*.sst"), key=lambda p: p.stat().st_size)
    table.rename(settled.parent / "kept")
    with pytest.raises(StorageCorrupt, match=r"rows/ is damaged"):
        open_storage()
    (settled.parent / "kept").rename(table)
    assert_sound(open_storage())


@pytest.mark.parametrize("read_only", [False, True])
def test_a_flipped_byte_in_a_table_file_is_found_by_whoever_reads_it(
    open_storage: OpenStorage, settled: Path, tmp_path: Path, read_only: bool
) -> None:
    table = max((settled / "rows").glob("*.sst"), key=lambda p: p.stat().st_size)
    _flip(table, table.stat().st_size // 2)
    storage = open_storage(read_only=read_only)
    report = storage.check()
    assert not report.ok
    assert any("damaged" in problem for problem in report.problems)
    rows = embedding(storage)
    bad = 0
    for key in range(3_000):
        out = np.full((1, 4), 9, np.float32)
        try:
            rows.lookup(keys_of(key), out, train=False)
        except StorageCorrupt as error:
            assert "rows/ is damaged" in str(error)  # noqa: PT017 - most lookups must work
            bad += 1
        else:
            np.testing.assert_array_equal(out, [[-0.5] * 4])
    assert 0 < bad < 1_500  # the rows of a block or two: none was made up, the others are there
    with pytest.raises(StorageCorrupt):
        storage.dump(tmp_path / "dump")  # never a dump that is silently cut short
    assert not list(tmp_path.glob("dump*"))
    with pytest.raises(StorageCorrupt):
        storage.shrink(min_norm=0.1, dry_run=True)


def test_a_push_to_a_damaged_row_is_refused_and_changes_nothing(open_storage: OpenStorage, settled: Path) -> None:
    table = max((settled / "rows").glob("*.sst"), key=lambda p: p.stat().st_size)
    _flip(table, table.stat().st_size // 2)
    storage = open_storage()
    rows, other = embedding(storage), embedding(storage, group=1)
    before = storage.stats()["last_lsn"]
    with pytest.raises(StorageCorrupt):
        storage.apply_gradients([(other, keys_of(1), ones(1)), (rows, np.arange(3_000), ones(3_000))], request=("a", 1))
    assert storage.stats()["last_lsn"] == before
    assert storage.last_request("a") == 0
    np.testing.assert_array_equal(other.lookup(keys_of(1), train=False), np.zeros((1, 4)))


def _rewrite_a_record(store: Path, change: dict[int, bytes]) -> None:
    options = rocksdict.Options(raw_mode=True)
    db = rocksdict.Rdict(str(store / "rows"), options, access_type=rocksdict.AccessType.with_ttl(0))
    key, value = next(iter(db.items()))
    raw = bytearray(value)
    for at, new in change.items():
        raw[at : at + len(new)] = new
    db[key] = bytes(raw)
    db.close()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({0: b"\2"}, FormatTooNew, "records of format 2, this Rockbed reads up to 1: open the store with a newer"),
        ({2: b"\7\0"}, StorageCorrupt, "its record says group 7"),
        ({4: b"\5\0\0\0"}, StorageCorrupt, "dim 5 instead of 4"),
        ({8: b"\xff" * 8}, StorageCorrupt, "key -1"),
    ],
)
def test_a_record_that_is_not_the_groups_is_never_read_as_one(
    open_storage: OpenStorage, settled: Path, change: dict[int, bytes], error: type[Exception], message: str
) -> None:
    _rewrite_a_record(settled, change)
    storage = open_storage()
    with pytest.raises(error, match=message):
        embedding(storage).lookup(np.arange(3_000))
    assert [p for p in storage.check().problems if message.split(":")[0] in p]


# --- the catalog ---


def _edit_catalog(store: Path, **changes: Any) -> None:
    catalog = json.loads((store / "catalog.json").read_text())
    (store / "catalog.json").write_text(json.dumps({**catalog, **changes}))


@pytest.mark.parametrize("options", [{}, {"read_only": True}, {"repair": True}])
def test_newer_formats_are_said_and_left_alone(
    open_storage: OpenStorage, killed: Path, options: dict[str, Any]
) -> None:
    whole = (killed / "catalog.json").read_bytes()
    _edit_catalog(killed, format=2)
    with pytest.raises(
        FormatTooNew, match=r"catalog.json has format 2, this Rockbed reads up to 1: open it with a newer"
    ):
        open_storage(**options)
    (killed / "catalog.json").write_bytes(whole)
    segment = _segment(killed)
    journal = segment.read_bytes()
    segment.write_bytes(journal[:12] + struct.pack("<I", 2) + journal[16:])
    with pytest.raises(FormatTooNew, match=r"has journal format 2, this Rockbed reads up to 1"):
        open_storage(**options)
    segment.write_bytes(journal)
    assert _pushed(open_storage()) == list(range(10))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "list", "flip"])
def test_a_damaged_catalog_is_said_and_left_alone(open_storage: OpenStorage, settled: Path, damage: str) -> None:
    catalog = settled / "catalog.json"
    whole = catalog.read_bytes()
    at = whole.index(b'"rows": 3000') + 8
    catalog.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "text": b"\xff\xfe not json",
            "list": b"[]",
            "flip": whole[:at] + b"4" + whole[at + 1 :],
        }[damage]
    )
    for options in ({}, {"read_only": True}, {"repair": True}):
        with pytest.raises(StorageCorrupt, match=r"catalog.json .*restore a checkpoint"):
            open_storage(**options)
    catalog.write_bytes(whole)
    assert_sound(open_storage())
