"""Shares of a plan, the processes, and what tells a good end of two trainers from a bad one."""

import io
from pathlib import Path

import pytest

rich_console = pytest.importorskip("rich.console", reason="the examples print with rich: the extra `demo`")

from examples.flights_data import split, synthetic  # noqa: E402
from examples.fm import FactorizationMachine, auc  # noqa: E402
from examples.processes import Server, Trainers  # noqa: E402
from examples.trainer import Plan, Share, train  # noqa: E402
from examples.two_trainers import AUC_TOLERANCE, check_auc, check_counts  # noqa: E402
from rockbed import PyStorage  # noqa: E402

DATA = split(synthetic(600), seed=1)
PLAN = Plan(epochs=2, batch=50)
STEPS = 22


def counting(storage: PyStorage) -> FactorizationMachine:
    return FactorizationMachine(storage, PLAN.factors, PLAN.seed, count=True)


def test_two_shares_are_the_steps_of_the_plan_each_once_also_when_one_resumes(tmp_path: Path) -> None:
    numbers: list[int] = []
    for share, stop in ((Share(0, 2), 7), (Share(1, 2), None), (Share(0, 2), None)):
        with PyStorage(str(tmp_path / "store")) as storage:
            for step in train(storage, counting(storage), DATA, PLAN, share):
                numbers.append(step.number)
                if step.number == stop:
                    break
    assert numbers == [1, 3, 5, 7, *range(2, STEPS + 1, 2), *range(9, STEPS + 1, 2)]


def test_a_push_too_many_and_a_push_too_few_are_found_by_the_counts(tmp_path: Path) -> None:
    text = io.StringIO()
    console = rich_console.Console(file=text, width=200)
    with PyStorage(str(tmp_path / "store")) as storage:
        model = counting(storage)
        right = []
        for _ in train(storage, model, DATA, PLAN):
            right.append(check_counts(console, model, DATA, PLAN))
        model.step(DATA.train_keys[:1], DATA.train_labels[:1])
        right.append(check_counts(console, model, DATA, PLAN))
    assert right == [False] * (STEPS - 1) + [True, False]
    assert text.getvalue().splitlines()[-1].endswith("counted by the server: 3,243, 3 keys NOT as often as planned.")


def test_an_auc_beyond_the_tolerance_is_no_success(tmp_path: Path) -> None:
    console = rich_console.Console(file=io.StringIO())
    with PyStorage(str(tmp_path / "store")) as storage:
        model = counting(storage)
        for _ in train(storage, model, DATA, PLAN):
            pass
        reached = auc(model.predict(DATA.test_keys), DATA.test_labels)
        for away in (-1.1, -0.9, 0.9, 1.1):
            assert check_auc(console, model, DATA, reached + away * AUC_TOLERANCE) == (abs(away) < 1)


def test_what_a_process_that_fails_said_is_not_lost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no store")
    with pytest.raises(RuntimeError, match="is a file"), Server(tmp_path / "file", tmp_path / "server.log"):
        pass
    with Trainers(str(tmp_path / "store"), tmp_path / "absent.npz", PLAN) as trainers:
        assert list(trainers.steps()) == []
        with pytest.raises(RuntimeError, match="ended with code 1"):
            trainers.check()
    assert "absent.npz" in capfd.readouterr().err
