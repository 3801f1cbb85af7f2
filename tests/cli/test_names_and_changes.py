"""Groups by their names; exports of what has changed; shrinking by step, and of ids that are rare again."""

from pathlib import Path

import numpy as np
import pytest

from rockbed import AdaptiveEmbedding, Frequency, PyStorage
from tests.api.helpers import adagrad, embedding, keys_of, ones, uniform, zeros
from tests.cli.helpers import Place, done, refused, said


@pytest.fixture
def named(place: Place) -> int:
    """The number of the group "user", which has the keys 0..9."""
    with PyStorage(place.options[1]) as storage:
        users = embedding(storage, group="user", optimizer=adagrad(), initializer=uniform())
        users.apply_gradients(np.arange(10), ones(10))
        return users.group


def test_a_group_is_found_by_its_name(place: Place, named: int) -> None:
    assert "user" in done("groups", *place.options)
    assert said("stats", "--group", "user", *place.options)["rows"] == 10
    assert said("get", "--group", "user", 3, *place.options)["group"] == named
    assert said("put", "--group", "user", "--key", 99, "--weights", "1,2,3,4", *place.options)["group"] == named
    assert said("shrink", "--group", "user", "--min-count", 1, "--yes", *place.options)["rows_removed"] == 1
    made = said("export", place.copy("e"), "--format", "npz", "--group", "user", *place.options)
    assert made["rows_written"] == {str(named): 10}
    assert said("export", place.copy("d"), "--format", "damo", "--group", "user", *place.options)["rows"] == 10
    assert said("drop", "--group", "user", "--yes", *place.options) == {"group": named, "rows": 10}


@pytest.mark.parametrize(
    "command",
    [["stats"], ["get", 1], ["put", "--key", 1, "--weights", "1"], ["drop", "--yes"], ["shrink", "--yes"]],
    ids=lambda command: command[0],
)
def test_a_name_that_nobody_has_is_said_with_those_there_are(place: Place, named: int, command: list[object]) -> None:
    told = refused(*command, "--group", "usr", *place.options, code=1)
    assert "no group is called 'usr'" in told
    assert "'user'" in told


def test_what_has_changed_since_an_export_is_exported_and_imported(place: Place, named: int, tmp_path: Path) -> None:
    first = said("export", place.copy("first"), "--format", "npz", "--slots", "--digests", *place.options)
    assert first["rows_written"][str(named)] == 10
    done("put", "--group", "user", "--key", 3, "--weights", "9,9,9,9", *place.options)
    options = ("--format", "npz", "--slots", *place.options)
    second = said("export", place.copy("second"), "--since", place.copy("first"), *options)
    assert second["rows_written"][str(named)] == 1

    new = ("--data", tmp_path / "new")
    assert "no store" in refused("import", tmp_path / "second", "--dry-run", *new, code=1)
    said("import", tmp_path / "second", *new)
    assert said("stats", "--group", "user", *new)["rows"] == 10
    row = said("get", "--group", "user", 3, "--values", *new)["rows"][0]
    assert row["weights"] == [9, 9, 9, 9]
    alone = ("--data", tmp_path / "alone")
    said("import", tmp_path / "first", *alone)
    done("drop", "--group", 7, "--yes", *alone)
    checked = said("import", tmp_path / "second", "--alone", "--dry-run", *alone)
    assert checked["rows_written"] == {}
    said("import", tmp_path / "second", "--alone", *alone)
    assert said("get", "--group", "user", 3, "--values", *alone)["rows"][0]["weights"] == [9, 9, 9, 9]


def test_rows_near_0_are_left_out(place: Place) -> None:
    made = said("export", place.copy("e"), "--format", "npz", "--min-abs", 1e9, *place.options)
    assert set(made["rows_written"].values()) == {0}


def test_rows_are_shrunk_by_the_step_of_their_last_update(place: Place) -> None:
    with PyStorage(place.options[1]) as storage:
        rows = embedding(storage, group="steps", step="global", initializer=zeros())
        for step, key in ((1, 1), (2, 2), (3, 3)):
            rows.global_step = step
            rows.apply_gradients(keys_of(key), ones(1))
    found = said("shrink", "--group", "steps", "--min-step", 3, "--dry-run", *place.options)
    assert found["rows_removed"] == 2


def test_exact_rows_of_ids_that_are_rare_again_are_shrunk(place: Place) -> None:
    with PyStorage(place.options[1]) as storage:
        rule = Frequency(enter=2, leave=1, half_life=4)
        items = AdaptiveEmbedding(storage, adagrad(), zeros(), 4, "item", 10, threshold=rule)
        items.lookup(np.array([5, 5]))
        items.lookup(np.arange(100, 120))  # the count of 5 is halved again and again meanwhile
    found = said("shrink", "--group", "item/exact", "--returned", "--yes", *place.options)
    assert found["rows_removed"] == 1
