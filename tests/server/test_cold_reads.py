"""Rows that are read from disk while others come and go: each is read once, and none is placed as it was before."""

from collections.abc import Callable

import numpy as np
import pytest

from rockbed import Feature, FusedEmbedding, PyEmbedding, PyStorage, Ragged
from rockbed.storage.record import decode_key
from rockbed.storage.rows import RowFiles
from rockbed.types import I64, U8
from tests.api.helpers import SMALL, OpenStorage, assert_sound, embedding, engine_of, ones, push_in_pieces

Reads = list[list[int]]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """The keys of each read from disk."""
    seen: Reads = []
    original = RowFiles.get

    def get(self: RowFiles, keys: U8, record_bytes: int) -> tuple[I64, U8]:
        seen.append([decode_key(key.tobytes())[1] for key in keys])
        return original(self, keys, record_bytes)

    monkeypatch.setattr(RowFiles, "get", get)
    return seen


def once_while_reading(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Have `act` happen after the next read from disk, before whoever reads goes on."""
    original, waiting = RowFiles.get, [act]

    def get(self: RowFiles, keys: U8, record_bytes: int) -> tuple[I64, U8]:
        found = original(self, keys, record_bytes)
        if waiting:
            waiting.pop()()
        return found

    monkeypatch.setattr(RowFiles, "get", get)


def absent(rows: PyEmbedding, keys: I64) -> I64:
    found, _ = engine_of(rows.storage).groups[rows.group].table.find(keys, 0)
    return keys[found < 0]


def cold_rows(storage: PyStorage, n: int = 20_000) -> PyEmbedding:
    """A group with rows 0 to n - 1, of weights -0.5; nearly all are on disk only."""
    rows = embedding(storage)
    push_in_pieces(rows, np.arange(n))
    storage.flush()
    return rows


def evict(rows: PyEmbedding, keys: I64) -> None:
    """Look up other rows until none of these is in memory."""
    for start in range(5_000, 20_000, 200):
        rows.lookup(np.arange(start, start + 200), train=False)
    assert absent(rows, keys).size == keys.size


@pytest.mark.parametrize("way", ["lookup", "prefetch"])
def test_a_batch_of_several_pieces_reads_each_row_once(open_storage: OpenStorage, reads: Reads, way: str) -> None:
    rows = cold_rows(open_storage(memory_budget=SMALL))
    keys = np.arange(4_000)
    cold = absent(rows, keys)
    assert cold.size > 3_000  # many times what fits in memory at once
    reads.clear()
    if way == "lookup":
        np.testing.assert_array_equal(rows.lookup(keys, train=False), ones(4_000, value=-0.5))
    else:
        assert rows.prefetch(keys) == (4_000, 0)
    assert len(reads) > 5
    assert sorted(key for read in reads for key in read) == cold.tolist()


def _looked_up(rows: PyEmbedding, keys: I64) -> None:
    np.testing.assert_array_equal(rows.lookup(keys)[:5], ones(5, value=-1))


def _pooled(rows: PyEmbedding, keys: I64) -> None:
    fused = FusedEmbedding([Feature("x", rows, combiner="sum")])
    out = fused.lookup({"x": Ragged(keys, np.arange(keys.size + 1))})
    np.testing.assert_array_equal(out.pooled[:5], ones(5, value=-1))


def _pushed(rows: PyEmbedding, keys: I64) -> None:
    rows.apply_gradients(keys, ones(keys.size, value=0))


def _prefetched(rows: PyEmbedding, keys: I64) -> None:
    assert rows.prefetch(keys) == (keys.size, 0)


@pytest.mark.parametrize("call", [_looked_up, _pooled, _pushed, _prefetched])
def test_a_row_that_came_changed_and_left_while_it_was_read_is_read_again(
    open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch, reads: Reads, call: Callable[[PyEmbedding, I64], None]
) -> None:
    storage = open_storage(memory_budget=SMALL)
    rows = cold_rows(storage)
    keys, changed = np.arange(100), np.arange(5)
    evict(rows, keys)

    def change() -> None:
        rows.apply_gradients(changed, ones(5))
        storage.flush()
        evict(rows, keys)
        reads.clear()

    once_while_reading(monkeypatch, change)
    call(rows, keys)
    again = [key for read in reads for key in read]
    assert set(again) >= set(changed.tolist())
    assert len(again) < 60  # of 100: those that share a mark with a row that left, some hundred of 65,536 marks
    np.testing.assert_array_equal(rows.lookup(keys, train=False), np.repeat([[-1.0], [-0.5]], [5, 95], 0).repeat(4, 1))
    assert_sound(storage)
