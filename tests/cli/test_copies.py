"""checkpoint, restore, export, import."""

from pathlib import Path

import pytest

from rockbed import InvalidConfig, PyStorage
from rockbed.server.cli_copies import Format
from tests.cli.helpers import Place, done, make_store, refused, said


def test_a_checkpoint_becomes_a_store(place: Place, tmp_path: Path) -> None:
    assert said("checkpoint", place.copy("monday"), *place.options) == {"checkpoint": place.copy("monday")}
    assert "is there already" in refused("checkpoint", place.copy("monday"), *place.options, code=1)
    wanted = {"checkpoint": str(tmp_path / "monday"), "directory": str(tmp_path / "new")}
    assert said("restore", tmp_path / "monday", tmp_path / "new") == wanted
    assert said("stats", "--data", tmp_path / "new")["rows"] == 101
    assert "new" in refused("restore", tmp_path / "monday", tmp_path / "new", code=1)
    assert "no checkpoint" in refused("restore", tmp_path / "none", tmp_path / "other", code=1)


def test_a_checkpoint_takes_the_place_of_a_store(place: Place, tmp_path: Path) -> None:
    done("checkpoint", place.copy("monday"), *place.options)
    done("drop", "--group", 1, "--yes", *place.options)
    assert "give --yes" in refused("restore", place.copy("monday"), *place.options, code=2)
    found = said("restore", place.copy("monday"), "--yes", *place.options)
    assert found["checkpoint"] == place.copy("monday")
    assert said("stats", *place.options)["rows"] == 101
    assert said("stats", "--data", tmp_path / Path(found["kept"]).name)["rows"] == 1
    both = refused("restore", place.copy("monday"), tmp_path / "x", *place.options, code=2)
    assert "give one of them" in both


def test_a_server_takes_names_and_no_paths(served: Place, tmp_path: Path) -> None:
    for command in ("checkpoint", "export", "import"):
        assert "is a path" in refused(command, tmp_path / "x", *served.options, code=1)


@pytest.mark.parametrize("format", ["parquet", "npz", "safetensors"])
def test_an_export_is_imported_into_a_new_store(place: Place, tmp_path: Path, format: str) -> None:
    made = said("export", place.copy("e"), "--format", format, "--slots", *place.options)
    assert (made["format"], made["rows_written"], made["path"]) == (format, {"1": 100, "7": 1}, place.copy("e"))
    assert made["file_bytes"] > 0
    taken = said("import", tmp_path / "e", "--data", tmp_path / "new")
    assert (taken["rows_written"], taken["groups_created"]) == ({"1": 100, "7": 1}, [1, 7])
    at = ("get", "--group", 1, 0, "--values")
    (there,), (here,) = (said(*at, *o)["rows"] for o in (place.options, ("--data", tmp_path / "new")))
    assert [there[name] for name in ("weights", "slots")] == [here[name] for name in ("weights", "slots")]


def test_an_export_leaves_out_what_it_is_told_to(place: Place) -> None:
    made = said("export", place.copy("a"), "--format", "npz", "--min-count", 1, "--group", 1, *place.options)
    assert (made["rows_seen"], made["rows_written"]) == ({"1": 100}, {"1": 50})
    made = said("export", place.copy("b"), "--format", "npz", "--group", 1, "--group", 7, *place.options)
    assert made["rows_written"] == {"1": 100, "7": 1}
    made = said("export", place.copy("c"), "--format", "npz", "--min-norm", 1e9, "--max-age", 1e9, *place.options)
    assert made["rows_written"] == {"1": 0, "7": 0}
    text = done("export", place.copy("d"), "--format", "npz", "--cutoff", 0.5, *place.options)
    assert f"wrote {place.copy('d')}: " in text


def test_an_import_keeps_rows_or_replaces_them(place: Place) -> None:
    done("export", place.copy("e"), "--format", "npz", *place.options)
    kept = said("import", place.copy("e"), "--mode", "keep", "--group", 7, *place.options)
    assert (kept["rows_read"], kept["rows_written"], kept["groups_created"]) == ({"7": 1}, {"7": 0}, [])
    assert "rows stored" in done("import", place.copy("e"), *place.options)
    assert "group 3" in refused("import", place.copy("e"), "--group", 3, *place.options, code=1)


def test_a_dump_is_written_and_imported(place: Place) -> None:
    at = ("export", "--format", "damo", *place.options)
    assert said(*at, place.copy("a")) == {"path": place.copy("a"), "format": "damo", "rows": 101}
    chosen = ("--group", 1, "--min-count", 1, "--max-age", 2 * 86_400)
    assert done(*at, place.copy("b"), *chosen) == f"wrote {place.copy('b')}: 50 rows\n"
    assert said("import", place.copy("b"), *place.options)["rows_written"] == {"1": 50}


@pytest.mark.parametrize(
    ("options", "said_"),
    [
        (["--slots"], "--slots: a dump of damo-embedding has no such thing"),
        (["--min-norm", 1, "--cutoff", 0.1], "--min-norm, --cutoff: a dump"),
        (["--group", 1, "--group", 7], "one group, or all"),
        (["--max-age", 100], "counts in days"),
    ],
)
def test_what_a_dump_does_not_know_is_refused(model: Place, options: list[object], said_: str) -> None:
    assert said_ in refused("export", model.copy("a"), "--format", "damo", *options, *model.options, code=2)
    assert not Path(model.copy("a")).exists()


def test_every_format_of_the_storage_can_be_asked_for(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    with PyStorage(tmp_path / "store", read_only=True) as storage, pytest.raises(InvalidConfig) as caught:
        storage.export(tmp_path / "x", format="no such")
    known = str(caught.value).partition("Known: ")[2].split(", ")
    assert {format.value for format in Format} == {*known, "damo"}
