"""groups, stats, top: what there is and what happens."""

import json
import threading
from typing import Any

import pytest

from rockbed import PyStorage
from rockbed.server.cli_output import print_json
from rockbed.server.cli_top import Reading, sample
from tests.api.helpers import adagrad, embedding, keys_of, ones, uniform
from tests.cli.helpers import Place, done, on_a_terminal, refused, run, said
from tests.server.served import Server


def test_groups_says_how_each_group_learns(place: Place) -> None:
    users, items = said("groups", *place.options)
    assert (users["group"], users["dim"], users["optimizer"]["name"]) == (1, 4, "adagrad")
    assert items["admission"]["count"] == 3
    text = done("groups", *place.options)
    assert "adagrad" in text
    assert "min_count count=3" in text


def test_stats_are_those_of_the_storage(place: Place) -> None:
    found = said("stats", *place.options)
    assert found["rows"] == 101
    assert found["groups"]["1"]["rows"] == 100
    assert said("stats", "--group", 7, *place.options)["rows"] == 1
    assert "write_back_lag_s" in done("stats", *place.options)
    assert "gradient_norm_max" in done("stats", "--group", 1, *place.options)
    assert "group 3 is not among those" in refused("stats", "--group", 3, *place.options, code=1)


def test_text_that_looks_like_markup_is_printed_as_it_is(tmp_path: Any) -> None:
    with PyStorage(tmp_path / "[bold]model"):
        pass
    assert "[bold]model" in done("stats", "--data", tmp_path / "[bold]model")


# --- top ---


def test_top_says_what_there_is(place: Place) -> None:
    text = done("top", "--count", 2, "--interval", 0.05, *place.options)
    assert text.count("answered in") == 2
    found = said("top", "--interval", 0.05, *place.options)
    assert found["interval_s"] == 0.05
    (only,) = found["samples"]
    users = only["groups"][0]
    assert (users["group"], users["rows"], users["lookup_keys_s"], users["hit_rate"]) == (1, 100, 0.0, None)
    assert only["round_trip_ms"] > 0
    assert len(said("top", "--count", 3, "--interval", 0.05, *place.options)["samples"]) == 3


def test_top_sees_what_others_do(served: Place) -> None:
    ended = threading.Event()

    def work() -> None:
        with PyStorage(served.options[1]) as storage:
            rows = embedding(storage, 4, 1, optimizer=adagrad(), initializer=uniform())
            while not ended.is_set():
                rows.lookup(keys_of(1, 2, 3))
                rows.apply_gradients(keys_of(1), ones(1))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        samples = said("top", "--count", 5, "--interval", 0.2, *served.options)["samples"]
    finally:
        ended.set()
        worker.join()
    users = samples[-1]["groups"][0]
    assert users["lookup_keys_s"] > users["push_keys_s"] > 0
    assert users["hit_rate"] == 1.0


def _reading(at_s: float, **counts: int) -> Reading:
    zeros = dict.fromkeys(("lookup_keys", "push_keys", "inserts", "memory_hits", "disk_hits"), 0)
    group = {"rows": 5, "memory_rows": 4, "dirty_rows": 3, **zeros, **counts}
    sizes = dict.fromkeys(("dirty_rows", "memory_bytes", "memory_budget", "journal_bytes", "write_back_lag_s"), 0)
    return Reading({**sizes, "background_error": None, "groups": {1: group}}, at_s, 1.0)


def test_rates_are_what_was_counted_by_the_seconds_in_between() -> None:
    before = _reading(10.0, lookup_keys=100, memory_hits=90, disk_hits=10)
    now = _reading(12.0, lookup_keys=300, push_keys=50, inserts=20, memory_hits=240, disk_hits=40)
    (group,) = sample(before, now).groups
    assert (group.lookup_keys_s, group.push_keys_s, group.inserts_s) == (100, 25, 10)
    assert group.hit_rate == 150 / 180


def test_no_rate_is_made_up_at_first_nor_when_the_store_was_opened_anew() -> None:
    for before in (None, _reading(10.0, lookup_keys=500)):
        (group,) = sample(before, _reading(12.0, lookup_keys=300)).groups
        assert (group.rows, group.lookup_keys_s, group.hit_rate) == (5, None, None)


def test_the_live_view_ends_with_q(served: Place) -> None:
    code, printed = on_a_terminal(["top", "--interval", 0.1, *served.options], [("answered in", "q")])
    assert code == 0
    assert "lookups/s" in printed


def test_the_live_view_ends_with_ctrl_c(served: Place) -> None:
    code, printed = on_a_terminal(["top", "--interval", 0.1, *served.options], [("answered in", "\x03")])
    assert code == 130
    assert "Traceback" not in printed


@pytest.mark.parametrize("asked", [["--json"], []])
def test_where_nobody_watches_a_server_that_goes_away_is_1(server: Server, served: Place, asked: list[str]) -> None:
    timer = threading.Timer(0.3, server.stop)
    timer.start()
    result = run("top", "--count", 1000, "--interval", 0.05, *asked, *served.options)
    timer.join()
    assert result.exit_code == 1
    assert "cannot be reached" in result.stderr
    assert not (asked and result.stdout)


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("nan"), 1.5], "b": {"c": float("inf")}})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": {"c": None}}
