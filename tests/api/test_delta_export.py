"""Exports since another one: what has changed and what is gone, against a dict; chains, and what breaks them."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import (
    FormatTooNew,
    GroupConflict,
    InvalidConfig,
    PyStorage,
    ReadOnlyStorage,
    StorageCorrupt,
    StoreNotFound,
    UnknownGroup,
)
from rockbed.server import exporting, importing
from rockbed.slots import slots_of
from tests.api.helpers import Clock, OpenStorage, adagrad, embedding, keys_of, ones, uniform
from tests.api.tables import FORMATS, manifest_of, stored, write_manifest


def _train(storage: PyStorage, random: np.random.Generator, group: int = 1) -> None:
    rows = embedding(storage, 4, group, optimizer=adagrad(), initializer=uniform())
    keys = np.unique(random.integers(-400, 400, 200))
    rows.apply_gradients(keys, random.normal(size=(keys.size, 4)).astype(np.float32))
    rows.lookup(random.integers(400, 500, 5))


def _export(storage: PyStorage, path: Path, **options: Any) -> Any:
    return storage.export(path, format="npz", digests=True, **options)


@pytest.mark.parametrize("format", FORMATS)
def test_a_chain_ends_with_the_rows_of_a_whole_export(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(exporting, "FILE_ROWS_MAX", 70)
    monkeypatch.setattr(importing, "_REMOVE_KEYS", 50)
    storage, random = open_storage(clock=clock), np.random.default_rng(1)
    since, seen = None, []
    for i in range(4):
        clock.now += 100
        _train(storage, random)
        if i:
            storage.shrink(group=1, max_age=250)
        before = stored(storage, 1)
        exported = storage.export(tmp_path / str(i), format=format, slots=True, digests=True, since=since)
        seen.append(before)
        earlier = seen[-2] if i else {}
        changed = {key for key, row in before.items() if earlier.get(key) != row}
        assert exported.rows_written == {1: len(changed)}
        assert exported.rows_removed == ({1: len(earlier.keys() - before.keys())} if i else {})
        since = tmp_path / str(i)
    assert any(earlier.keys() - later.keys() for earlier, later in pairwise(seen))
    other = open_storage("other", clock=clock)
    for i, rows in enumerate(seen):  # each by itself, on what the ones before left
        removed = seen[i - 1].keys() - rows.keys() if i else set()
        report = other.import_(tmp_path / str(i), chain=False)
        assert report.rows_removed == ({1: len(removed)} if i else {})
        for key in list(removed)[:1]:
            assert other.get_rows(1, keys_of(key)).explain(0).endswith("by an import")
        assert stored(other, 1) == rows
    whole = open_storage("whole", clock=clock)
    whole.import_(tmp_path / "3")
    whole.import_(tmp_path / "3")  # an import may be repeated
    assert stored(whole, 1) == seen[-1]
    assert whole.check().ok


def test_a_row_that_was_removed_and_began_anew_is_a_change(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path
) -> None:
    storage = open_storage(clock=clock)
    rows = embedding(storage, initializer=uniform())
    rows.apply_gradients(keys_of(1, 2), ones(2))
    _export(storage, tmp_path / "a")
    clock.now += 10
    storage.shrink(max_age=5)
    rows.lookup(keys_of(1))
    report = _export(storage, tmp_path / "b", since=tmp_path / "a")
    assert (report.rows_written, report.rows_removed) == ({0: 1}, {0: 1})
    report = _export(storage, tmp_path / "c", since=tmp_path / "b")
    assert (report.rows_written, report.rows_removed) == ({0: 0}, {0: 0})


def test_a_group_may_join_a_chain(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage, random = open_storage(), np.random.default_rng(8)
    _train(storage, random)
    _export(storage, tmp_path / "a", slots=True)
    _train(storage, random, group=2)
    report = _export(storage, tmp_path / "b", since=tmp_path / "a", slots=True)
    assert report.rows_written == {1: 0, 2: len(stored(storage, 2))}
    other = open_storage("other")
    other.import_(tmp_path / "b", groups=[1, 2])
    assert [stored(other, group) for group in (1, 2)] == [stored(storage, group) for group in (1, 2)]
    with pytest.raises(UnknownGroup):
        other.import_(tmp_path / "b", groups=[3])


def test_expired_and_filtered_rows_are_gone(open_storage: OpenStorage, clock: Clock, tmp_path: Path) -> None:
    storage = open_storage(clock=clock)
    rows = embedding(storage, ttl=60)
    rows.apply_gradients(keys_of(1, 2, 3), ones(3, value=2.0))
    _export(storage, tmp_path / "a", min_abs=0.5)
    clock.now += 50
    rows.apply_gradients(keys_of(2), ones(1, value=-2.0))  # back to 0
    rows.apply_gradients(keys_of(3), ones(1))
    clock.now += 20
    report = _export(storage, tmp_path / "b", since=tmp_path / "a", min_abs=0.5)
    assert (report.rows_written, report.rows_removed) == ({0: 1}, {0: 2})


@pytest.mark.parametrize("options", [{"min_abs": 2.0}, {"min_count": 5}])
def test_changes_of_no_row_at_all_are_exported(storage: PyStorage, tmp_path: Path, options: dict[str, Any]) -> None:
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1, 2), ones(2))
    assert _export(storage, tmp_path / "a", **options).rows_written == {0: 0}
    report = _export(storage, tmp_path / "b", since=tmp_path / "a", **options)
    assert (report.rows_written, report.rows_removed) == ({0: 0}, {0: 0})


def test_rows_near_to_zero_are_left_out(storage: PyStorage, tmp_path: Path) -> None:
    rows = embedding(storage)
    values = np.array([[0, 0, 0, 0], [0.01, -0.01, 0, 0], [0.01, -0.02, 0, 0]], np.float32)
    storage.put_rows(rows.group, keys_of(1, 2, 3), values)
    for least, kept in ((None, 3), (1e-45, 2), (0.02, 1), (0.5, 0)):
        path = tmp_path / f"export-{least}"
        assert storage.export(path, format="npz", min_abs=least).rows_written == {0: kept}


def test_an_import_may_take_a_range_of_slots(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage, random = open_storage(), np.random.default_rng(2)
    _train(storage, random)
    _export(storage, tmp_path / "a", slots=True)
    storage.shrink(group=1, min_norm=1.0)
    _export(storage, tmp_path / "b", slots=True, since=tmp_path / "a")
    rows = stored(storage, 1)
    keys = np.array(list(rows))
    low = set(keys[slots_of(keys) < 5000].tolist())
    parts = [open_storage(name) for name in ("low", "high")]
    reports = [
        part.import_(tmp_path / "b", slots=slots) for part, slots in zip(parts, ((0, 5000), (5000, 16384)), strict=True)
    ]
    for part, is_low in zip(parts, (True, False), strict=True):
        assert stored(part, 1) == {key: row for key, row in rows.items() if (key in low) is is_low}
    assert sum(report.rows_read[1] for report in reports) == sum(
        manifest_of(tmp_path / name)["groups"][0]["rows"] for name in ("a", "b")
    )


def test_a_dry_run_checks_and_stores_nothing(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    _train(storage, np.random.default_rng(3))
    _export(storage, tmp_path / "a")
    other = open_storage("other")
    assert other.import_(tmp_path / "a", dry_run=True).rows_written == {}
    assert other.groups() == {}
    file = next((tmp_path / "a").glob("*.npz"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(StorageCorrupt):
        other.import_(tmp_path / "a", dry_run=True)


def test_an_interrupted_import_of_a_chain_can_be_repeated(
    open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, random = open_storage(), np.random.default_rng(4)
    _train(storage, random)
    _export(storage, tmp_path / "a", slots=True)
    _train(storage, random)
    storage.shrink(group=1, min_norm=1.0)
    _export(storage, tmp_path / "b", slots=True, since=tmp_path / "a")
    other, remove = open_storage("other"), importing._remove

    def fail(*_: Any) -> int:
        raise StoreNotFound("the disk was taken away")

    monkeypatch.setattr(importing, "_remove", fail)
    with pytest.raises(StoreNotFound):
        other.import_(tmp_path / "b")
    assert stored(other, 1) != stored(storage, 1)
    monkeypatch.setattr(importing, "_remove", remove)
    other.import_(tmp_path / "b")
    assert stored(other, 1) == stored(storage, 1)


def test_a_broken_chain_is_refused_before_the_first_row_is_stored(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage, random = open_storage(), np.random.default_rng(5)
    _train(storage, random)
    _export(storage, tmp_path / "a")
    _train(storage, random)
    _export(storage, tmp_path / "b", since=tmp_path / "a")
    other = open_storage("other")
    with pytest.raises(InvalidConfig, match="mode='replace'"):
        other.import_(tmp_path / "b", mode="keep")
    shutil.move(tmp_path / "a", tmp_path / "elsewhere")
    with pytest.raises(StoreNotFound, match="put it back"):
        other.import_(tmp_path / "b")
    _export(storage, tmp_path / "a")
    with pytest.raises(StorageCorrupt, match="another one of its name"):
        other.import_(tmp_path / "b")
    manifest = manifest_of(tmp_path / "b")
    manifest["since"]["name"] = "../b"
    write_manifest(tmp_path / "b", manifest)
    with pytest.raises(StorageCorrupt, match="not the name of an export"):
        other.import_(tmp_path / "b")
    manifest["format_version"] = 3
    write_manifest(tmp_path / "b", manifest)
    with pytest.raises(FormatTooNew):
        other.import_(tmp_path / "b")
    assert other.groups() == {}


def test_what_nothing_can_go_on_from_is_an_error(open_storage: OpenStorage, clock: Clock, tmp_path: Path) -> None:
    storage, random = open_storage(clock=clock), np.random.default_rng(6)
    _train(storage, random)
    _train(storage, random, group=2)
    storage.export(tmp_path / "plain", format="npz")
    _export(storage, tmp_path / "weights")
    for options, error, message in (
        ({"since": tmp_path / "nothing"}, StoreNotFound, "is no export"),
        ({"since": tmp_path / "plain"}, InvalidConfig, "without digests"),
        ({"since": tmp_path / "weights", "slots": True}, InvalidConfig, "slots=False"),
        ({"since": tmp_path / "weights", "groups": [1]}, InvalidConfig, "has group 2"),
    ):
        with pytest.raises(error, match=message):
            _export(storage, tmp_path / "new", **options)
    storage.drop_group(2)
    embedding(storage, 8, 2)
    with pytest.raises(GroupConflict, match="made anew"):
        _export(storage, tmp_path / "new", since=tmp_path / "weights")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("at", [3, 9, -1])  # in the first key, the first digest, the last one
def test_a_flipped_bit_of_the_digests_is_an_error_and_no_wrong_export(
    storage: PyStorage, tmp_path: Path, at: int
) -> None:
    _train(storage, np.random.default_rng(11))
    _export(storage, tmp_path / "a")
    file = next((tmp_path / "a").glob("*-digests.bin"))
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(StorageCorrupt, match=r"digests\.bin does not match its checksum.*make a whole export"):
        _export(storage, tmp_path / "b", since=tmp_path / "a")
    assert not (tmp_path / "b").exists()
    content[at] ^= 0x10
    file.write_bytes(content)
    assert _export(storage, tmp_path / "b", since=tmp_path / "a").rows_written == {1: 0}


def test_digests_that_were_written_without_a_checksum_are_gone_on_from(storage: PyStorage, tmp_path: Path) -> None:
    _train(storage, np.random.default_rng(12))
    _export(storage, tmp_path / "a")
    manifest = manifest_of(tmp_path / "a")
    del manifest["groups"][0]["digests_sha256"]
    write_manifest(tmp_path / "a", manifest)
    assert _export(storage, tmp_path / "b", since=tmp_path / "a").rows_written == {1: 0}


@pytest.mark.embedded
def test_a_chain_lies_in_one_directory_and_its_store_can_be_written(tmp_path: Path) -> None:
    with PyStorage(tmp_path / "store") as storage:
        _train(storage, np.random.default_rng(7))
        _export(storage, tmp_path / "a")
        with pytest.raises(InvalidConfig, match="side by side"):
            _export(storage, tmp_path / "sub" / "b", since=tmp_path / "a")
    with PyStorage(tmp_path / "store", read_only=True) as storage, pytest.raises(ReadOnlyStorage):
        _export(storage, tmp_path / "b")


@pytest.mark.embedded
@pytest.mark.parametrize("names", [("lr=0.1, step 0", "lr=0.1, step 1"), ("größer", "日本"), (".hidden", "b..")])
def test_a_chain_may_have_any_names(tmp_path: Path, names: tuple[str, str]) -> None:
    with PyStorage(tmp_path / "store") as storage, PyStorage(tmp_path / "other") as other:
        _train(storage, np.random.default_rng(9))
        _export(storage, tmp_path / names[0])
        storage.shrink(group=1, min_norm=1.0)
        _export(storage, tmp_path / names[1], since=tmp_path / names[0])
        other.import_(tmp_path / names[1])
        assert stored(other, 1).keys() == stored(storage, 1).keys()


@pytest.mark.embedded
def test_a_link_to_the_latest_export_is_followed(tmp_path: Path) -> None:
    exports = tmp_path / "exports"
    exports.mkdir()
    for link in (exports / "latest", tmp_path / "latest"):
        link.symlink_to(exports / "0")
    with PyStorage(tmp_path / "store") as storage, PyStorage(tmp_path / "other") as other:
        _train(storage, np.random.default_rng(9))
        _export(storage, exports / "0")
        _train(storage, np.random.default_rng(10))
        _export(storage, exports / "1", since=exports / "latest")
        for link in (exports / "latest", tmp_path / "latest"):
            link.unlink()
            link.symlink_to(exports / "1")
        other.import_(tmp_path / "latest")
        assert stored(other, 1).keys() == stored(storage, 1).keys()


@pytest.mark.parametrize("options", [{"min_abs": -1}, {"min_abs": float("nan")}, {"digests": 1}, {"since": ""}])
def test_options_of_an_export_that_cannot_be_are_errors(
    storage: PyStorage, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidConfig):
        storage.export(tmp_path / "a", format="npz", **options)


@pytest.mark.parametrize(
    "options", [{"slots": (5, 5)}, {"slots": (-1, 5)}, {"slots": (0, 20_000)}, {"chain": 1}, {"dry_run": None}]
)
def test_options_of_an_import_that_cannot_be_are_errors(
    storage: PyStorage, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidConfig):
        storage.import_(tmp_path / "a", **options)
