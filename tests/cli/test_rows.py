"""get, put, drop: single rows, and groups."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import PyStorage
from rockbed.requests import PUT_MODES
from rockbed.server import cli_rows
from rockbed.server.cli_options import Mode
from rockbed.server.limits import Limits
from tests.api.helpers import embedding
from tests.cli.helpers import Place, done, on_a_terminal, refused, said
from tests.server.served import Server


def _row(place: Place, key: object) -> dict[str, Any]:
    found: dict[str, Any] = said("get", "--group", 1, key, "--values", *place.options)["rows"][0]
    return found


def test_get_says_what_there_is_or_why_there_is_nothing(place: Place) -> None:
    text = done("get", "--group", 1, 0, -5, *place.options)
    assert "present: 1 updates" in text
    assert "never seen" in text
    assert "weights" not in text
    found = said("get", "--group", 7, 1, *place.options)
    (row,) = found["rows"]
    assert (row["key"], row["status"], row["update_num"], "weights" in row) == (1, "present", 0, False)


def test_get_shows_weights_and_slots_if_asked(place: Place) -> None:
    with_slots = said("get", "--group", 1, 0, 12345, "--values", *place.options)
    there, absent = with_slots["rows"]
    assert len(there["weights"]) == 4
    assert len(there["slots"]) == sum(with_slots["slot_widths"].values()) == 4
    assert (absent["status"], absent["weights"], absent["slots"]) == ("absent", None, None)
    assert f"{there['weights'][0]:.6g}" in done("get", "--group", 1, 0, "--values", *place.options)


def test_keys_are_signed_or_unsigned_decimal_or_hexadecimal(place: Place) -> None:
    done("put", "--group", 1, "--key", "-1", "--weights", "1,2,3,4", *place.options)
    for key in ("-1", "18446744073709551615", "0xffffffffffffffff", "-0x1"):
        assert _row(place, key)["weights"] == [1, 2, 3, 4]
    assert _row(place, "18446744073709551615")["key"] == 2**64 - 1
    for key in ("1.5", "x", "--vlaues", "1_0", str(2**64), str(-(2**63) - 1)):
        assert "is no key" in refused("get", "--group", 1, key, *place.options, code=2)
    assert "which keys?" in refused("get", "--group", 1, *place.options, code=2)


def test_keys_come_from_files_as_well(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_rows, "_PART_ROWS", 2)  # several calls
    (tmp_path / "keys.txt").write_text("3\n\n 0x4 \n-9\n")
    np.save(tmp_path / "keys.npy", np.array([5, 2**64 - 1], np.uint64))
    at = ("get", "--group", 1, *place.options, "--keys-file")
    assert [row["key"] for row in said(*at, tmp_path / "keys.txt", 7)["rows"]] == [7, 3, 4, -9]
    assert [row["key"] for row in said(*at, tmp_path / "keys.npy")["rows"]] == [5, 2**64 - 1]
    assert [row["key"] for row in said(*at, "-", input="8\n9\n")["rows"]] == [8, 9]
    (tmp_path / "keys.txt").write_text("3\nfour\n")
    assert "keys.txt, line 2: 'four' is no key" in refused(*at, tmp_path / "keys.txt", code=1)
    np.save(tmp_path / "keys.npy", np.array([5.0]))
    assert "holds float64[1]: give int64[n]" in refused(*at, tmp_path / "keys.npy", code=1)
    (tmp_path / "keys.npy").write_text("nonsense")
    assert "no .npy file" in refused(*at, tmp_path / "keys.npy", code=1)
    assert "cannot be read" in refused(*at, tmp_path / "none", code=1)


def test_an_unknown_group_is_1(place: Place) -> None:
    assert "group 3" in refused("get", "--group", 3, 1, *place.options, code=1)
    assert "group 3" in refused("put", "--group", 3, "--key", 1, "--weights", "1", *place.options, code=1)
    assert "group 3" in refused("drop", "--group", 3, "--yes", *place.options, code=1)


# --- put ---


def test_put_stores_a_row_that_is_typed(place: Place) -> None:
    stored = done("put", "--group", 1, "--key", "0x11", "--weights", "0.5,-1,2e0,3", *place.options)
    assert stored == "stored 1 of 1 rows in group 1\n"
    assert _row(place, 17)["weights"] == [0.5, -1, 2, 3]
    kept = said("put", "--group", 1, "--key", 17, "--weights", "9,9,9,9", "--mode", "keep", *place.options)
    assert kept == {"group": 1, "rows_sent": 1, "rows_stored": 0}
    assert _row(place, 17)["weights"] == [0.5, -1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "said_", "code"),
    [
        ([], "give a file, or --key and --weights", 2),
        (["--key", "1"], "give a file, or --key and --weights", 2),
        (["rows.jsonl", "--key", "1", "--weights", "1"], "give a file, or --key and --weights", 2),
        (["--key", "1", "--weights", "1;2"], "--weights is '1;2'", 2),
        (["--key", "one", "--weights", "1"], "'one' is no key", 2),
        (["--key", "1", "--weights", "1,2"], "dim 4", 1),
        (["--key", "1", "--weights", "1,2,3,nan"], "NaN", 1),
        (["--key", "1", "--weights", "1,2,3,1e39"], "NaN or", 1),
    ],
)
def test_what_cannot_be_put_is_refused(place: Place, arguments: list[str], said_: str, code: int) -> None:
    assert said_ in refused("put", "--group", 1, *arguments, *place.options, code=code)


def _lines(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_put_reads_json_lines_in_several_batches(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_rows, "_PART_ROWS", 2)
    rows = [
        {"key": k, "weights": [k, 0, 0, 1], "update_num": 5, "update_time": 1_700_000_000_000} for k in range(-3, 2)
    ]
    stored = said("put", "--group", 1, _lines(tmp_path / "rows.jsonl", *rows), *place.options)
    assert stored["rows_stored"] == 5
    row = _row(place, -3)
    assert (row["weights"], row["update_num"], row["update_time"]) == ([-3, 0, 0, 1], 5, 1_700_000_000_000)


def test_what_get_says_can_be_put_back(place: Place) -> None:
    before = said("get", "--group", 1, 0, 99, "--values", *place.options)["rows"]
    names = ("key", "weights", "slots", "update_num", "update_time")
    text = "".join(json.dumps({name: row[name] for name in names}) + "\n" for row in before)
    done("put", "--group", 1, "--key", 0, "--weights", "0,0,0,0", *place.options)
    assert said("put", "--group", 1, "-", *place.options, input=text)["rows_stored"] == 2
    after = said("get", "--group", 1, 0, 99, "--values", *place.options)["rows"]
    assert [{name: row[name] for name in names} for row in after] == [
        {name: row[name] for name in names} for row in before
    ]


def test_put_reads_the_arrays_of_an_export(place: Place, tmp_path: Path) -> None:
    at = tmp_path / "rows.npz"
    np.savez(at, key=np.array([2**64 - 1, 5], np.uint64), weights=np.ones((2, 4), np.float32))
    assert said("put", "--group", 1, at, *place.options)["rows_stored"] == 2
    assert _row(place, -1)["weights"] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("rows", "said_"),
    [
        (["x"], "line 1: it is a JSON str"),
        ([{"key": 1, "weights": [1, 2, 3, 4]}, {"key": 1, "weights": [1, 2, 3, 4]}], "has key 1 more than once"),
        ([{"key": 1, "weights": [1, 2, 3, 4]}, {"key": 2, "weights": [1, 2]}], "line 2: weights has 2 values"),
        ([{"key": 1, "weights": [1, 2, 3, 4]}, {"key": 2}], "line 2: it has key, the lines before key, weights"),
        ([{"key": 1.0, "weights": [1, 2, 3, 4]}], "line 1: key is 1.0"),
        ([{"key": 2**64, "weights": [1, 2, 3, 4]}], "line 1: 18446744073709551616 is no key"),
        ([{"key": 1, "weights": ["a"]}], "line 1: weights is not a list of numbers"),
        ([{"key": 1, "weights": [1], "update_num": -1}], "line 1: update_num is not a whole number"),
        ([{"key": 1, "wieghts": [1]}], "line 1: unknown field 'wieghts'"),
        ([{"key": 1}], "'weights' there must be"),
        ([{"key": 7, "weights": [1, 2, 3, float("inf")]}], "the weights of key 7 hold NaN or Inf"),
        ([], "has nothing"),
    ],
)
def test_a_file_that_is_wrong_anywhere_stores_nothing(
    model: Place, tmp_path: Path, rows: list[object], said_: str
) -> None:
    before = said("stats", *model.options)["rows"]
    file = _lines(tmp_path / "rows.jsonl", *rows)
    assert said_ in refused("put", "--group", 1, file, *model.options, code=1)
    assert said("stats", *model.options)["rows"] == before


def test_a_file_that_is_none_is_said(model: Place, tmp_path: Path) -> None:
    at = ("put", "--group", 1, *model.options)
    (tmp_path / "rows.npz").write_text("nonsense")
    assert "no .npz file" in refused(*at, tmp_path / "rows.npz", code=1)
    np.savez(tmp_path / "rows.npz", key=np.array([1, 2]), weights=np.ones((1, 4), np.float32))
    assert "has 2 keys, and 1 of weights" in refused(*at, tmp_path / "rows.npz", code=1)
    np.savez(tmp_path / "rows.npz", key=np.array([1]), weights=np.ones((1, 4)))
    assert "float32" in refused(*at, tmp_path / "rows.npz", code=1)
    (tmp_path / "rows.jsonl").write_text("{")
    assert "line 1: it is not JSON" in refused(*at, tmp_path / "rows.jsonl", code=1)


def test_a_put_that_ends_midway_says_how_far_it_came(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_rows, "_PART_ROWS", 2)
    put_rows, calls = PyStorage.put_rows, []

    def broken(*arguments: Any, **options: Any) -> int:
        calls.append(1)
        return put_rows(*arguments, **options) if len(calls) < 3 else put_rows(arguments[0], 3, *arguments[2:])

    monkeypatch.setattr(PyStorage, "put_rows", broken)
    file = _lines(tmp_path / "rows.jsonl", *({"key": k, "weights": [0, 0, 0, 0]} for k in range(9)))
    assert "(the first 4 of 9 rows are stored" in refused("put", "--group", 1, file, *place.options, code=1)


def test_rows_go_in_smaller_parts_to_a_server_that_takes_few(server: Server, tmp_path: Path) -> None:
    at = ("--server", server.start(limits=Limits(keys_max=7)))
    with PyStorage(at[1]) as storage:
        embedding(storage, 4, 1)
    file = _lines(tmp_path / "rows.jsonl", *({"key": k, "weights": [k, 0, 0, 0]} for k in range(50)))
    assert said("put", "--group", 1, file, *at)["rows_stored"] == 50
    rows = said("get", "--group", 1, *range(50), "--values", *at)["rows"]
    assert [row["weights"][0] for row in rows] == list(range(50))


def test_the_modes_are_those_of_the_storage() -> None:
    assert {mode.value for mode in Mode} == set(PUT_MODES)


# --- drop ---


def test_drop_takes_a_yes_where_nobody_can_be_asked(place: Place) -> None:
    assert "give --yes" in refused("drop", "--group", 7, *place.options, code=2)
    assert said("drop", "--group", 7, "--yes", *place.options) == {"group": 7, "rows": 1}
    assert [config["group"] for config in said("groups", *place.options)] == [1]
    assert done("drop", "--group", 1, "-y", *place.options) == "dropped group 1 with 100 rows\n"


def test_drop_asks_for_the_number_to_be_typed_again(place: Place) -> None:
    question = "Type its number to drop it"
    code, printed = on_a_terminal(["drop", "--group", 7, *place.options], [(question, "1\n")])
    assert (code, "'1' is not 7: nothing was dropped" in printed) == (1, True)
    assert "dim 2, sgd, 1 rows" in printed
    assert len(said("groups", *place.options)) == 2
    code, printed = on_a_terminal(["drop", "--group", 7, *place.options], [(question, "7\n")])
    assert (code, "dropped group 7 with 1 rows" in printed) == (0, True)
    assert len(said("groups", *place.options)) == 1
