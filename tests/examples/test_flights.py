"""The example programs at a small size: reading, the model's gradients, and the whole story with its kill."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

rich_console = pytest.importorskip("rich.console", reason="the examples print with rich: the extra `demo`")

from examples.flights import Story, main  # noqa: E402
from examples.flights_data import (  # noqa: E402
    Column,
    Examples,
    parse_flights,
    read_flights,
    read_movielens,
    split,
    standardized,
    synthetic,
)
from examples.fm import FACTORS, LINEAR, FactorizationMachine, auc, log_loss  # noqa: E402
from examples.trainer import Plan, train  # noqa: E402
from rockbed import PyStorage  # noqa: E402
from rockbed.types import F32, F64  # noqa: E402

CSV = """year,month,day,arr_delay,carrier,flight,tailnum,origin,dest,hour,sched_dep_time,distance
2013,1,1,16,UA,1545,N14228,EWR,IAH,5,517,1400
2013,1,1,15,UA,1545,N14228,EWR,IAH,5,500,1400
2013,1,2,,AA,11,,JFK,MIA,6,600,1089
2013,1,7,99,AA,11,N619AA,JFK,MIA,6,600,1089
"""


def test_a_key_depends_on_feature_and_value_only_and_has_63_bits() -> None:
    one, other = Column.of(["b", "a", "b"]), Column.of(["a", "c"])
    assert one.keys("x")[1] == other.keys("x")[0]
    assert one.keys("x")[0] == one.keys("x")[2] != one.keys("x")[1]
    assert one.keys("x")[0] != one.keys("y")[0]
    assert (one.keys("x") >= 0).all()
    # golden: blake2b is the same everywhere, so the stored rows of a model stay reachable
    assert Column.of(["AA"]).keys("carrier").tolist() == [7048996818418587145]


def test_a_cross_is_the_pair_of_the_values() -> None:
    pair = Column.of(["a", "b", "a", "a"]).cross(Column.of(["x", "x", "y", "x"]))
    assert [pair.values[code] for code in pair.codes] == ["a|x", "b|x", "a|y", "a|x"]


def test_late_is_more_than_fifteen_minutes_and_a_flight_that_never_arrived_is_dropped() -> None:
    examples = parse_flights(CSV)
    assert examples.labels.tolist() == [1, 0, 1]
    assert examples.dropped == 1
    assert examples.keys.shape == (3, 11)
    assert examples.keys.dtype == np.int64
    np.testing.assert_array_equal(examples.keys[0], examples.keys[1])  # the same plane and time: the same values
    weekday = examples.features.index("weekday")
    assert examples.keys[0, weekday] == Column.of(["1"]).keys("weekday")[0]  # 1 January 2013 was a Tuesday
    assert examples.numbers["departure"].tolist() == [5 * 60 + 17, 5 * 60, 6 * 60]
    np.testing.assert_allclose(examples.numbers["log distance"], np.log([1401, 1401, 1090]), rtol=1e-6)


def test_the_flights_are_read_from_the_installed_package() -> None:
    try:
        examples = read_flights(2000)
    except ModuleNotFoundError as problem:
        pytest.skip(str(problem))
    assert 0.15 < examples.labels.mean() < 0.35
    assert len(examples.labels) + examples.dropped == 2000


def test_films_are_read_from_tab_separated_lines(tmp_path: Path) -> None:
    path = tmp_path / "u.data"
    path.write_text("1\t10\t5\t881250949\n2\t10\t3\t891717742\n1\t11\t4\t881250949\n")
    examples = read_movielens(path)
    assert examples.labels.tolist() == [1, 0, 1]
    assert examples.features[:2] == ("user", "item")
    assert examples.keys[0, 0] == examples.keys[2, 0]
    assert examples.keys[0, 1] == examples.keys[1, 1]
    stars = read_movielens(path, rated=True)
    assert stars.rated
    assert stars.labels.tolist() == [5, 3, 4]


def test_examples_survive_a_file(tmp_path: Path) -> None:
    before = replace(synthetic(100), numbers={"x": np.linspace(0, 1, 100, dtype=np.float32)}, rated=True)
    before.save(tmp_path / "examples.npz")
    after = Examples.load(tmp_path / "examples.npz")
    np.testing.assert_array_equal(before.keys, after.keys)
    np.testing.assert_array_equal(before.labels, after.labels)
    assert (after.features, after.title, after.question) == (before.features, before.title, before.question)
    np.testing.assert_array_equal(before.numbers["x"], after.numbers["x"])
    assert list(after.numbers) == ["x"]
    assert after.rated


def test_the_split_loses_and_repeats_nothing() -> None:
    examples = Examples(np.arange(50)[:, None], np.zeros(50, np.float32), ("a",), "", "")
    parts = split(examples, seed=3)
    assert len(parts.test_labels) == 5
    assert sorted([*parts.train_keys[:, 0].tolist(), *parts.test_keys[:, 0].tolist()]) == list(range(50))


def test_numbers_are_standardized_by_the_examples_to_learn_from_and_the_missing_are_their_mean() -> None:
    values = np.array([1, 3, np.nan, 7, 100], np.float32)  # mean 11/3 and variance 56/9 of the first four
    found = standardized(values, np.arange(4))
    deviation = np.sqrt(56 / 9)
    expected = [
        (1 - 11 / 3) / deviation,
        (3 - 11 / 3) / deviation,
        0,
        (7 - 11 / 3) / deviation,
        (100 - 11 / 3) / deviation,
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
    assert not standardized(np.full(3, np.nan, np.float32), np.arange(3)).any()
    assert standardized(np.array([2, 2, 3], np.float32), np.arange(2)).tolist() == [0, 0, 1]


def test_auc_counts_pairs_and_a_tie_as_half() -> None:
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 8, 60).astype(np.float32), (random.random(60) < 0.4).astype(np.float32)
    yes, no = scores[labels > 0][:, None], scores[labels == 0][None, :]
    assert auc(scores, labels) == pytest.approx(float(((yes > no) + 0.5 * (yes == no)).mean()))
    assert np.isnan(auc(scores, np.ones(60, np.float32)))


def test_the_gradients_pushed_are_the_slopes_of_the_loss(tmp_path: Path) -> None:
    """Against central differences in float64 of the pairwise definition of the model, not of lemma 3.1."""
    keys = np.array([[1, 2, 3], [1, 4, 3]])
    labels = np.array([1, 0], np.float32)
    pushed: dict[int, F32] = {}
    with PyStorage(str(tmp_path / "store")) as storage:
        model = FactorizationMachine(storage, factors=4)

        class Spy:
            def apply_gradients(self, parts: list, request: tuple[str, int]) -> None:  # type: ignore[type-arg]
                pushed.update({group: part[2] for group, part in zip((LINEAR, FACTORS), parts, strict=True)})

        weights = model.linear.lookup(keys.reshape(-1)).reshape(2, 3).astype(np.float64)
        vectors = model.factors.lookup(keys.reshape(-1)).reshape(2, 3, 4).astype(np.float64)
        model._storage = Spy()  # type: ignore[assignment]
        loss = model.step(keys, labels, ("trainer", 1))

    def total(w: F64, v: F64) -> float:
        pairs = sum((v[:, f] * v[:, g]).sum(axis=1) for f in range(3) for g in range(f + 1, 3))
        return float(np.log1p(np.exp(-(2 * labels - 1) * (w.sum(axis=1) + pairs))).sum())

    assert loss == pytest.approx(total(weights, vectors) / 2, rel=1e-5)
    for values, gradient in ((weights, pushed[LINEAR]), (vectors, pushed[FACTORS])):
        slopes = np.empty(values.size)
        for i in range(values.size):
            sides = []
            for nudge in (1e-5, -1e-5):
                values.flat[i] += nudge
                sides.append(total(weights, vectors))
                values.flat[i] -= nudge
            slopes[i] = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(gradient.ravel(), slopes, rtol=1e-3, atol=1e-6)  # float32 against float64


def test_training_stopped_and_resumed_anywhere_ends_with_the_same_rows(tmp_path: Path) -> None:
    data = split(synthetic(600), seed=1)
    plan = Plan(epochs=2, batch=50)
    keys = np.unique(data.train_keys)
    found = []
    for name, stops in (("whole", []), ("stopped", [3, 11, 15])):
        for stop in [*stops, None]:
            with PyStorage(str(tmp_path / name)) as storage:
                model = FactorizationMachine(storage, plan.factors, plan.seed)
                for step in train(storage, model, data, plan):
                    if step.number == stop:
                        break
                rows = model.linear.lookup(keys, train=False), model.factors.lookup(keys, train=False)
        found.append(rows)
    for whole, stopped in zip(*found, strict=True):
        np.testing.assert_array_equal(whole, stopped)


def test_it_learns(tmp_path: Path) -> None:
    data = split(synthetic(6000), seed=1)
    with PyStorage(str(tmp_path / "store")) as storage:
        model = FactorizationMachine(storage)
        assert np.allclose(log_loss(model.predict(data.test_keys), data.test_labels), np.log(2))
        for _ in train(storage, model, data, Plan(epochs=2, batch=128)):
            pass
        assert auc(model.predict(data.test_keys), data.test_labels) > 0.8


def test_the_story_kills_trainer_and_server_and_ends_with_the_same_rows_and_exact_counts(
    tmp_path: Path,
) -> None:
    text = io.StringIO()
    console = rich_console.Console(file=text, width=200)
    assert Story(console, tmp_path, Plan(epochs=2, batch=16)).tell(synthetic(3000))
    told = text.getvalue()
    killed = re.search(r"after it had reported step (\d+) of (\d+)", told)
    assert killed is not None
    assert 0 < int(killed[1]) < int(killed[2])
    durable = re.search(r"the last step in it is (\d+)", told)
    assert durable is not None
    assert int(durable[1]) >= int(killed[1])  # what was reported was durable
    assert "bit for bit those of the unbroken run" in told
    under_way = re.search(r"Killed the server with SIGKILL when (\d+) of (\d+) steps had been reported", told)
    assert under_way is not None
    assert 0 < int(under_way[1]) < int(under_way[2])
    assert "every key as often as planned" in told
    assert "within 0.01" in told


@pytest.mark.parametrize(("same", "near"), [(False, True), (True, False)])
def test_the_story_is_no_success_when_either_run_ended_elsewhere(
    same: bool, near: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Story, "kill_and_resume", lambda *_: same)
    monkeypatch.setattr("examples.flights.train_together", lambda *_: near)
    monkeypatch.setattr(Story, "look_inside", lambda *_: None)
    console = rich_console.Console(file=io.StringIO())
    assert not Story(console, tmp_path, Plan(epochs=1)).tell(synthetic(100))


def test_a_missing_file_is_said_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--movielens", str(tmp_path / "absent")]) == 2
    assert "absent" in capsys.readouterr().out
