"""Export: the files that other programs read, which rows they hold, and what is refused."""

import errno
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

import rockbed
from rockbed import (
    InvalidConfig,
    MissingPackage,
    PyStorage,
    StorageClosed,
    StorageFull,
    StoreExists,
    StoreNotFound,
    UnknownGroup,
    UnknownName,
)
from rockbed.server import exporting
from rockbed.server.table_files.npz import Npz
from tests.api.helpers import SMALL, Clock, OpenStorage, adagrad, as_after_kill, embedding, engine_of, keys_of, ones
from tests.api.tables import FORMATS, fill, manifest_of, stored


def _tables(path: Path, group: int) -> list[dict[str, Any]]:
    """The files of a group as numpy arrays, without any of Rockbed's code."""
    found = []
    for file in sorted(path.glob(f"group-{group:05d}-*")):
        if file.suffix == ".npz":
            found.append(dict(np.load(file)))
        elif file.suffix == ".safetensors":
            found.append(safetensors.numpy.load_file(file))
        else:
            table = pq.read_table(file)
            columns = {}
            for name in table.column_names:
                column = table.column(name)
                if pa.types.is_timestamp(column.type):
                    column = column.cast(pa.int64())
                columns[name] = np.array(column.to_pylist())
            for name in ("weights", "slots"):
                if name in columns:
                    columns[name] = columns[name].astype(np.float32)
            found.append(columns)
    return found


def _rows(path: Path, group: int) -> dict[int, tuple[bytes, int, int]]:
    """As `stored`; weights alone where the files have no slots."""
    rows = {}
    for table in _tables(path, group):
        data = np.hstack([table["weights"], table["slots"]]) if "slots" in table else table["weights"]
        for i, key in enumerate(table["key"].tolist()):
            rows[key] = (data[i].tobytes(), int(table["update_num"][i]), int(table["update_time"][i]))
    return rows


# --- layout ---


def test_a_parquet_export_has_this_layout(open_storage: OpenStorage, clock: Clock, tmp_path: Path) -> None:
    clock.now = 1_700_000_000.125
    storage = open_storage(clock=clock)
    rows = embedding(storage, 2, 3, optimizer=adagrad(1.0))
    rows.apply_gradients(keys_of(-7), np.array([[1.0, -2.0]], np.float32))
    report = storage.export(tmp_path / "export", slots=True)
    file = tmp_path / "export" / "group-00003-00000.parquet"
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == [file.name, "manifest.json"]
    config = engine_of(storage).group(3).config.to_json()
    assert manifest_of(tmp_path / "export") == {
        "format_version": 1,
        "rockbed_version": rockbed.__version__,
        "format": "parquet",
        "groups": [
            {
                "config": config,
                "slots": 2,
                "rows": 1,
                "files": [{"name": file.name, "rows": 1, "bytes": file.stat().st_size}],
            }
        ],
    }
    assert (report.format, report.rows_seen, report.rows_written) == ("parquet", {3: 1}, {3: 1})
    assert report.file_bytes == file.stat().st_size
    table = pq.read_table(file)
    pair = pa.list_(pa.field("element", pa.float32(), nullable=False), 2)
    assert table.schema.equals(
        pa.schema(
            [
                pa.field("key", pa.int64(), nullable=False),
                pa.field("weights", pair, nullable=False),
                pa.field("update_num", pa.int64(), nullable=False),
                pa.field("update_time", pa.timestamp("ms", "UTC"), nullable=False),
                pa.field("slots", pair, nullable=False),
            ]
        )
    )
    (row,) = table.to_pylist()
    assert row.pop("update_time").timestamp() == 1_700_000_000.125
    assert row == {"key": -7, "weights": [-1.0, 1.0], "update_num": 1, "slots": [1.0, 4.0]}


@pytest.mark.parametrize("format", ["npz", "safetensors"])
def test_an_export_of_arrays_has_this_layout(storage: PyStorage, tmp_path: Path, format: str) -> None:
    embedding(storage, 2, 3, optimizer=adagrad(1.0)).apply_gradients(keys_of(-7, 9), ones(2, 2))
    storage.export(tmp_path / "export", format=format, slots=True)
    (table,) = _tables(tmp_path / "export", 3)
    assert {name: (str(column.dtype), column.shape) for name, column in table.items()} == {
        "key": ("int64", (2,)),
        "weights": ("float32", (2, 2)),
        "update_num": ("int64", (2,)),
        "update_time": ("int64", (2,)),
        "slots": ("float32", (2, 2)),
    }
    assert sorted(table["key"]) == [-7, 9]
    assert (table["weights"] == -1.0).all()
    assert (table["slots"] == 1.0).all()


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_holds_every_row_bit_for_bit(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, format: str, slots: bool
) -> None:
    storage = open_storage(clock=clock)
    fill(storage, clock)
    report = storage.export(tmp_path / "export", format=format, slots=slots)
    assert report.rows_written == report.rows_seen == {1: 3, 2: 300}
    width = 24 if slots else 12
    for group in (1, 2):
        wanted = {key: (data[:width], n, time) for key, (data, n, time) in stored(storage, group).items()}
        assert _rows(tmp_path / "export", group) == wanted
    assert [group["slots"] for group in manifest_of(tmp_path / "export")["groups"]] == ([0, 3] if slots else [None] * 2)


@pytest.mark.parametrize("format", FORMATS)
def test_a_large_group_is_cut_into_files_and_an_empty_one_has_none(
    storage: PyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(exporting, "FILE_ROWS_MAX", 70)
    rows = embedding(storage, group=1)
    embedding(storage, group=2)
    rows.apply_gradients(np.arange(140), ones(140))
    storage.export(tmp_path / "even", format=format)
    rows.apply_gradients(keys_of(140), ones(1))
    storage.export(tmp_path / "odd", format=format)
    for name, counts in (("even", [70, 70]), ("odd", [70, 70, 1])):
        one, two = manifest_of(tmp_path / name)["groups"]
        assert [file["rows"] for file in one["files"]] == counts
        assert [file["name"] for file in one["files"]] == [f"group-00001-{i:05d}.{format}" for i in range(len(counts))]
        assert (two["rows"], two["files"]) == (0, [])
        assert sorted(_rows(tmp_path / name, 1)) == list(range(sum(counts)))


def test_the_bytes_of_a_file_are_limited_too(
    storage: PyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "FILE_BYTES_MAX", 40 * 10 + 39)  # 3 numbers of 8 bytes and 4 weights: 40 bytes
    embedding(storage).apply_gradients(np.arange(25), ones(25))
    storage.export(tmp_path / "export", format="npz")
    assert [file["rows"] for file in manifest_of(tmp_path / "export")["groups"][0]["files"]] == [10, 10, 5]


# --- which rows ---


def _random_rows(storage: PyStorage, clock: Clock) -> None:
    """2,000 rows that differ in count, age and norm."""
    rng = np.random.default_rng(7)
    rows = embedding(storage, 4, 5, ttl=50)
    for _ in range(12):
        keys = np.unique(rng.integers(0, 2_000, 600))
        rows.apply_gradients(keys, rng.normal(0, 1, (keys.size, 4)).astype(np.float32))
        clock.now += 7.0


FILTERS: list[dict[str, Any]] = [
    {},
    {"max_age": 21},
    {"min_count": 3},
    {"min_norm": 1.5},
    {"cutoff": 0.4},
    {"max_age": 30.5, "min_count": 2, "min_norm": 0.5, "cutoff": 0.1},
]


@pytest.mark.parametrize("asked", FILTERS)
def test_filters_leave_out_what_a_plain_model_leaves_out(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path, asked: dict[str, Any]
) -> None:
    storage = open_storage(clock=clock)
    _random_rows(storage, clock)
    wanted = {}
    for key, (data, count, time) in stored(storage, 5).items():
        weights = np.frombuffer(data, np.float32)
        age = clock.now - time / 1000
        if (
            age < min(50, asked.get("max_age", np.inf))
            and count >= asked.get("min_count", 0)
            and np.linalg.norm(weights.astype(np.float64)) >= asked.get("min_norm", 0)
        ):
            wanted[key] = (np.where(np.abs(weights) < asked.get("cutoff", 0), np.float32(0), weights).tobytes(), count)
    report = storage.export(tmp_path / "export", format="npz", **asked)
    found = {key: row[:2] for key, row in _rows(tmp_path / "export", 5).items()}
    assert found == wanted
    assert 100 < len(found) < 2_000
    assert (report.rows_seen, report.rows_written) == ({5: len(stored(storage, 5))}, {5: len(found)})


def test_a_weight_of_just_the_cutoff_stays_and_counts_for_the_norm_before(storage: PyStorage, tmp_path: Path) -> None:
    rows = embedding(storage, 3)
    rows.apply_gradients(keys_of(1), np.array([[0.5, -0.25, -1.0]], np.float32))  # weights: -0.25, 0.125, 0.5
    storage.export(tmp_path / "export", format="npz", cutoff=0.25, min_norm=0.57)
    (table,) = _tables(tmp_path / "export", 0)
    assert table["weights"].tolist() == [[-0.25, 0.0, 0.5]]
    assert rows.lookup(keys_of(1), train=False).tolist() == [[-0.25, 0.125, 0.5]]


def test_shrink_would_remove_just_the_rows_that_an_export_leaves_out(
    open_storage: OpenStorage, clock: Clock, tmp_path: Path
) -> None:
    storage = open_storage(clock=clock)
    _random_rows(storage, clock)
    written = storage.export(tmp_path / "export", format="npz", max_age=28, min_count=2).rows_written
    storage.shrink(max_age=28, min_count=2)
    assert storage.stats()["groups"][5]["rows"] == written[5]
    assert stored(storage, 5).keys() == _rows(tmp_path / "export", 5).keys()


def test_only_the_groups_asked_for_are_exported(open_storage: OpenStorage, clock: Clock, tmp_path: Path) -> None:
    storage = open_storage(clock=clock)
    fill(storage, clock)
    assert storage.export(tmp_path / "export", format="npz", groups=[2]).rows_written == {2: 300}
    assert [group["config"]["group"] for group in manifest_of(tmp_path / "export")["groups"]] == [2]


def test_the_row_of_a_key_that_became_the_padding_key_is_left_out(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage()
    embedding(storage).apply_gradients(keys_of(-1, 2), ones(2))
    storage.close()
    storage = open_storage()
    embedding(storage, padding_key=2**64 - 1)
    assert storage.export(tmp_path / "export", format="npz").rows_written == {0: 1}
    assert list(_rows(tmp_path / "export", 0)) == [2]


def test_a_read_only_store_is_exported_with_what_only_its_journal_has(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    storage = open_storage()
    rows = embedding(storage)
    rows.apply_gradients(np.arange(10), ones(10))
    storage.flush()
    rows.apply_gradients(np.arange(5, 15), ones(10))
    reader = open_storage(str(as_after_kill(storage, tmp_path / "killed")), read_only=True)
    reader.export(tmp_path / "export", format="npz")
    assert _rows(tmp_path / "export", 0) == stored(storage, 0)


def test_progress_is_told_over_rows_that_are_on_disk_only(open_storage: OpenStorage, tmp_path: Path) -> None:
    storage = open_storage(memory_budget=SMALL)
    rows = embedding(storage)
    for part in np.split(np.arange(6_000), 30):
        rows.apply_gradients(part, ones(200))
    told: list[tuple[int, int]] = []
    storage.export(tmp_path / "export", format="npz", progress=lambda seen, total: told.append((seen, total)))
    assert told[-1] == (6_000, 6_000)
    assert [seen for seen, _ in told] == sorted({seen for seen, _ in told})
    assert len(_rows(tmp_path / "export", 0)) == 6_000


# --- what is refused, and what is left behind ---


def test_bad_options_are_refused_all_at_once(storage: PyStorage, tmp_path: Path) -> None:
    embedding(storage)
    with pytest.raises(
        InvalidConfig, match=r"max_age is -1.*min_count is 'x'.*min_norm is nan.*cutoff is -0\.1.*slots"
    ):
        storage.export(
            tmp_path / "export",
            max_age=-1,
            min_count="x",  # type: ignore[arg-type]
            min_norm=float("nan"),
            cutoff=-0.1,
            slots="yes",  # type: ignore[arg-type]
        )
    with pytest.raises(InvalidConfig, match="format is None"):
        storage.export(tmp_path / "export", format=None)  # type: ignore[arg-type]
    bad: list[tuple[Any, str]] = [
        ([], "not a list"),
        (3, "not a list"),
        ("12", "not a list"),
        ([70_000], "group is 70000, outside"),
        ([True], "group is True"),
        ([0, 0], "once"),
    ]
    for groups, message in bad:
        with pytest.raises(InvalidConfig, match=message):
            storage.export(tmp_path / "export", groups=groups)
    with pytest.raises(UnknownName, match=r"'csv' is unknown\. Known: npz, parquet, safetensors"):
        storage.export(tmp_path / "export", format="csv")
    with pytest.raises(UnknownGroup, match="known: 0"):
        storage.export(tmp_path / "export", groups=[0, 4])
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_path_that_is_taken_is_left_as_it_is(storage: PyStorage, tmp_path: Path) -> None:
    embedding(storage).apply_gradients(keys_of(1), ones(1))
    storage.export(tmp_path / "export", format="npz")
    before = (tmp_path / "export" / "manifest.json").read_bytes()
    with pytest.raises(StoreExists, match="choose a new path"):
        storage.export(tmp_path / "export", format="npz")
    assert (tmp_path / "export" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(("format", "package"), [("parquet", "pyarrow"), ("safetensors", "safetensors")])
def test_a_format_whose_package_is_missing_says_what_to_install(
    storage: PyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, package: str
) -> None:
    embedding(storage).apply_gradients(keys_of(1), ones(1))
    for name in [name for name in sys.modules if name.split(".")[0] == package] or [package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackage, match=rf"needs {package}.*pip install 'rockbed\[export\]'"):
        storage.export(tmp_path / "export", format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    storage.export(tmp_path / "export", format="npz")


def test_an_export_that_meets_a_full_disk_leaves_nothing(
    storage: PyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "FILE_ROWS_MAX", 10)
    embedding(storage).apply_gradients(np.arange(25), ones(25))
    real, files = Npz.write, []

    def write(self: Npz, file: BinaryIO, columns: Any) -> None:
        files.append(file.name)
        if len(files) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, file, columns)

    monkeypatch.setattr(Npz, "write", write)
    with pytest.raises(StorageFull, match=r"writing .*group-00000-00001\.npz"):
        storage.export(tmp_path / "export", format="npz")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    storage.export(tmp_path / "export", format="npz")


@pytest.mark.embedded  # over the wire nobody waits for `progress`
def test_an_export_that_is_interrupted_leaves_nothing(storage: PyStorage, tmp_path: Path) -> None:
    embedding(storage).apply_gradients(np.arange(25), ones(25))

    def interrupt(seen: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.export(tmp_path / "export", format="npz", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_an_export_is_removed_and_never_another_one_that_has_its_name(storage: PyStorage, tmp_path: Path) -> None:
    rows = embedding(storage)
    rows.lookup(keys_of(1))
    first = storage.export(tmp_path / "a", format="npz")
    storage.remove_export(tmp_path / "a", first)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    rows.lookup(keys_of(2))
    second = storage.export(tmp_path / "a", format="npz")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for path, report in ((tmp_path / "a", first), (tmp_path / "b", second), (tmp_path / "link", second)):
        with pytest.raises(StoreNotFound, match="nothing was removed"):
            storage.remove_export(path, report)
    assert _rows(tmp_path / "a", 0).keys() == {1, 2}


@pytest.mark.embedded  # over the wire nobody waits for `progress`
def test_a_group_that_is_dropped_while_it_is_exported_is_an_error(storage: PyStorage, tmp_path: Path) -> None:
    embedding(storage).apply_gradients(np.arange(25), ones(25))

    def drop(seen: int, total: int) -> None:
        storage.drop_group(0)

    with pytest.raises(UnknownGroup, match="group 0 was dropped"):
        storage.export(tmp_path / "export", format="npz", progress=drop)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_closed_storage_exports_nothing(storage: PyStorage, tmp_path: Path) -> None:
    storage.close()
    with pytest.raises(StorageClosed):
        storage.export(tmp_path / "export")
