"""The index of a device table: every key has one row, whatever threads do at the same time."""

import numpy as np
import pytest

from rockbed.errors import BatchTooLarge
from rockbed.storage.gpu.launcher import Launcher
from rockbed.storage.gpu.sources import TABLE
from rockbed.types import I64
from tests.gpu.tables import EXTREMES, initial_rows, make_table, resident


def some_keys(n: int, seed: int) -> I64:
    keys = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, n)
    distinct: I64 = np.unique(np.concatenate([keys, EXTREMES]))
    return distinct


@pytest.mark.parametrize("seed", range(5))
def test_keys_that_repeat_in_a_batch_get_one_row_in_the_order_of_their_first_place(
    launcher: Launcher, seed: int
) -> None:
    table, keys = make_table(launcher), some_keys(50, seed)
    batch = np.random.default_rng(seed).choice(keys, 300)
    rows, created = table.insert(launcher.to_device(batch), now_ms=1, lsn=1)
    rows = launcher.to_host(rows)
    distinct, first, inverse = np.unique(batch, return_index=True, return_inverse=True)
    assert created == distinct.size
    order = np.empty(distinct.size, np.int64)
    order[np.argsort(first)] = np.arange(distinct.size)  # which rows: the same ones on every run
    assert rows.tolist() == order[inverse].tolist()
    found, missing = table.find(launcher.to_device(batch))
    assert missing == 0
    assert launcher.to_host(found).tolist() == rows.tolist()


def test_keys_that_are_not_there_are_not_found(launcher: Launcher) -> None:
    table, keys = make_table(launcher), some_keys(100, 1)
    table.insert(launcher.to_device(keys[::2]), now_ms=1, lsn=1)
    rows, missing = table.find(launcher.to_device(keys))
    assert missing == keys[1::2].size
    assert (launcher.to_host(rows)[1::2] == -1).all()
    assert (launcher.to_host(rows)[::2] >= 0).all()


def test_an_insert_finds_what_is_there_and_makes_what_is_not(launcher: Launcher) -> None:
    table, keys = make_table(launcher), some_keys(60, 2)
    first, _ = table.insert(launcher.to_device(keys[:40]), now_ms=1, lsn=1)
    both, created = table.insert(launcher.to_device(keys), now_ms=2, lsn=2)
    assert created == keys.size - 40
    assert launcher.to_host(both)[:40].tolist() == launcher.to_host(first).tolist()
    np.testing.assert_array_equal(launcher.to_host(table.gather(both)), initial_rows(keys, 4))


def test_keys_come_and_go_and_the_index_is_built_anew(launcher: Launcher) -> None:
    table, keys = make_table(launcher, rows=64), some_keys(600, 3)
    model: set[int] = set()
    rng = np.random.default_rng(3)
    for _ in range(60):
        come = rng.choice(keys, 16)
        table.insert(launcher.to_device(come), now_ms=1, lsn=1)
        model |= set(come.tolist())
        go = rng.choice(list(model), max(0, len(model) - 40), replace=False)
        assert table.remove(np.append(go, [123456789]).astype(np.int64)) == go.size
        model -= set(go.tolist())
        assert table.count == len(model)
        rows, missing = table.find(launcher.to_device(keys))
        assert missing == keys.size - len(model)
        assert set(keys[launcher.to_host(rows) >= 0].tolist()) == model
    assert set(resident(table)) == model


@pytest.mark.parametrize("seed", range(4))
def test_an_index_is_right_up_to_its_last_entry_but_one(launcher: Launcher, seed: int) -> None:
    size, n = 40, 39
    keys = np.random.default_rng(seed).integers(-100, 100, 1000)
    keys = launcher.to_device(np.unique(keys)[:n])
    index = launcher.empty((size + 2, 2), np.int64)
    flags, at, won = launcher.zeros(64, np.uint8), launcher.empty(n, np.int64), launcher.empty(n, np.int32)
    launcher.launch(TABLE, "clear_index", size + 2, index, size)
    launcher.launch(TABLE, "claim_entries", n, index, size, keys, n, flags, at)
    launcher.launch(TABLE, "find_winners", n, index, at, n, won)
    rank, free = launcher.running_sum(won), launcher.to_device(np.arange(n, dtype=np.int32)[::-1])
    header, fresh, rows = launcher.zeros((64, 4), np.int64), launcher.empty(n, np.int64), launcher.empty(n, np.int32)
    made = launcher.empty(n, np.int32)
    launcher.launch(TABLE, "settle", n, index, keys, at, n, won, rank, free, n, header, flags, fresh, made)
    launcher.launch(TABLE, "find", n, index, size, keys, n, flags, 0, rows, launcher.zeros(1, np.int32))
    assert launcher.to_host(rows).tolist() == list(range(n))


def test_a_batch_that_does_not_fit_is_refused_and_leaves_the_index_as_it_was(launcher: Launcher) -> None:
    table = make_table(launcher, rows=64)
    keys = np.arange(65)
    table.insert(launcher.to_device(keys[:10]), now_ms=1, lsn=1)
    with pytest.raises(BatchTooLarge, match="do not fit into the device memory of 64 rows"):
        table.insert(launcher.to_device(keys), now_ms=1, lsn=1)
    table.insert(launcher.to_device(np.arange(100, 110)), now_ms=1, lsn=1)
    rows, missing = table.find(launcher.to_device(np.arange(100, 110)))
    assert missing == 0
    assert np.unique(launcher.to_host(rows)).size == 10


def test_a_reserved_key_of_a_refused_batch_can_come_again_at_any_place(launcher: Launcher) -> None:
    table, reserved = make_table(launcher, rows=64), np.array([-(2**63), -(2**63) + 1])
    table.insert(launcher.to_device(np.arange(60)), now_ms=1, lsn=1, pin=True)
    with pytest.raises(BatchTooLarge):
        table.insert(launcher.to_device(np.append(reserved, np.arange(100, 110))), now_ms=1, lsn=1)
    again = np.append(np.arange(200, 205), reserved)
    rows, created = table.insert(launcher.to_device(again), now_ms=1, lsn=1)
    assert created == 7
    np.testing.assert_array_equal(launcher.to_host(table.gather(rows)), initial_rows(again, 4))
