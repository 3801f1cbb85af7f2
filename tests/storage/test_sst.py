"""rockbed.storage.sst: RocksDB itself, opened by rocksdict, is what says whether a file is right."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rocksdict import AccessType, BlockBasedOptions, Cache, Rdict

from rockbed.errors import WrongDtype, WrongShape
from rockbed.storage.sst import BLOCK_BYTES, write_sst
from tests.storage.sst_files import (
    DAY_S,
    ENTRY_BYTES,
    KEY_BYTES,
    Table,
    as_dict,
    assert_holds,
    byte_order,
    ingest,
    opened,
    options,
    random_rows,
)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Any]:
    database = opened(tmp_path / "db")
    yield database
    database.close()


# --- what is written is what is read ---


@pytest.mark.parametrize("v", [1, 44, 127, 128, 180, 4096, 16_384, 70_000])
@pytest.mark.parametrize("n", [1, 2, 300])
def test_every_row_comes_back(tmp_path: Path, db: Any, n: int, v: int) -> None:
    keys, values = random_rows(n, v)
    path = tmp_path / "rows.sst"
    size = write_sst(path, keys, values, sync=True)
    assert size == path.stat().st_size
    ingest(db, path)
    assert not path.exists()  # moved
    assert_holds(db, as_dict(keys, values))


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_rows_at_the_edge_of_a_block_come_back(tmp_path: Path, db: Any, blocks: int, extra: int) -> None:
    rows_per_block, v = 20, 60
    n = blocks * rows_per_block + extra
    keys, values = random_rows(n, v)
    path = tmp_path / "rows.sst"
    # The buffer holds two blocks: whole pieces, broken pieces and a last block alone all occur.
    write_sst(path, keys, values, block_bytes=rows_per_block * (ENTRY_BYTES + v), buffer_bytes=4_000)
    assert Table.of(path).number("num.data.blocks") == -(-n // rows_per_block)
    ingest(db, path)
    assert_holds(db, as_dict(keys, values))


def test_blocks_lie_one_after_the_other_and_are_of_the_size_asked_for(tmp_path: Path) -> None:
    keys, values = random_rows(10_000, 176)
    path = tmp_path / "rows.sst"
    write_sst(path, keys, values)
    table = Table.of(path)
    end = 0
    for offset, size in table.data_blocks:
        assert offset == end
        assert size <= BLOCK_BYTES + 200  # restart offsets are not counted
        end += size + 5
    assert end == table.number("data.size") == table.number("tail.start.offset")


@given(data=st.data())
def test_any_shape_of_rows_and_blocks_comes_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 400), label="n")
    v = data.draw(st.integers(1, 500), label="v")
    few = data.draw(st.integers(1, 256), label="different bytes")  # few: long common prefixes
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    keys = rng.integers(0, few, (n, KEY_BYTES), dtype=np.uint8)
    keys[:, -4:] = np.arange(n, dtype=">u4").view(np.uint8).reshape(n, 4)
    values = rng.integers(0, 256, (n, v), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("any")
    path = folder / "rows.sst"
    size = write_sst(
        path,
        keys,
        values,
        order=byte_order(keys),
        block_bytes=data.draw(st.integers(1, 20_000), label="block_bytes"),
        buffer_bytes=data.draw(st.integers(1, 40_000), label="buffer_bytes"),
        bloom_bits_per_key=data.draw(st.sampled_from([0, 1, 10, 40]), label="bloom_bits_per_key"),
    )
    assert size == path.stat().st_size
    database = opened(folder / "db")
    try:
        ingest(database, path)
        assert_holds(database, as_dict(keys, values))
    finally:
        database.close()
        Rdict.destroy(str(folder / "db"))


def test_order_picks_rows_and_sorts_them(tmp_path: Path, db: Any) -> None:
    keys, values = random_rows(1_000, 50)
    shuffled = np.random.default_rng(3).permutation(1_000)
    keys, values = keys[shuffled], values[shuffled]
    wanted = byte_order(keys)[::3].copy()
    write_sst(tmp_path / "rows.sst", keys, values, order=wanted)
    ingest(db, tmp_path / "rows.sst")
    assert_holds(db, as_dict(keys[wanted], values[wanted]))


def test_read_only_arrays_are_taken(tmp_path: Path, db: Any) -> None:
    keys, values = random_rows(10, 50)
    keys.flags.writeable = values.flags.writeable = False
    write_sst(tmp_path / "rows.sst", keys, values)
    ingest(db, tmp_path / "rows.sst")
    assert_holds(db, as_dict(keys, values))


@pytest.mark.slow
def test_two_million_rows_come_back(tmp_path: Path, db: Any) -> None:
    n, v = 2_000_000, 44
    keys = np.zeros((n, KEY_BYTES), np.uint8)
    keys[:, 4:] = (np.arange(n, dtype=np.uint64) * np.uint64(3)).astype(">u8").view(np.uint8).reshape(n, 8)
    values = np.random.default_rng(0).integers(0, 256, (n, v), dtype=np.uint8)
    write_sst(tmp_path / "rows.sst", keys, values)
    ingest(db, tmp_path / "rows.sst")
    picked = np.random.default_rng(1).integers(0, n, 50_000)
    assert db.get([keys[i].tobytes() for i in picked]) == [values[i].tobytes() for i in picked]
    assert sum(1 for _ in db.items()) == n


# --- as one file among others ---


def test_the_newer_of_two_overlapping_files_wins(tmp_path: Path, db: Any) -> None:
    keys, old = random_rows(1_000, 60)
    _, new = random_rows(1_000, 60, seed=1)
    write_sst(tmp_path / "old.sst", keys, old)
    write_sst(tmp_path / "new.sst", keys[::2].copy(), new[::2].copy())
    ingest(db, tmp_path / "old.sst")
    ingest(db, tmp_path / "new.sst")
    expected = as_dict(keys, old) | as_dict(keys[::2], new[::2])
    assert_holds(db, expected)
    db.compact_range(None, None)
    assert_holds(db, expected)


def test_a_file_wins_over_earlier_puts_and_loses_to_later_ones(tmp_path: Path, db: Any) -> None:
    keys, values = random_rows(100, 60)
    before, after = keys[3].tobytes(), keys[7].tobytes()
    db[before] = b"earlier"
    write_sst(tmp_path / "rows.sst", keys, values)
    ingest(db, tmp_path / "rows.sst")
    db[after] = b"later"
    assert_holds(db, as_dict(keys, values) | {after: b"later"})


def test_a_row_deleted_after_ingesting_stays_away(tmp_path: Path, db: Any) -> None:
    keys, values = random_rows(500, 60)
    write_sst(tmp_path / "rows.sst", keys, values)
    ingest(db, tmp_path / "rows.sst")
    for key in keys[:250]:
        del db[key.tobytes()]
    assert_holds(db, as_dict(keys[250:], values[250:]))
    db.compact_range(None, None)
    assert db.get([key.tobytes() for key in keys[:250]]) == [None] * 250
    assert_holds(db, as_dict(keys[250:], values[250:]))


def test_rows_survive_reopening_and_compacting(tmp_path: Path) -> None:
    keys, values = random_rows(5_000, 176)
    write_sst(tmp_path / "rows.sst", keys, values)
    database = opened(tmp_path / "db")
    ingest(database, tmp_path / "rows.sst")
    database.close()
    for _ in range(2):
        database = opened(tmp_path / "db")
        assert_holds(database, as_dict(keys, values))
        database.compact_range(None, None)
        assert_holds(database, as_dict(keys, values))
        database.close()


def test_several_files_are_ingested_at_once(tmp_path: Path, db: Any) -> None:
    keys, values = random_rows(900, 60)
    paths = []
    for part in range(3):
        paths.append(tmp_path / f"{part}.sst")
        rows = slice(part * 300, (part + 1) * 300)
        write_sst(paths[-1], keys[rows].copy(), values[rows].copy())
    ingest(db, *paths)
    assert_holds(db, as_dict(keys, values))


def test_two_files_read_through_one_block_cache_do_not_mix(tmp_path: Path) -> None:
    """RocksDB's cache keys come from a file's identity: two files of one identity would serve each other's blocks."""
    table = BlockBasedOptions()
    table.set_block_cache(Cache(8 << 20))
    shared = options()
    shared.set_block_based_table_factory(table)
    keys, old = random_rows(200, 60)
    _, new = random_rows(200, 60, seed=1)
    for name, values in (("old", old), ("new", new)):
        write_sst(tmp_path / f"{name}.sst", keys, values)
        database = opened(tmp_path / name, shared)
        ingest(database, tmp_path / f"{name}.sst")
        assert_holds(database, as_dict(keys, values))
        database.close()


def test_a_row_past_its_ttl_goes_when_the_database_compacts(tmp_path: Path) -> None:
    keys, values = random_rows(1_000, 60)
    now_s = int(time.time())
    stamps = np.full(1_000, now_s, "<i4")
    old = np.random.default_rng(5).random(1_000) < 0.4
    stamps[old] = now_s - 2 * DAY_S
    stamped = np.hstack([values, stamps.view(np.uint8).reshape(-1, 4)])
    write_sst(tmp_path / "rows.sst", keys, stamped)
    database = opened(tmp_path / "db", access_type=AccessType.with_ttl(DAY_S))
    ingest(database, tmp_path / "rows.sst")
    assert_holds(database, as_dict(keys, values))  # without the stamp, and with the old rows: nothing compacted yet
    database.compact_range(None, None)
    assert_holds(database, as_dict(keys[~old], values[~old]))
    database.close()


# --- what is refused, and what the disk refuses ---


def refused(tmp_path: Path, expected: type[Exception], match: str, **arguments: Any) -> None:
    keys, values = random_rows(10, 20)
    path = tmp_path / "refused.sst"
    with pytest.raises(expected, match=match):
        write_sst(path, **{"keys": keys, "values": values, **arguments})
    assert not path.exists()


def test_arrays_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    keys, values = random_rows(10, 20)
    refused(tmp_path, WrongDtype, "keys are uint8, not int64", keys=keys.astype(np.int64))
    refused(tmp_path, WrongDtype, "values are uint8, not float32", values=np.zeros((10, 5), np.float32))
    refused(tmp_path, WrongDtype, "order is int64, not int32", order=np.arange(10, dtype=np.int32))
    refused(tmp_path, WrongShape, "keys are a C-contiguous", keys=keys[::2], values=values[:5])
    refused(tmp_path, WrongShape, r"\[10, 11\] and \[10, 20\]", keys=np.zeros((10, 11), np.uint8))
    refused(tmp_path, WrongShape, r"\[10, 12\] and \[9, 20\]", values=values[:9])
    refused(tmp_path, WrongShape, r"\[10, 12\] and \[10, 0\]", values=np.zeros((10, 0), np.uint8))
    refused(tmp_path, WrongShape, "order is a C-contiguous", order=np.zeros((2, 2), np.int64))
    refused(tmp_path, WrongShape, "order is a C-contiguous", order=np.arange(20)[::2])


def test_no_rows_and_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    refused(
        tmp_path, ValueError, "at least one row", keys=np.zeros((0, 12), np.uint8), values=np.zeros((0, 4), np.uint8)
    )
    refused(tmp_path, ValueError, "at least one row", order=np.zeros(0, np.int64))
    refused(tmp_path, ValueError, "bloom_bits_per_key 41", bloom_bits_per_key=41)
    refused(tmp_path, ValueError, "block_bytes 0", block_bytes=0)
    refused(tmp_path, ValueError, "block_bytes 4294967296", block_bytes=1 << 32)
    refused(tmp_path, ValueError, "buffer_bytes 0", buffer_bytes=0)


def test_keys_that_do_not_ascend_strictly_are_refused(tmp_path: Path) -> None:
    keys, _ = random_rows(10, 20)
    twice, swapped, low = keys.copy(), keys.copy(), keys.copy()
    twice[4] = twice[3]
    swapped[[6, 7]] = swapped[[7, 6]]
    low[9] = low[8]
    low[8:, 11] = 5, 4  # only the last byte differs
    for wrong, position in ((twice, 4), (swapped, 7), (low, 9)):
        here, before = wrong[position].tobytes().hex(), wrong[position - 1].tobytes().hex()
        refused(tmp_path, ValueError, f"{here} at {position} follows {before}", keys=wrong)


@pytest.mark.parametrize("row", [-1, 10, 2**62])
def test_a_row_number_out_of_range_is_refused(tmp_path: Path, row: int) -> None:
    refused(tmp_path, ValueError, rf"order\[1\] is {row}, keys has 10 rows", order=np.array([0, row, 2]))


def test_a_file_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    keys, values = random_rows(10, 20)
    path = tmp_path / "rows.sst"
    path.write_bytes(b"a link to a live table")
    with pytest.raises(FileExistsError):
        write_sst(path, keys, values)
    assert path.read_bytes() == b"a link to a live table"


def test_a_missing_directory_is_the_systems_own_error(tmp_path: Path) -> None:
    keys, values = random_rows(10, 20)
    with pytest.raises(FileNotFoundError):
        write_sst(tmp_path / "nowhere" / "rows.sst", keys, values)


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_a_full_disk_is_the_systems_own_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    keys, values = random_rows(1_000, 100)
    real, calls = os.write, 0

    def full(fd: int, *data: Any) -> int:
        nonlocal calls
        calls += 1
        if call == "write" and calls < 3:
            return real(fd, *data)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left") as error:
        write_sst(tmp_path / "rows.sst", keys, values, buffer_bytes=20_000, sync=True)
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_system_that_writes_little_at_a_time_still_gets_all_of_it(
    tmp_path: Path, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, values = random_rows(300, 100)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:777]))
    write_sst(tmp_path / "rows.sst", keys, values)
    monkeypatch.undo()
    ingest(db, tmp_path / "rows.sst")
    assert_holds(db, as_dict(keys, values))
