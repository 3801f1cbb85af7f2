"""Segments that are used again: what an earlier use left in them is never read, and never hides damage."""

import os
import random
from pathlib import Path

import numpy as np
import pytest

from rockbed.errors import JournalCorrupt
from rockbed.storage.entries import Kind
from rockbed.storage.journal import Journal
from rockbed.storage.segment import FILE_BYTES, cut_off, read_segment, segment_files

SEAL_BYTES = 8
ANOTHER_BOOT = b"another boot...."


def _append(journal: Journal, n: int, words: int) -> int:
    # no byte of a payload is one of another n, up to 126
    return journal.append(Kind.PUSH, n, [np.full(words, (n + 1) * 0x0101010101010101)])


def _used_again(directory: Path) -> tuple[Journal, bytes]:
    """A journal whose only segment held 100 entries before, and the bytes it had then. It can take three like them."""
    directory.mkdir()
    journal = Journal(directory, fsync="never")
    journal.open_for_append(0)
    for n in range(100):
        _append(journal, n, 5)
    before = journal.segments[0][1].read_bytes()
    journal.trim(100)
    # its successor was there before it was free: the one after that takes it
    journal.trim(_append(journal, 100, 5) - 1)
    journal.rotate()
    journal.trim(101)
    return journal, before


def _lsns(path: Path, first: int, until: int | None = None) -> list[int]:
    return [entry.lsn for _, entry in read_segment(first, path, until)]


def test_a_trimmed_segment_is_the_next_but_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path, fsync="never")
    journal.open_for_append(0)
    files = []
    for n in range(6):
        _append(journal, n, 5)
        files.append(os.stat(journal.segments[-1][1]).st_ino)
        journal.trim(n + 1)
    assert files == [files[0], files[1]] * 3
    assert len(list(tmp_path.iterdir())) == 2
    journal.close()
    assert [path for _, path in segment_files(tmp_path)] == list(tmp_path.iterdir())


def test_only_as_much_is_kept_as_the_limit_allows_and_nothing_of_a_killed_process(tmp_path: Path) -> None:
    limit = 1_500
    journal = Journal(tmp_path, fsync="never", bytes_max=limit, segment_bytes=FILE_BYTES + 1)  # an entry a file
    journal.open_for_append(0)
    for n in range(20):
        _append(journal, n, 5)
    file_bytes = journal.segments[0][1].stat().st_size
    assert 20 * file_bytes > limit
    journal.trim(15)
    kept = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert limit - 2 * file_bytes < kept <= limit
    assert len(list(tmp_path.glob("*.log"))) == 5
    again = Journal(tmp_path, fsync="never")
    again.open_for_append(20)
    assert list(tmp_path.glob("*.spare")) == []
    again.close()
    journal.close()


def test_only_what_is_new_is_read_copied_and_counted(tmp_path: Path) -> None:
    journal, before = _used_again(tmp_path / "j")
    first, path = journal.segments[-1]
    assert path.read_bytes()[FILE_BYTES:] == before[FILE_BYTES:]  # the old entries, whole and aligned
    assert _lsns(path, first) == []
    for n in range(3):
        _append(journal, n, 5)
        assert _lsns(path, first) == list(range(first, first + n + 1))
    assert journal.total_bytes < path.stat().st_size / 10
    journal.rotate()
    _append(journal, 3, 5)
    assert _lsns(path, first, until=first + 3) == [first, first + 1, first + 2]
    (tmp_path / "copy").mkdir()
    journal.copy_to(tmp_path / "copy")
    assert sum(p.stat().st_size for p in (tmp_path / "copy").iterdir()) == journal.total_bytes
    journal.close()


@pytest.mark.parametrize("words", [5, 7, 100], ids=["as long as the old ones", "longer", "over many old ones"])
def test_a_write_that_ends_anywhere_leaves_all_before_it(tmp_path: Path, words: int) -> None:
    journal, _ = _used_again(tmp_path / "j")
    first, path = journal.segments[-1]
    _append(journal, 0, 3)
    old = path.read_bytes()
    start, _ = list(read_segment(first, path, None))[-1]
    _append(journal, 121, words)
    whole = path.read_bytes()
    (_, _), (end, _) = read_segment(first, path, None)
    journal.close()
    for at in range(start, end):
        path.write_bytes(whole[:at] + old[at:])
        sealed = at >= end - SEAL_BYTES
        assert _lsns(path, first) == ([first, first + 1] if sealed else [first])


def test_any_changed_byte_is_damage(tmp_path: Path) -> None:
    journal, _ = _used_again(tmp_path / "j")
    first, path = journal.segments[-1]
    for n in range(3):
        _append(journal, n, 2 + n)
    whole = path.read_bytes()
    ends = [end for end, _ in read_segment(first, path, None)]
    journal.close()
    seals = {at for end in ends for at in range(end - SEAL_BYTES, end)}
    for at in range(FILE_BYTES, ends[-1]):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        if at in seals:
            assert _lsns(path, first) == [first, first + 1, first + 2]
        else:
            with pytest.raises(JournalCorrupt, match=f"{path.name} is damaged at byte"):
                _lsns(path, first)
            assert not cut_off([(first, path)], first)


@pytest.mark.parametrize("seed", range(40))
def test_after_a_power_cut_what_was_synced_is_there_and_the_rest_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    journal, _ = _used_again(tmp_path / "j")
    first, path = journal.segments[-1]
    chance = random.Random(seed)
    synced = chance.randrange(6)
    on_disk = path.read_bytes()
    for n in range(8):
        if n == synced:
            journal.sync()
            on_disk = path.read_bytes()
        _append(journal, n, chance.choice([2, 5, 30]))
    written = path.read_bytes()
    ends = [FILE_BYTES, *(end for end, _ in read_segment(first, path, None))]
    journal.close()
    blocks = range(0, len(written), 64)
    lost = [at for at in blocks if chance.random() < 0.3]
    for at in lost:  # none of these blocks had been written anew when the power went
        written = written[:at] + on_disk[at : at + 64] + written[at + 64 :]
    path.write_bytes(written)
    monkeypatch.setattr("rockbed.storage.segment.boot_id", lambda: ANOTHER_BOOT)
    got: list[int] = []
    try:
        for _, entry in read_segment(first, path, None):
            got.append(entry.lsn)
    except JournalCorrupt:
        assert cut_off([(first, path)], first + len(got))
        monkeypatch.undo()
        assert not cut_off([(first, path)], first + len(got))  # a process was killed, no more: this is damage
    assert got == list(range(first, first + len(got)))
    assert len(got) >= synced
    if len(got) > synced:
        # what a later entry says was synced must be there, whatever happened to the machine
        end = ends[synced]
        if synced:
            path.write_bytes(written[: end - 20] + bytes([written[end - 20] ^ 1]) + written[end - 19 :])
            monkeypatch.setattr("rockbed.storage.segment.boot_id", lambda: ANOTHER_BOOT)
            with pytest.raises(JournalCorrupt):
                _lsns(path, first)
            assert not cut_off([(first, path)], first + synced - 1)


def test_a_file_that_lost_its_header_is_no_power_cut_while_a_later_one_is_of_this_boot(tmp_path: Path) -> None:
    journal = Journal(tmp_path, fsync="never")
    journal.open_for_append(0)
    _append(journal, 0, 5)
    journal.rotate()
    _append(journal, 1, 5)
    (first, path), *_ = segments = list(journal.segments)
    journal.close()
    path.write_bytes(path.read_bytes()[: FILE_BYTES - 3])
    with pytest.raises(JournalCorrupt, match="shorter than its header"):
        _lsns(path, first, until=2)
    assert not cut_off(segments, 1)
