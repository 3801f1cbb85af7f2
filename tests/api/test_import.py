"""Import: what an export or a dump brings back, and that nothing is stored where something is wrong with it."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rockbed import (
    DimMismatch,
    FormatTooNew,
    GroupConflict,
    InvalidConfig,
    PyStorage,
    ReadOnlyStorage,
    RockbedError,
    RowNotFinite,
    StorageCorrupt,
    StoreNotFound,
    UnknownGroup,
    UnknownName,
)
from rockbed.server import exporting, import_sources, importing, putting
from tests.api.helpers import (
    SMALL,
    Clock,
    OpenStorage,
    adagrad,
    as_after_kill,
    assert_sound,
    embedding,
    engine_of,
    keys_of,
    ones,
    sgd,
    uniform,
)
from tests.api.tables import DAY, FORMATS, fill, manifest_of, stored, write_manifest


def _exported(open_storage: OpenStorage, clock: Clock, tmp_path: Path, **options: Any) -> tuple[PyStorage, Path]:
    """A filled store and its export, as npz unless said otherwise."""
    storage = open_storage(clock=clock)
    fill(storage, clock)
    storage.export(tmp_path / "export", **{"format": "npz", **options})
    return storage, tmp_path / "export"


# --- what comes back ---


@pytest.mark.parametrize("format", FORMATS)
def test_a_training_export_comes_back_bit_for_bit_and_trains_on_alike(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, format: str
) -> None:
    old, path = _exported(open_storage, clock, tmp_path, format=format, slots=True)
    clock.now += 5
    new = open_storage("new", clock=clock)
    report = new.import_(path)
    assert (report.mode, report.groups_created) == ("replace", [1, 2])
    assert report.rows_read == report.rows_written == {1: 3, 2: 300}
    for group in (1, 2):
        assert stored(new, group) == stored(old, group)
        assert engine_of(new).group(group).config == engine_of(old).group(group).config
        assert new.stats()["groups"][group]["rows"] == old.stats()["groups"][group]["rows"]
    keys = np.arange(1, 300)
    looked_up = []
    for storage in (old, new):
        rows = embedding(storage, 3, 2, optimizer=adagrad(), initializer=uniform())
        rows.apply_gradients(keys, ones(299, 3, 0.125))
        looked_up.append(rows.lookup(np.append(keys, [2**62, 1_000]), train=False))
    np.testing.assert_array_equal(looked_up[0], looked_up[1])
    assert_sound(new)


@pytest.mark.parametrize("format", FORMATS)
def test_a_serving_export_comes_back_with_the_slots_of_new_rows(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, format: str
) -> None:
    old, path = _exported(open_storage, clock, tmp_path, format=format)
    new = open_storage("new", clock=clock)
    new.import_(path)
    assert stored(new, 1) == stored(old, 1)  # SGD has no slots
    fresh = engine_of(new).group(2).initial_state.tobytes()
    wanted = {key: (data[:12] + fresh, count, time) for key, (data, count, time) in stored(old, 2).items()}
    assert stored(new, 2) == wanted
    assert stored(new, 2) != stored(old, 2)


def test_an_import_of_many_files_into_little_memory_finds_them_all(
    open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "FILE_ROWS_MAX", 900)
    old = open_storage()
    embedding(old, initializer=uniform()).lookup(np.arange(5_000))
    old.export(tmp_path / "export", format="npz")
    told: list[tuple[int, int]] = []
    new = open_storage("new", memory_budget=SMALL)
    new.import_(tmp_path / "export", progress=lambda done, total: told.append((done, total)))
    assert stored(new, 0) == stored(old, 0)
    assert told[0] == (0, 5_000)
    assert told[-1] == (5_000, 5_000)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert_sound(new)


def test_what_was_imported_survives_a_kill(open_storage: OpenStorage, clock: Clock, tmp_path: Path) -> None:
    old, path = _exported(open_storage, clock, tmp_path, slots=True)
    new = open_storage("new", clock=clock)
    new.import_(path)
    killed = open_storage(str(as_after_kill(new, tmp_path / "killed")), clock=clock)
    for group in (1, 2):
        assert stored(killed, group) == stored(old, group)
    assert_sound(killed)


def test_an_imported_group_may_be_opened_with_another_learning_rate(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path
) -> None:
    _, path = _exported(open_storage, clock, tmp_path)
    new = open_storage("new", clock=clock)
    new.import_(path)
    rows = embedding(new, 2, 1, optimizer=sgd(0.25))
    rows.apply_gradients(keys_of(7), ones(1, 2))
    assert (rows.lookup(keys_of(7)) == -1.25).all()


@pytest.mark.parametrize("mode", ["replace", "keep"])
def test_rows_that_exist_are_replaced_or_kept(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, mode: str
) -> None:
    old, path = _exported(open_storage, clock, tmp_path, slots=True)
    new = open_storage("new", clock=clock)
    rows = embedding(new, 3, 2, optimizer=adagrad(), initializer=uniform())
    there = np.arange(200, 400)
    rows.apply_gradients(there, ones(200, 3))
    before = stored(new, 2)
    report = new.import_(path, groups=[2], mode=mode)
    assert (report.mode, report.rows_read) == (mode, {2: 300})
    assert report.rows_written == {2: 300 if mode == "replace" else 200}
    assert report.groups_created == []
    imported = stored(old, 2)
    assert stored(new, 2) == ({**before, **imported} if mode == "replace" else {**imported, **before})
    assert list(new.stats()["groups"]) == [2]


def test_rows_that_have_expired_meanwhile_are_not_stored(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path
) -> None:
    _, path = _exported(open_storage, clock, tmp_path)
    new = open_storage("new", clock=clock, ttl=5 * DAY)
    assert new.import_(path, groups=[1]).rows_written == {1: 1}
    assert list(stored(new, 1)) == [7]


def test_an_interrupted_import_is_repeated_to_the_same_end(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH_BYTES_MAX", 1)  # a row at a time
    old, path = _exported(open_storage, clock, tmp_path, slots=True)
    new = open_storage("new", clock=clock)
    calls = [0]

    def put(*args: Any, **options: Any) -> int:
        calls[0] += 1
        if calls[0] == 50:
            raise StorageCorrupt("enough")
        return putting.put(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(importing, "put", put)
        with pytest.raises(StorageCorrupt, match="enough"):
            new.import_(path)
    assert sum(len(stored(new, group)) for group in (1, 2)) == 49
    report = new.import_(path)
    assert report.groups_created == []
    for group in (1, 2):
        assert stored(new, group) == stored(old, group)


# --- damo-embedding's dump ---


def test_a_dump_is_imported_into_groups_that_exist(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_sources, "DUMP_ROWS", 70)
    old = open_storage(clock=clock)
    fill(old, clock)
    old.dump(tmp_path / "dump")
    new = open_storage("new", clock=clock)
    embedding(new, 2, 1)
    with pytest.raises(UnknownGroup, match=r"group 2 does not exist.*PyEmbedding of dim 3"):
        new.import_(tmp_path / "dump")
    assert stored(new, 1) == {}
    embedding(new, 3, 2, optimizer=adagrad(), initializer=uniform())
    clock.now += 9
    report = new.import_(tmp_path / "dump")
    assert report.rows_written == {1: 3, 2: 300}
    for group, width in ((1, 8), (2, 12)):
        fresh, now_ms = engine_of(new).group(group).initial_state.tobytes(), round(clock.now * 1000)
        assert stored(new, group) == {
            key: (data[:width] + fresh, 0, now_ms) for key, (data, _, _) in stored(old, group).items()
        }


def _head(n: int, groups: list[int], dims: list[int], counts: list[int]) -> bytes:
    return struct.pack(f"<i{len(groups)}i{len(dims)}i{len(counts)}q", n, *groups, *dims, *counts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends too early"),
        (b"not a dump at all", "would have 544501614 groups"),
        (_head(-1, [], [], []), "would have -1 groups"),
        (_head(2, [1, 2], [2], []), "ends too early"),
        (_head(1, [1], [2], [1]) + struct.pack("<qi2f", 5, 1, 0, 0)[:-1], "has 39 bytes, its head says 40"),
        (_head(1, [1], [2], [1]) + struct.pack("<qi2f", 5, 1, 0, 0) + b"x", "has 41 bytes, its head says 40"),
        (_head(1, [1], [2], [1]) + struct.pack("<qi2f", 5, 2, 0, 0), "of group 1 says that it is of group 2"),
        (_head(2, [1, 1], [2, 2], [0, 0]), "groups that cannot be"),
        (_head(1, [1], [0], [0]), "groups that cannot be"),
        (_head(1, [1], [2], [-1]), "groups that cannot be"),
        (_head(1, [70_000], [2], [0]), "groups that cannot be"),
    ],
)
def test_a_damaged_dump_is_refused(storage: PyStorage, tmp_path: Path, content: bytes, message: str) -> None:
    embedding(storage, 2, 1)
    (tmp_path / "dump").write_bytes(content)
    with pytest.raises(StorageCorrupt, match=message):
        storage.import_(tmp_path / "dump")
    assert stored(storage, 1) == {}


# --- what does not fit ---


def test_a_group_of_another_dim_or_optimizer_is_refused_unless_weights_come_alone(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path
) -> None:
    old, path = _exported(open_storage, clock, tmp_path, slots=True)
    old.export(tmp_path / "weights", format="npz")
    other = open_storage("other", clock=clock)
    embedding(other, 2, 1)
    embedding(other, 3, 2, optimizer=sgd())
    with pytest.raises(GroupConflict, match=r"group 2 holds the slots of optimizer 'sgd'.*'adagrad'.*without slots"):
        other.import_(path)
    assert stored(other, 1) == {}
    assert other.import_(path, groups=[1]).rows_written == {1: 3}
    other.import_(tmp_path / "weights")
    assert stored(other, 2) == {key: (data[:12], n, time) for key, (data, n, time) in stored(old, 2).items()}
    third = open_storage("third", clock=clock)
    embedding(third, 5, 2)
    with pytest.raises(DimMismatch, match=r"group 2 stores rows of dim 5, .* has rows of dim 3"):
        third.import_(tmp_path / "weights")
    assert list(third.stats()["groups"]) == [2]


def test_a_row_for_the_padding_key_is_refused(open_storage: OpenStorage, clock: Clock, tmp_path: Path) -> None:
    _, path = _exported(open_storage, clock, tmp_path)
    new = open_storage("new", clock=clock)
    embedding(new, 2, 1, padding_key=-6)
    with pytest.raises(InvalidConfig, match="key -6, which is the padding key"):
        new.import_(path)
    assert stored(new, 1) == {}


def test_bad_options_paths_and_stores_are_refused(open_storage: OpenStorage, clock: Clock, tmp_path: Path) -> None:
    storage, path = _exported(open_storage, clock, tmp_path)
    with pytest.raises(InvalidConfig, match=r"group is -1.*mode is 'merge', not one of"):
        storage.import_(path, groups=[-1], mode="merge")
    with pytest.raises(UnknownGroup, match=r"has no rows for group 9 .*for: 1, 2\)"):
        storage.import_(path, groups=[1, 9])
    with pytest.raises(StoreNotFound, match=r"no manifest\.json"):
        storage.import_(tmp_path / "nothing")
    storage.checkpoint(tmp_path / "checkpoint")
    with pytest.raises(StoreNotFound, match=r"is a store or a checkpoint.*PyStorage\.restore"):
        storage.import_(tmp_path / "checkpoint")
    storage.close()
    with pytest.raises(ReadOnlyStorage):
        open_storage(read_only=True, clock=clock).import_(path)


# --- damage ---


def _change(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Change the manifest (name "manifest") or the arrays of an npz."""

    def damage(path: Path) -> None:
        if name == "manifest":
            manifest = manifest_of(path)
            change(manifest)
            write_manifest(path, manifest)
            return
        arrays = dict(np.load(path / name))
        change(arrays)
        np.savez(path / name, **arrays)
        manifest = manifest_of(path)
        for file in manifest["groups"][1]["files"]:
            file["bytes"] = (path / file["name"]).stat().st_size
        write_manifest(path, manifest)

    return damage


def _set(*way: Any, to: Any) -> Callable[[Any], None]:
    def change(there: Any) -> None:
        for step in way[:-1]:
            there = there[step]
        there[way[-1]] = to

    return change


def _manifest(content: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / "manifest.json").write_text(content)

    return damage


def _file(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        file = path / "group-00002-00001.npz"
        file.write_bytes(change(file.read_bytes()))

    return damage


SECOND = "group-00002-00001.npz"
DAMAGE: list[tuple[Callable[[Path], None], type[RockbedError], str]] = [
    (_manifest("{"), StorageCorrupt, "no manifest"),
    (_manifest("[]"), StorageCorrupt, "no manifest"),
    (_change("manifest", lambda m: m.pop("format_version")), StorageCorrupt, "no manifest"),
    (_change("manifest", _set("format_version", to=3)), FormatTooNew, "reads up to 2"),
    (_change("manifest", _set("format", to="csv")), UnknownName, "'csv' is unknown"),
    (_change("manifest", _set("format", to=["npz"])), StorageCorrupt, "format is .*, not a str"),
    (_change("manifest", lambda m: m.pop("groups")), StorageCorrupt, "KeyError"),
    (_change("manifest", _set("groups", 1, "config", "group", to=1)), StorageCorrupt, "a group stands there twice"),
    (_change("manifest", _set("groups", 1, "config", "dim", to=-3)), StorageCorrupt, "dimension is -3"),
    (_change("manifest", _set("groups", 1, "config", "dims", to=3)), StorageCorrupt, "dims"),
    (_change("manifest", _set("groups", 1, "config", "optimizer", to={"name": "eve"})), StorageCorrupt, "'eve'"),
    (
        _change("manifest", _set("groups", 1, "config", "dim", to=4)),
        StorageCorrupt,
        "has 3 slots a row, its optimizer 4",
    ),
    (_change("manifest", _set("groups", 1, "slots", to=9)), StorageCorrupt, "has 9 slots a row, its optimizer 3"),
    (_change("manifest", _set("groups", 1, "rows", to=299)), StorageCorrupt, "has 299 rows, its files 300"),
    (_change("manifest", _set("groups", 1, "files", 0, "rows", to=-200)), StorageCorrupt, "rows is -200"),
    (_change("manifest", _set("groups", 1, "files", 0, "name", to="../x.npz")), StorageCorrupt, "beside the manifest"),
    (lambda path: (path / SECOND).unlink(), StorageCorrupt, "00001.npz is not there"),
    (_file(lambda data: data[:-1]), StorageCorrupt, r"has \d+ bytes instead of \d+"),
    (_file(lambda data: bytes(len(data))), StorageCorrupt, "cannot be read as npz"),
    (_file(lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:]), StorageCorrupt, "cannot be read as npz"),
    (
        _change(SECOND, lambda a: a.pop("slots")),
        StorageCorrupt,
        r"'slots' should be float32\[100, 3\], the file has none",
    ),
    (
        _change(SECOND, lambda a: a.update(key=a["key"][1:])),
        StorageCorrupt,
        r"'key' should be int64\[100\], .* int64\[99\]",
    ),
    (_change(SECOND, lambda a: a.update(weights=a["weights"].astype("f8"))), StorageCorrupt, "the file has float64"),
    (_change(SECOND, _set("weights", (3, 1), to=np.nan)), RowNotFinite, "the weights of 1 rows hold NaN"),
    (_change(SECOND, _set("slots", (3, 1), to=np.inf)), RowNotFinite, "the slots of 1 rows hold NaN"),
    (_change(SECOND, _set("update_num", 3, to=-1)), StorageCorrupt, "update_num holds -1 to"),
    (_change(SECOND, _set("update_time", 3, to=2**62 + 1)), StorageCorrupt, "update_time holds"),
    (_change(SECOND, _set("key", 3, to=2**62)), StorageCorrupt, "1 rows for keys that have one already, .* 4611686018"),
]


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGE)
def test_a_damaged_export_is_refused_before_the_first_row_is_stored(
    open_storage: OpenStorage,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    error: type[RockbedError],
    message: str,
) -> None:
    monkeypatch.setattr(exporting, "FILE_ROWS_MAX", 200)
    _, path = _exported(open_storage, clock, tmp_path, slots=True)
    damage(path)
    new = open_storage("new", clock=clock)
    with pytest.raises(error, match=message):
        new.import_(path)
    assert new.stats()["groups"] == {}


@pytest.mark.parametrize("format", ["parquet", "safetensors"])
def test_damage_in_the_other_formats_is_seen(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, format: str
) -> None:
    _, path = _exported(open_storage, clock, tmp_path, format=format)
    file = path / f"group-00002-00000.{format}"
    good = file.read_bytes()
    new = open_storage("new", clock=clock)
    for bad in (bytes(len(good)), good[:-8] + bytes(8) if format == "parquet" else b"\xff" * 8 + good[8:]):
        file.write_bytes(bad)
        with pytest.raises(StorageCorrupt, match=f"cannot be read as {format}"):
            new.import_(path)
    file.write_bytes(good)
    new.import_(path)


def test_a_flipped_bit_in_a_page_of_parquet_is_seen(open_storage: OpenStorage, clock: Clock, tmp_path: Path) -> None:
    _, path = _exported(open_storage, clock, tmp_path, format="parquet")
    file = path / "group-00002-00000.parquet"
    data = bytearray(file.read_bytes())
    data[1_000] ^= 1
    file.write_bytes(data)
    with pytest.raises(StorageCorrupt, match="CRC"):
        open_storage("new", clock=clock).import_(path)


@pytest.mark.parametrize("column", ["key", "weights"])
def test_a_null_in_parquet_is_refused(open_storage: OpenStorage, clock: Clock, tmp_path: Path, column: str) -> None:
    _, path = _exported(open_storage, clock, tmp_path, format="parquet")
    file = path / "group-00001-00000.parquet"
    table = pq.read_table(file)
    at = table.schema.get_field_index(column)
    kind = table.schema.field(column).type
    holed = pa.array([None, *table.column(column).to_pylist()[1:]], kind)
    pq.write_table(table.set_column(at, pa.field(column, kind), holed), file)
    manifest = manifest_of(path)
    manifest["groups"][0]["files"][0]["bytes"] = file.stat().st_size
    write_manifest(path, manifest)
    with pytest.raises(StorageCorrupt, match="group-00001"):
        open_storage("new", clock=clock).import_(path)


@pytest.mark.parametrize("at_a_time", [1_000, 7])
def test_a_key_that_stands_in_two_files_is_found_however_few_are_compared_at_a_time(
    open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    monkeypatch.setattr(importing, "DISTINCT_KEYS_MAX", at_a_time)
    monkeypatch.setattr(exporting, "FILE_ROWS_MAX", 20)
    old = open_storage()
    embedding(old).lookup(np.arange(100))
    old.export(tmp_path / "export", format="npz")
    new = open_storage("new")
    new.import_(tmp_path / "export")
    assert stored(new, 0) == stored(old, 0)
    first, *_, last = sorted((tmp_path / "export").glob("*.npz"))
    arrays = dict(np.load(last))
    arrays["key"][0] = twice = np.load(first)["key"][0]
    np.savez(last, **arrays)
    with pytest.raises(StorageCorrupt, match=f"1 rows for keys that have one already, the first for key {twice}\\."):
        new.import_(tmp_path / "export")
