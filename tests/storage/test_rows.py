"""`rows/` as the engine uses it: reads in parts, and files that wait for compaction."""

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed.storage import rows as rows_module
from rockbed.storage.record import TTL_STAMP_BYTES, disk_order, encode_keys
from rockbed.storage.rows import RowFiles
from rockbed.types import I64, U8
from tests.waiting import until

RECORD = 40


@pytest.fixture
def files(tmp_path: Path) -> Iterator[RowFiles]:
    found = RowFiles(tmp_path / "rows", ttl_s=0, cache_bytes=1 << 20, read_only=False)
    yield found
    found.close()


def records(keys: I64, salt: int = 0) -> U8:
    """A record of each key, its stamp included."""
    made = np.zeros((keys.size, RECORD + TTL_STAMP_BYTES), np.uint8)
    made[:, 0], made[:, 1] = keys % 251, salt
    made[:, RECORD:] = np.frombuffer((2**31 - 1).to_bytes(TTL_STAMP_BYTES, "little"), np.uint8)
    return made


def put(files: RowFiles, keys: I64, salt: int = 0, group: int = 1) -> None:
    files.put_run(encode_keys(group, keys), records(keys, salt), disk_order(keys))


class Noting:
    """RocksDB that notes how many keys a call asks for."""

    def __init__(self, db: Any) -> None:
        self.db = db
        self.sizes: list[int] = []

    def get(self, keys: list[Any]) -> Any:
        self.sizes.append(len(keys))
        return self.db.get(keys)


@pytest.mark.parametrize("n", [0, 1, 99, 3_000])
def test_a_read_asks_for_so_many_rows_at_a_time_and_finds_them_all(
    files: RowFiles, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.setattr(rows_module, "_CALL_ROWS", 100)
    there = np.arange(0, 2 * n, 2)
    if n:
        put(files, there)
    noting = Noting(files._db)
    monkeypatch.setattr(files, "_db", noting)
    keys: I64 = np.arange(2 * n)
    keys = keys[disk_order(keys)]
    positions, found = files.get(encode_keys(1, keys), RECORD)
    monkeypatch.undo()
    assert keys[positions].tolist() == keys[keys % 2 == 0].tolist()
    np.testing.assert_array_equal(found, records(keys[positions])[:, :RECORD])
    assert sum(noting.sizes) == keys.size
    assert max(noting.sizes, default=0) <= 100


def test_files_wait_until_compaction_has_merged_them(files: RowFiles) -> None:
    keys = np.arange(1_000)
    assert files.uncompacted_files == 0
    for salt in range(9):
        put(files, keys, salt)
    assert files.runs == 9
    assert files.uncompacted_files == 8  # the first has nothing below it
    files.compact()
    assert files.uncompacted_files == 0
    assert (files.get(encode_keys(1, keys[:1]), RECORD)[1][:, 1] == 8).all()


def test_compaction_begins_with_so_many_files_and_goes_on_until_few_are_left(files: RowFiles) -> None:
    keys = np.arange(1_000)
    salt = 0
    for _ in range(2):
        files.pace_compaction(8)
        while files.uncompacted_files < 7:
            salt += 1
            put(files, keys, salt, group=salt % 5)
        files.pace_compaction(8)
        time.sleep(0.2)
        assert files.uncompacted_files == 7
        salt += 1
        put(files, keys, salt, group=salt % 5)
        files.pace_compaction(8)
        until(lambda: files.uncompacted_files < 4)
    for group in range(5):
        latest = max(s for s in range(salt + 1) if s % 5 == group)
        found = files.get(encode_keys(group, keys[disk_order(keys)]), RECORD)[1]
        assert found.shape[0] == keys.size
        assert (found[:, 1] == latest).all()


def test_compaction_that_has_begun_does_not_end_before_few_files_are_left(
    files: RowFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    triggers: list[str] = []
    monkeypatch.setattr(RowFiles, "uncompacted_files", property(lambda _: count))
    monkeypatch.setattr(files, "_set_option", lambda _, value: triggers.append(value))
    few, never = "4", str(2**31 - 1)
    for count, told in [(7, None), (8, few), (9, None), (5, None), (4, None), (3, never), (7, None), (8, few)]:
        triggers.clear()
        files.pace_compaction(8)
        assert triggers == ([told] if told else []), count


def test_merged_rows_lie_in_small_files(files: RowFiles, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 256, (120_000, RECORD + TTL_STAMP_BYTES), np.uint8)
    keys = np.arange(120_000)
    for group in range(4):
        values[:, RECORD:] = records(keys)[:, RECORD:]
        files.put_run(encode_keys(group, keys), values, disk_order(keys))
    files.compact()
    sizes = [file.stat().st_size for file in (tmp_path / "rows").glob("*.sst")]
    assert sum(sizes) > 16 << 20
    assert max(sizes) < 6 << 20


def told_to_rocksdb(path: Path) -> dict[str, str]:
    (options,) = path.glob("OPTIONS-*")
    return dict(line.strip().split("=", 1) for line in options.read_text().splitlines() if "=" in line)


def test_no_writer_waits_for_compaction(files: RowFiles, tmp_path: Path) -> None:
    told = told_to_rocksdb(tmp_path / "rows")
    never = str(2**31 - 1)
    assert (told["level0_slowdown_writes_trigger"], told["level0_stop_writes_trigger"]) == (never, never)
    assert (told["soft_pending_compaction_bytes_limit"], told["hard_pending_compaction_bytes_limit"]) == ("0", "0")


@pytest.mark.parametrize(
    ("limit", "kept_open"), [(100, 64), (1_024, 512), (65_536, 4_096), (resource.RLIM_INFINITY, 4_096)]
)
def test_as_many_files_are_kept_open_as_the_process_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, kept_open: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    RowFiles(tmp_path / "rows", ttl_s=0, cache_bytes=1 << 20, read_only=False).close()
    assert told_to_rocksdb(tmp_path / "rows")["max_open_files"] == str(kept_open)
