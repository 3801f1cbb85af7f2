"""shrink, flush, compact, check."""

import json

from rockbed import PyStorage
from tests.api.helpers import embedding, keys_of, ones, sgd
from tests.cli.helpers import Place, done, on_a_terminal, refused, run, said


def test_a_dry_run_says_what_would_go_by_group_and_reason(place: Place) -> None:
    found = said("shrink", "--min-count", 1, "--dry-run", *place.options)
    assert (found["dry_run"], found["rows_seen"], found["rows_removed"]) == (True, 101, 51)
    assert found["removed"] == {
        "1": {"expired": 0, "age": 0, "count": 50, "norm": 0},
        "7": {"expired": 0, "age": 0, "count": 1, "norm": 0},
    }
    text = done("shrink", "--min-count", 1, "--dry-run", *place.options)
    assert text.endswith("51 of 101 rows would be removed\n")
    assert said("stats", *place.options)["rows"] == 101


def test_shrink_takes_a_yes_where_nobody_can_be_asked(place: Place) -> None:
    assert "give --yes" in refused("shrink", "--min-count", 1, *place.options, code=2)
    assert "give one of them" in refused("shrink", "--dry-run", "--yes", *place.options, code=2)
    assert said("stats", *place.options)["rows"] == 101
    found = said("shrink", "--group", 1, "--min-norm", 1e9, "--max-age", 1e9, "--yes", *place.options)
    assert (found["dry_run"], found["rows_removed"], found["removed"]["1"]["norm"]) == (False, 100, 100)
    assert done("shrink", "--min-count", 1, "-y", *place.options).endswith("1 of 1 rows were removed\n")


def test_shrink_shows_what_would_go_and_asks(place: Place) -> None:
    question = "Remove 51 of 101 rows for good?"
    command = ["shrink", "--min-count", 1, *place.options]
    code, printed = on_a_terminal(command, [(question, "\n")])
    assert (code, "nothing was removed" in printed) == (1, True)
    assert "expired" in printed
    assert said("stats", *place.options)["rows"] == 101
    code, printed = on_a_terminal(command, [(question, "y\n")])
    assert (code, "51 of 101 rows were removed" in printed) == (0, True)
    assert said("stats", *place.options)["rows"] == 50


def test_shrink_asks_nothing_where_nothing_would_go(model: Place) -> None:
    code, printed = on_a_terminal(["shrink", *model.options], [])
    assert (code, "0 of 101 rows would be removed" in printed) == (0, True)


def test_a_condition_that_cannot_be_is_1(place: Place) -> None:
    assert "min_norm" in refused("shrink", "--min-norm", -1, "--dry-run", *place.options, code=1)


def test_flush_and_compact_say_what_there_is_afterwards(place: Place) -> None:
    flushed = said("flush", *place.options)
    assert (flushed["rows"], flushed["dirty_rows"]) == (101, 0)
    assert "flushed_lsn" in done("flush", *place.options)
    assert said("compact", *place.options)["disk_bytes"] > 0
    assert "KiB" in done("compact", *place.options)


def test_check_of_a_sound_store_is_0(place: Place) -> None:
    found = said("check", *place.options)
    assert (found["problems"], found["rows"]) == ([], {"1": 100, "7": 1})
    assert done("check", *place.options).endswith("no problems\n")


def test_check_that_finds_problems_is_3_and_lists_them(place: Place) -> None:
    with PyStorage(place.options[1]) as storage:  # a target, or a directory
        rows = embedding(storage, 4, 9, optimizer=sgd(1e38))
        rows.apply_gradients(keys_of(5), ones(1, value=1e10))
    result = run("check", "--json", *place.options)
    assert result.exit_code == 3
    problems = json.loads(result.stdout)["problems"]
    assert problems
    assert all("group 9" in problem for problem in problems)
    text = run("check", *place.options)
    assert (text.exit_code, text.stderr) == (3, "")
    assert text.stdout.endswith("\n".join([*problems, f"{len(problems)} problems\n"]))


def test_a_store_too_damaged_to_be_opened_is_3_as_well(model: Place) -> None:
    (model.folder / "model" / "catalog.json").write_text("{")
    result = run("check", "--json", *model.options)
    assert result.exit_code == 3
    assert "catalog" in json.loads(result.stdout)["problems"][0]
    assert "catalog" in refused("stats", *model.options, code=1)


def test_progress_is_shown_on_a_terminal_and_not_among_the_output(model: Place) -> None:
    code, printed = on_a_terminal(["check", "--json", *model.options], [("reading everything", "")])
    assert code == 0
    assert '"problems": []' in printed
