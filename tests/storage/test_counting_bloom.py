"""rockbed.storage.counting_bloom against its specification in plain integers, and its file against everything else."""

import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed.errors import (
    FormatTooNew,
    InvalidConfig,
    StorageCorrupt,
    StorageFailed,
    StorageFull,
    StoreLocked,
    StoreNotFound,
    StorePathInvalid,
)
from rockbed.storage import counting_bloom as cb
from rockbed.types import I64
from tests.source_tree import ROOT
from tests.splitmix import GAMMA, MASK, mix64

KEYS = st.one_of(st.integers(0, 20), st.sampled_from([-1, -(2**63), 2**63 - 1]))


def array(*values: int) -> I64:
    return np.array(values, np.int64)


def places(key: int, group: int, seed: int, size: int, hashes: int) -> list[int]:
    stream = mix64((mix64(seed ^ 0xA0761D6478BD642F) + (group + 1) * GAMMA) & MASK)
    first = mix64(stream ^ (key & MASK))
    second = mix64((first + GAMMA) & MASK) | 1
    return [((first + i * second) & MASK) % size for i in range(hashes)]


def filter_of(size: int, bits: int, hashes: int) -> cb.CountingBloom:
    return cb.CountingBloom(np.zeros(cb.words_of(size, bits), np.uint16), bits=bits, size=size, hashes=hashes)


def counters_in(words: bytes, bits: int, size: int) -> list[int]:
    whole = int.from_bytes(words, "little")
    return [(whole >> (i * bits)) & ((1 << bits) - 1) for i in range(size)]


# --- the counters ---


@given(
    st.lists(st.lists(st.tuples(KEYS, st.integers(0, 40)), max_size=50), max_size=5),
    st.sampled_from([4, 8, 16]),
    st.integers(1, 70),
    st.integers(1, 6),
    st.integers(0, 65535),
    st.integers(0, 2**64 - 1),
    st.data(),
)
def test_adding_and_asking_are_their_specification(
    batches: list[list[tuple[int, int]]], bits: int, size: int, hashes: int, group: int, seed: int, data: st.DataObject
) -> None:
    limit = data.draw(st.integers(1, (1 << bits) - 1))
    bloom = filter_of(size, bits, hashes)
    model = [0] * size
    for batch in batches:
        keys, nums = array(*(key for key, _ in batch)), array(*(num for _, num in batch))
        expected = []
        for key, num in batch:
            at = places(key, group, seed, size, hashes)
            value = min(min(model[i] for i in at) + num, limit)
            for i in at:
                model[i] = max(model[i], value)
            expected.append(value)
        assert bloom.add(keys, nums, limit=limit, group=group, seed=seed).tolist() == expected
        assert counters_in(bloom.words.tobytes(), bits, size) == model
        least = [min(model[i] for i in places(key, group, seed, size, hashes)) for key, _ in batch]
        assert bloom.least(keys, group=group, seed=seed).tolist() == least


@given(
    st.lists(st.tuples(KEYS, st.integers(1, 40), st.booleans()), max_size=50),
    st.sampled_from([4, 8, 16]),
    st.integers(1, 70),
    st.integers(0, 16),
    st.integers(0, 20),
)
def test_fading_is_its_specification(
    sent: list[tuple[int, int, bool]], bits: int, size: int, halvings: int, least: int
) -> None:
    bloom, flags = filter_of(size, bits, 3), filter_of(size, 1, 3)
    for key, num, flagged in sent:
        bloom.add(array(key), array(num), limit=(1 << bits) - 1, group=1, seed=2)
        if flagged:
            flags.add(array(key), array(1), limit=1, group=1, seed=2)
    before, flagged_before = counters_in(bloom.words.tobytes(), bits, size), counters_in(flags.words.tobytes(), 1, size)
    counts = [value >> halvings for value in before]
    stay = [int(flag and count >= least) for flag, count in zip(flagged_before, counts, strict=True)]
    assert bloom.fade(halvings, flags, least) == (sum(count > 0 for count in counts), sum(stay))
    assert counters_in(bloom.words.tobytes(), bits, size) == counts
    assert counters_in(flags.words.tobytes(), 1, size) == stay


def test_how_many_keys_there_are_is_estimated_from_the_counters_they_set() -> None:
    bloom, flags = filter_of(96_000, 4, 7), filter_of(96_000, 1, 7)
    for n in (1_000, 10_000, 30_000):
        bloom.add(np.arange(n), np.ones(n, np.int64), limit=15, group=0)
        assert bloom.keys_for(bloom.fade(0, flags, 0)[0]) == pytest.approx(n, rel=0.02)
    assert (bloom.keys_for(0), bloom.keys_for(96_000)) == (0, bloom.keys_for(95_999))  # full: at least so many


def test_a_count_as_large_as_it_can_be_does_not_overflow() -> None:
    bloom = filter_of(1_000, 16, 3)
    assert bloom.add(array(5), array(2**63 - 1), limit=65_535, group=0).tolist() == [65_535]
    assert bloom.add(array(5), array(2**63 - 1), limit=65_535, group=0).tolist() == [65_535]


def test_groups_and_seeds_count_apart() -> None:
    bloom = filter_of(100_000, 4, 7)
    bloom.add(np.arange(100), np.full(100, 9), limit=15, group=3, seed=4)
    assert not bloom.least(np.arange(100), group=4, seed=4).any()
    assert not bloom.least(np.arange(100), group=3, seed=5).any()


@pytest.mark.parametrize(("count", "bits"), [(1, 4), (15, 4), (16, 8), (255, 8), (256, 16), (65_535, 16)])
def test_counters_are_as_narrow_as_the_count_allows(count: int, bits: int) -> None:
    assert cb.bits_for(count) == bits


def test_a_count_that_no_counter_reaches_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="65535"):
        cb.bits_for(65_536)


@pytest.mark.parametrize(("capacity", "fpr"), [(1, 0.5), (1_000, 0.01), (12_345, 1e-3), (1 << 28, 1e-3), (7, 0.9)])
def test_sizes_are_those_of_the_formulas(capacity: int, fpr: float) -> None:
    exact = capacity * math.log(1 / fpr) / math.log(2) ** 2
    size, hashes = cb.shape_as_damo(capacity, fpr)
    assert size % 2 == 0
    assert exact <= size < exact + 2
    assert hashes == math.ceil(size / capacity * math.log(2)) >= 1
    size, hashes = cb.shape_as_deeprec(capacity, fpr)
    assert exact <= size < exact + 1
    assert hashes == math.ceil(abs(math.log(fpr)) / math.log(2)) >= 1


def test_known_sizes() -> None:
    assert cb.shape_as_damo(1_000, 0.01) == (9_586, 7)
    assert cb.shape_as_deeprec(1_000, 0.01) == (9_586, 7)
    assert cb.shape_as_deeprec(1_000_000, 1e-3) == (14_377_588, 10)


# --- the file ---


def opened(path: Path, capacity: int = 1_000, fpr: float = 0.01, reload: bool = True) -> cb.FilterFile:
    return cb.FilterFile(path, capacity=capacity, fpr=fpr, reload=reload)


def counters_of(file: cb.FilterFile) -> cb.CountingBloom:
    assert file.counters is not None
    return file.counters


def written(path: Path) -> None:
    file = opened(path)
    counters_of(file).add(array(1, 2, 3), array(1, 2, 20), limit=15, group=1)
    file.close()


def least(file: cb.FilterFile) -> list[int]:
    got: list[int] = counters_of(file).least(array(1, 2, 3, 4), group=1).tolist()
    return got


def test_counts_are_in_the_file(tmp_path: Path) -> None:
    written(tmp_path / "filter")
    file = opened(tmp_path / "filter")
    assert least(file) == [1, 2, 15, 0]
    file.close()
    file = opened(tmp_path / "filter", reload=False)
    assert least(file) == [0, 0, 0, 0]
    file.close()


def test_the_bytes_of_a_file_are_these(tmp_path: Path) -> None:
    written(tmp_path / "filter")
    content = (tmp_path / "filter").read_bytes()
    head = b"ROCKBED-CBF\0" + struct.pack("<IQIQd", 2, 9_586, 7, 1_000, 0.01)
    page = head + struct.pack("<I", zlib.crc32(head))
    assert content[:4096] == page + bytes(4096 - len(page))
    assert len(content) == 4096 + 2 * math.ceil(9_586 / 4)
    expected = [0] * 9_586
    for key, value in ((1, 1), (2, 2), (3, 15)):
        for at in places(key, 1, 0, 9_586, 7):
            expected[at] = max(expected[at], value)
    assert counters_in(content[4096:], 4, 9_586) == expected


def test_the_default_filter_takes_hardly_any_disk_space_at_first(tmp_path: Path) -> None:
    file = opened(tmp_path / "filter", capacity=1 << 28, fpr=1e-3)
    counters_of(file).add(array(1), array(1), limit=15, group=0)
    file.flush()
    status = (tmp_path / "filter").stat()
    file.close()
    assert 1.9e9 < status.st_size < 2e9
    assert status.st_blocks * 512 < 1 << 20


def test_a_second_opening_is_refused_until_the_first_is_closed_or_freed(tmp_path: Path) -> None:
    first = opened(tmp_path / "filter")
    for reload in (True, False):
        with pytest.raises(StoreLocked, match="open already"):
            opened(tmp_path / "filter", reload=reload)
    first.close()
    second = opened(tmp_path / "filter")
    del second
    opened(tmp_path / "filter").close()


def test_another_process_is_kept_out(tmp_path: Path) -> None:
    file = opened(tmp_path / "filter")
    code = (
        "import sys, pathlib; from rockbed.errors import StoreLocked\nfrom rockbed.storage.counting_bloom import "
        "FilterFile\ntry: FilterFile(pathlib.Path(sys.argv[1]), capacity=1000, fpr=0.01, reload=True)\nexcept "
        "StoreLocked: print('locked')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "filter")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "locked\n"
    file.close()


def test_a_filter_outlives_the_killing_of_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; import numpy as np; from pathlib import Path\nfrom rockbed.storage.counting_bloom import "
        "FilterFile\nfile = FilterFile(Path(sys.argv[1]), capacity=1000, fpr=0.01, "
        "reload=True)\nfile.counters.add(np.array([4]), np.array([5]), limit=15, group=1)\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "filter")], cwd=ROOT, capture_output=True)
    assert done.returncode == -9
    file = opened(tmp_path / "filter")
    assert least(file) == [0, 0, 0, 5]
    file.close()


@pytest.mark.parametrize("change", [{"capacity": 1_001}, {"capacity": 2_000}, {"fpr": 0.02}])
def test_a_file_made_with_other_settings_is_refused_and_both_are_named(tmp_path: Path, change: dict[str, Any]) -> None:
    written(tmp_path / "filter")
    with pytest.raises(InvalidConfig, match=r"capacity=1000, fpr=0\.01.*reload=False"):
        opened(tmp_path / "filter", **change)
    file = opened(tmp_path / "filter")
    assert least(file) == [1, 2, 15, 0]
    file.close()
    file = opened(tmp_path / "filter", reload=False, **change)
    assert least(file) == [0, 0, 0, 0]
    file.close()


@pytest.mark.parametrize("reload", [True, False])
@pytest.mark.parametrize("content", [b"precious", b"precious" * 10_000, bytes(8_888)])
def test_a_file_that_is_no_filter_is_refused_and_left_as_it_was(tmp_path: Path, content: bytes, reload: bool) -> None:
    (tmp_path / "letter").write_bytes(content)
    with pytest.raises(StorageCorrupt, match="not a filter file"):
        opened(tmp_path / "letter", reload=reload)
    assert (tmp_path / "letter").read_bytes() == content


def test_an_empty_file_becomes_a_filter(tmp_path: Path) -> None:
    (tmp_path / "filter").touch()
    written(tmp_path / "filter")


def cut(content: bytes) -> bytes:
    return content[:-1]


def extended(content: bytes) -> bytes:
    return content + b"\0"


def cut_in_the_header(content: bytes) -> bytes:
    return content[:40]


def with_a_flipped_bit(content: bytes) -> bytes:
    return content[:20] + bytes([content[20] ^ 1]) + content[21:]


def of_an_older_format(content: bytes) -> bytes:
    return content[:12] + struct.pack("<I", 1) + content[16:]


@pytest.mark.parametrize("damage", [cut, extended, cut_in_the_header, with_a_flipped_bit, of_an_older_format])
def test_a_damaged_file_is_refused_until_it_is_begun_anew(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "filter"
    written(path)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(StorageCorrupt, match="reload=False"):
        opened(path)
    assert path.read_bytes() == damaged
    file = opened(path, reload=False)
    assert least(file) == [0, 0, 0, 0]
    file.close()


def test_a_newer_format_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "filter"
    written(path)
    content = path.read_bytes()
    path.write_bytes(content[:12] + struct.pack("<I", 99) + content[16:])
    with pytest.raises(FormatTooNew, match="99"):
        opened(path)


def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorePathInvalid, match="not a regular file"):
        opened(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorePathInvalid, match="not a regular file"):
        opened(tmp_path / "pipe")
    with pytest.raises(StoreNotFound, match="there is no directory"):
        opened(tmp_path / "nowhere" / "filter")


def test_a_filter_larger_than_the_free_space_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "old")

    def full(handle: int) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 10_000, 1, 1, 10_000, 1, 1, 0, 255))  # one block free

    monkeypatch.setattr(os, "fstatvfs", full)
    with pytest.raises(StorageFull, match="smaller capacity"):
        opened(tmp_path / "new")
    opened(tmp_path / "old").close()  # what it takes already is not asked for again


def test_a_disk_that_fails_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(handle: int, length: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "ftruncate", failing)
    with pytest.raises(StorageFailed, match="opening the filter"):
        opened(tmp_path / "filter")
    monkeypatch.undo()
    opened(tmp_path / "filter").close()  # no lock is left behind


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    file = opened(tmp_path / "filter")
    file.close()
    file.close()
    assert file.counters is None
