"""Rows of a device table come, stay, leave and come back with every bit they had."""

import numpy as np
import pytest

from rockbed.errors import BatchTooLarge, InvalidConfig
from rockbed.storage import hot_kernels as k
from rockbed.storage import index as ix
from rockbed.storage.gpu.launcher import Launcher
from rockbed.storage.gpu.sources import TABLE
from rockbed.storage.gpu.table import DeviceTable, row_bytes
from rockbed.storage.record import headers_of
from rockbed.types import F32, I64, U8
from tests.gpu.tables import EXTREMES, data_of, make_table, records_of, resident


def some_rows(n: int, width: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def load(table: DeviceTable, keys: I64, *, lsn: int = 5, fresh: bool = False) -> U8:
    records = records_of(keys, some_rows(keys.size, table.width), dim=table.dim, lsn=lsn, fresh=fresh)
    table.load(keys, records)
    return records


def touch(launcher: Launcher, table: DeviceTable, keys: I64, put: int = k.TOUCHED, clear: int = 0) -> None:
    rows, missing = table.find(launcher.to_device(keys), touch=0)
    assert missing == 0
    launcher.launch(TABLE, "change_flags", keys.size, table.flags, rows, keys.size, clear, put)


@pytest.mark.parametrize(("optimizer", "dim"), [("sgd", 1), ("adagrad", 3), ("adam", 4), ("adagrad_decay", 8)])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_record_comes_back_as_it_went_in(launcher: Launcher, optimizer: str, dim: int, fresh: bool) -> None:
    table = make_table(launcher, dim, optimizer=optimizer)
    keys = np.concatenate([EXTREMES, np.arange(100, 130)])
    records = load(table, keys, fresh=fresh)
    rows, missing = table.find(launcher.to_device(keys))
    assert missing == 0
    assert table.records(rows).tobytes() == records.tobytes()
    assert not (launcher.to_host(table.flags) & k.DIRTY).any()


def test_headers_say_key_count_and_whether_a_push_was_seen(launcher: Launcher) -> None:
    table, new = make_table(launcher), np.array([1, 2])
    fresh, _ = table.insert(launcher.to_device(new), now_ms=1, lsn=1)
    loaded = table.load(np.array([5, 6]), records_of(np.array([5, 6]), some_rows(2, 4), count=9))
    table.update(fresh[1:], launcher.zeros((1, 4), np.float32), 0.1, step=-1, now_ms=1, lsn=1)
    for rows, keys, counts, unseen in [(fresh, [1, 2], [0, 1], [1, 0]), (loaded, [5, 6], [9, 9], [0, 0])]:
        assert [each.tolist() for each in table.headers(rows)] == [keys, counts, unseen]


def test_a_record_of_a_key_that_is_there_is_left_aside(launcher: Launcher) -> None:
    table = make_table(launcher)
    first = load(table, np.array([1, 2]))
    table.load(np.array([2, 3]), records_of(np.array([2, 3]), some_rows(2, 4, seed=9)))
    rows, _ = table.find(launcher.to_device(np.array([1, 2, 3])))
    assert table.records(rows[:2]).tobytes() == first.tobytes()
    assert table.count == 3


def test_clean_rows_make_room_in_the_order_of_the_hosts_clock(launcher: Launcher) -> None:
    capacity, rng = 80, np.random.default_rng(4)
    table = make_table(launcher, rows=capacity)
    header, flags = np.zeros((capacity, 4), np.int64), np.zeros(capacity, np.uint8)
    index = np.zeros((256, 2), np.int64)
    load(table, np.arange(capacity))
    launcher.launch(TABLE, "clear_bits", capacity, table.flags, capacity, k.TOUCHED)
    header[:, 0] = np.arange(capacity)
    flags[:] = k.USED
    ix.insert_rows(index, np.arange(capacity), np.arange(capacity))
    hand = 0
    for want in (3, 17, 1, 40, 30):
        here = launcher.to_host(table.used_rows()).astype(np.int64)
        for bits in (k.TOUCHED, k.DIRTY, k.PINNED):
            chosen = rng.choice(here, here.size // 4, replace=False)
            touch(launcher, table, header[chosen, 0], put=bits)
            k.change_flags(flags, chosen, 0, bits)
        freed = np.empty(want, np.int64)
        found, hand = k.evict(index, header, flags, table.high, hand, want, freed)
        assert table.evict(want) == found
        np.testing.assert_array_equal(launcher.to_host(table.flags), flags)
        assert table.evictions > 0


def test_dirty_rows_are_written_back_before_they_make_room(launcher: Launcher) -> None:
    written: list[U8] = []
    table = make_table(launcher, rows=64, written=written)
    old = np.arange(64)
    table.insert(launcher.to_device(old), now_ms=1, lsn=1)
    before = resident(table)
    table.insert(launcher.to_device(np.arange(100, 130)), now_ms=2, lsn=2)
    gone = np.setdiff1d(old, list(resident(table)))
    records = np.concatenate(written)
    keys = headers_of(records)["key"]
    assert np.isin(gone, keys).all()
    for key, row in zip(keys.tolist(), data_of(records), strict=True):
        np.testing.assert_array_equal(row, before[key])
    assert table.count <= 64
    assert (headers_of(records)["flags"] == 1).all()  # they have seen no push


def test_rows_that_were_written_back_are_clean_and_are_not_written_again(launcher: Launcher) -> None:
    written: list[U8] = []
    table = make_table(launcher, written=written)
    table.insert(launcher.to_device(np.arange(10)), now_ms=1, lsn=1)
    assert table.write_back() == 10
    assert table.write_back() == 0
    assert headers_of(np.concatenate(written))["key"].tolist() == list(range(10))
    table.update(
        table.find(launcher.to_device(np.array([4])))[0],
        launcher.zeros((1, 4), np.float32),
        0.1,
        step=-1,
        now_ms=9,
        lsn=9,
    )
    assert table.write_back() == 1
    assert headers_of(written[-1])["key"].tolist() == [4]
    assert headers_of(written[-1])["flags"].tolist() == [0]


def test_rows_stay_dirty_where_writing_back_failed(launcher: Launcher) -> None:
    table = make_table(launcher, rows=64)

    def full(records: U8) -> None:
        raise OSError("disk full")

    table.insert(launcher.to_device(np.arange(64)), now_ms=1, lsn=1)
    accepted, table._write_back = table._write_back, full
    with pytest.raises(OSError, match="disk full"):
        table.insert(launcher.to_device(np.arange(100, 110)), now_ms=1, lsn=1)
    assert sorted(resident(table)) == list(range(64))
    table._write_back = accepted
    assert table.write_back() == 64
    table.insert(launcher.to_device(np.arange(100, 110)), now_ms=1, lsn=1)
    assert set(range(100, 110)) <= set(resident(table))


def test_pinned_rows_stay_until_they_are_let_go(launcher: Launcher) -> None:
    table = make_table(launcher, rows=64)
    table.insert(launcher.to_device(np.arange(60)), now_ms=1, lsn=1, pin=True)
    with pytest.raises(BatchTooLarge, match="60 of which are in use"):
        table.insert(launcher.to_device(np.arange(100, 105)), now_ms=1, lsn=1)
    assert sorted(resident(table)) == list(range(60))
    table.insert(launcher.to_device(np.arange(100, 105)), now_ms=1, lsn=1)  # the refused call let go of all
    assert set(range(100, 105)) <= set(resident(table))


def test_rows_expire_at_the_given_time(launcher: Launcher) -> None:
    table = make_table(launcher)
    for now_ms in (10, 20, 30):
        table.insert(launcher.to_device(np.arange(now_ms, now_ms + 5)), now_ms=now_ms, lsn=1)
    assert table.expire(9) == 0
    assert table.expire(20) == 10
    assert sorted(resident(table)) == list(range(30, 35))
    _, created = table.insert(launcher.to_device(np.arange(8, 12)), now_ms=40, lsn=2)
    assert created == 4


def test_a_budget_that_holds_too_few_rows_is_refused(launcher: Launcher) -> None:
    with pytest.raises(
        InvalidConfig, match=f"63 rows of 4 floats, 64 are the least: give it {64 * row_bytes(4)} bytes"
    ):
        make_table(launcher, rows=63)


def test_a_table_keeps_within_its_budget(launcher: Launcher) -> None:
    for dim, optimizer in [(1, "sgd"), (16, "adam"), (33, "adagrad_decay")]:
        table = make_table(launcher, dim, rows=1000, optimizer=optimizer)
        arrays = (table.data, table.header, table.flags, table.index, table._free)
        scratch = 8 * table.capacity  # while rows are chosen: marks and their sum
        assert sum(array.nbytes for array in arrays) + scratch <= 1000 * row_bytes(table.width) + 64
        assert table.capacity == 1000


def test_a_table_without_keys(launcher: Launcher) -> None:
    table, none = make_table(launcher), launcher.empty(0, np.int64)
    assert table.find(none)[1] == 0
    assert table.insert(none, now_ms=1, lsn=1)[1] == 0
    assert (table.evict(5), table.write_back(), table.expire(99)) == (0, 0, 0)
    assert table.remove(np.array([1, 2])) == 0
    assert table.records(table.used_rows()).shape == (0, 40 + 16)
    table.unpin()
