"""The journal: what was appended is read back; a cut end is dropped, damage is an error."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed.errors import FormatTooNew, JournalCorrupt, StorageFailed, StorageFull
from rockbed.storage.entries import Kind
from rockbed.storage.journal import Journal
from rockbed.storage.segment import Entry, file_header, read_segment, segment_files


def _journal(directory: Path, last: int = 0, **options: Any) -> Journal:
    directory.mkdir(exist_ok=True)
    journal = Journal(directory, fsync="never", **options)
    journal.open_for_append(last)
    return journal


@pytest.fixture(params=["small", "digest first", "digest meanwhile"])
def when(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways to write an entry: a small one in one piece; else part by part, its digest made before, or while the
    payload is written, as that of a large one where a core is to spare."""
    if request.param != "small":
        monkeypatch.setattr("rockbed.storage.journal._SMALL_BYTES", 0)
        monkeypatch.setattr("rockbed.storage.journal._LARGE_BYTES", 0)
        monkeypatch.setattr("rockbed.storage.journal.core_to_spare", lambda: request.param == "digest meanwhile")


def _payload(n: int) -> list[Any]:
    return [n.to_bytes(8, "little"), np.arange(n, dtype=np.int64), np.full((n, 2), n, np.float32)]


def _flat(parts: list[Any]) -> bytes:
    return b"".join(p if isinstance(p, bytes) else p.tobytes() for p in parts)


def _read(directory: Path) -> list[Entry]:
    files = segment_files(directory)
    ends = [*(first for first, _ in files[1:]), None]
    return [
        entry for (first, path), end in zip(files, ends, strict=True) for _, entry in read_segment(first, path, end)
    ]


@pytest.mark.usefixtures("when")
def test_entries_come_back_in_order_with_their_numbers(tmp_path: Path) -> None:
    journal = _journal(tmp_path / "j", last=41)
    assert [journal.append(Kind.PUSH, 1_000 + n, _payload(n)) for n in range(5)] == [42, 43, 44, 45, 46]
    journal.close()
    entries = _read(tmp_path / "j")
    assert [(e.lsn, e.kind, e.time_ms, bytes(e.payload)) for e in entries] == [
        (42 + n, Kind.PUSH, 1_000 + n, _flat(_payload(n))) for n in range(5)
    ]


@pytest.mark.usefixtures("when")
def test_golden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rockbed.storage.segment.boot_id", lambda: bytes(range(16)))
    journal = _journal(tmp_path / "j", last=41)
    journal.append(Kind.DELETE, 1_700_000_000_123, [b"Rockbed!", np.array([0x0706050403020100])])
    journal.close()
    path = tmp_path / "j" / "00000000000000000042.log"
    assert path.read_bytes().hex() == (
        "524f434b4245442d4a524e4c" "01000000"  # ROCKBED-JRNL, version
        "000102030405060708090a0b0c0d0e0f"  # boot
        "52424a31"  # RBJ1
        "02000000"  # kind: DELETE
        "2a00000000000000"  # LSN
        "7b68e5cf8b010000"  # time, ms
        "1000000000000000"  # bytes of payload
        "d9f7e69a3d571a9e"  # digest of the payload
        "2900000000000000"  # synced up to
        "a6254a25a4d36d98"  # digest of the 48 bytes before it
        "526f636b62656421" "0001020304050607"  # payload
        "d305d5433015b8ab"  # seal
    )  # fmt: skip


def test_segments_are_cut_by_size_and_trimmed_by_number(tmp_path: Path) -> None:
    journal = _journal(tmp_path / "j", segment_bytes=400)
    for n in range(12):
        journal.append(Kind.PUSH, n, _payload(9))
    assert len(journal.segments) > 3
    assert journal.total_bytes == sum(p.stat().st_size for _, p in journal.segments)
    journal.trim(7)
    kept = [e.lsn for e in _read(tmp_path / "j")]
    assert kept[-1] == 12
    assert 1 not in kept
    assert set(range(8, 13)) <= set(kept)
    assert journal.total_bytes == sum(p.stat().st_size for _, p in segment_files(tmp_path / "j"))
    journal.trim(12)
    assert _read(tmp_path / "j") == []
    assert journal.total_bytes == len(file_header())
    assert journal.append(Kind.PUSH, 0, _payload(1)) == 13
    journal.close()


def _three_entries(directory: Path) -> tuple[Path, bytes, list[int]]:
    """A segment of three entries, its bytes, and where each ends."""
    journal = _journal(directory)
    for n in range(3):
        journal.append(Kind.PUSH, n, _payload(2))
    journal.close()
    path = journal.segments[-1][1]
    return path, path.read_bytes(), [end for end, _ in read_segment(1, path, None)]


def _lsns(path: Path, until: int | None = None) -> list[int]:
    return [entry.lsn for _, entry in read_segment(1, path, until)]


def test_a_journal_cut_anywhere_in_its_last_entry_keeps_all_before(tmp_path: Path) -> None:
    path, whole, ends = _three_entries(tmp_path / "j")
    for cut in range(ends[1], ends[2] - 8):
        path.write_bytes(whole[:cut])
        assert _lsns(path) == [1, 2]
        with pytest.raises(JournalCorrupt, match="cut short, and the journal lacks the entries 3 to 3"):
            _lsns(path, until=4)
    for cut in range(ends[2] - 8, ends[2]):  # of the seal; what it seals is there
        path.write_bytes(whole[:cut])
        assert _lsns(path) == _lsns(path, until=4) == [1, 2, 3]
    path.write_bytes(whole[: ends[1]] + bytes(200))  # as a power cut may leave it: longer than what was synced
    assert _lsns(path) == [1, 2]


def test_any_changed_byte_is_damage_and_never_read_as_data(tmp_path: Path) -> None:
    path, whole, ends = _three_entries(tmp_path / "j")
    seals = {at for end in ends for at in range(end - 8, end)}
    for at in range(len(file_header()), len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        if at in seals:
            assert _lsns(path) == [1, 2, 3]
        else:
            with pytest.raises(JournalCorrupt, match=f"{path.name} is damaged at byte"):
                _lsns(path)


def test_a_newer_format_is_told_apart_from_damage(tmp_path: Path) -> None:
    journal = _journal(tmp_path / "j")
    journal.close()
    path = journal.segments[-1][1]
    path.write_bytes(b"ROCKBED-JRNL" + (2).to_bytes(4, "little") + bytes(16))
    with pytest.raises(FormatTooNew, match="format 2"):
        _lsns(path)
    path.write_bytes(b"something else than a journal...")
    with pytest.raises(JournalCorrupt):
        _lsns(path)


@pytest.mark.usefixtures("when")
def test_a_write_that_fails_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = _journal(tmp_path / "j")
    journal.append(Kind.PUSH, 0, _payload(4))
    real, calls = os.pwritev, []

    def full(handle: int, buffers: Any, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, [buffers[0][:20]], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(StorageFull, match="repeat it"):
            journal.append(Kind.PUSH, 1, _payload(4))
    assert journal.append(Kind.PUSH, 2, _payload(4)) == 2
    journal.close()
    assert [(e.lsn, e.time_ms) for e in _read(tmp_path / "j")] == [(1, 0), (2, 2)]


def test_a_failed_write_that_cannot_be_taken_back_stops_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = _journal(tmp_path / "j")
    journal.append(Kind.PUSH, 0, _payload(4))

    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail)
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(StorageFailed):
            journal.append(Kind.PUSH, 1, _payload(4))
    with pytest.raises(StorageFailed, match="reopen the store"):
        journal.append(Kind.PUSH, 1, _payload(4))
    journal.close()


@pytest.mark.usefixtures("when")
def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    journal = _journal(tmp_path / "j")
    monkeypatch.setattr(os, "pwritev", lambda handle, buffers, offset: real(handle, [buffers[0][:13]], offset))
    journal.append(Kind.PUSH, 0, _payload(50))
    journal.close()
    assert [bytes(e.payload) for e in _read(tmp_path / "j")] == [_flat(_payload(50))]


@pytest.mark.usefixtures("when")
def test_an_entry_is_there_whole_or_not_at_all_whenever_the_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = _journal(tmp_path / "j")
    for n in range(3):
        journal.append(Kind.PUSH, n, _payload(30))
    journal.trim(3)
    journal.append(Kind.PUSH, 3, _payload(5))
    journal.rotate()  # to the file of the first entries, which are still in it
    assert segment_files(tmp_path / "j")[-1][1].stat().st_size > 1_000
    whole = [(4, _flat(_payload(5))), (5, _flat(_payload(40)))]
    real, seen = os.pwritev, []

    def write_a_little(handle: int, buffers: Any, offset: int) -> int:
        done = real(handle, [buffers[0][:24]], offset)
        seen.append([(entry.lsn, bytes(entry.payload)) for entry in _read(tmp_path / "j")])
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", write_a_little)
        journal.append(Kind.PUSH, 4, _payload(40))
    assert len(seen) > 20
    assert seen[0] == whole[:1]
    assert all(each in (whole[:1], whole) for each in seen)
    assert seen[-1] == whole
    journal.close()


@pytest.mark.usefixtures("when")
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_write_that_fails_at_any_step_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    journal = _journal(tmp_path / "j")
    journal.append(Kind.PUSH, 0, _payload(4))
    real, steps = os.pwritev, []

    def fail_at_the_step(handle: int, buffers: Any, offset: int) -> int:
        steps.append(offset)
        if len(steps) == step:
            raise OSError(errno.EIO, "Input/output error")
        return real(handle, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail_at_the_step)
        try:
            journal.append(Kind.PUSH, 1, _payload(4))
        except StorageFailed:
            assert len(steps) == step
        else:
            assert len(steps) < step  # it takes one write where the digest is made before
    journal.append(Kind.PUSH, 2, _payload(3))
    journal.close()
    times = [0, 2] if len(steps) == step else [0, 1, 2]
    assert [(entry.lsn, entry.time_ms) for entry in _read(tmp_path / "j")] == list(enumerate(times, 1))


@pytest.mark.parametrize(("fsync", "before", "after"), [("always", 3, 3), ("interval", 0, 1), ("never", 0, 1)])
def test_fsync_waits_for_the_disk_when_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: str, before: int, after: int
) -> None:
    (tmp_path / "j").mkdir()
    journal = Journal(tmp_path / "j", fsync=fsync)
    journal.open_for_append(0)
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    for n in range(3):
        journal.append(Kind.PUSH, n, _payload(1))
    assert len(synced) == before
    journal.sync()
    journal.sync()
    assert len(synced) == after
    journal.close()
