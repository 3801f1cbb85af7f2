"""The demo as people run it: on all the real flights, and on films in MovieLens' own file format."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rich.console", reason="the examples print with rich: the extra `demo`")

from examples.flights import main
from examples.flights_data import flights_csv


def told_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the demo to its end; what it printed."""
    status = main(arguments)
    out, err = capsys.readouterr()
    assert status == 0, out + err
    return out


def aucs(told: str) -> tuple[list[float], list[float]]:
    """The held-out AUC after each epoch; and those of the resumed run, of its store and of a store restored from it."""
    epochs = re.findall(r"epoch \d+: loss \d\.\d+, held-out AUC (\d\.\d+);", told)
    resumed = re.findall(r"Held-out AUC (\d\.\d+), checksum", told)
    copied = re.findall(r"Held-out AUC here (\d\.\d+), in a store restored from it (\d\.\d+)\.", told)
    return [float(x) for x in epochs], [float(x) for x in (*resumed, *copied[0])]


@pytest.mark.slow  # trains 300,000 flights three times over, three times
def test_the_whole_demo_reaches_its_auc_and_the_killed_run_ends_bit_for_bit_like_the_unbroken_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        flights_csv()
    except ModuleNotFoundError as problem:
        pytest.skip(str(problem))
    told = told_by(["--directory", str(tmp_path / "flights")], capsys)
    assert re.search(r"327,346 flights from New York in 2013 \(9,430 without an outcome left out\)", told)
    epochs, others = aucs(told)
    assert len(epochs) == 3
    assert epochs[-1] >= 0.78
    assert others == [epochs[-1]] * 3
    assert "bit for bit those of the unbroken run" in told
    assert "Gradients planned: 9,722,196, of 29,460 keys; counted by the server: 9,722,196, every key as often" in told
    checksum, again = re.findall(r"[Cc]hecksum ([0-9a-f]{12})", told)
    assert checksum == again
    killed = re.search(r"after it had reported step ([\d,]+) of ([\d,]+)", told)
    assert killed is not None
    step, steps = (int(number.replace(",", "")) for number in killed.groups())
    assert 0.3 * steps < step < steps


def write_ratings(path: Path, ratings: int = 6000) -> None:
    """A u.data of 80 users and 120 films, whose stars follow a taste of the user and a quality of the film."""
    random = np.random.default_rng(1)
    user, item = random.integers(0, 80, ratings), random.integers(0, 120, ratings)
    liking = random.normal(0, 1, 80)[user] + random.normal(0, 1, 120)[item] + random.normal(0, 0.5, ratings)
    stars = np.clip(np.round(3.5 + liking), 1, 5).astype(int)
    moment = 881_250_949 + random.integers(0, 200 * 86_400, ratings)
    rows = zip(user + 1, item + 1, stars, moment, strict=True)
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))


def test_films_are_learnt_from_a_file_of_movielens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ratings(tmp_path / "u.data")
    told = told_by(["--movielens", str(tmp_path / "u.data"), "--epochs", "2", "--batch", "64"], capsys)
    assert "6,000 film ratings. Each gives 4 stars or more, or not" in told
    (_, last), others = aucs(told)
    assert last > 0.8
    assert others == [last] * 3
    assert "bit for bit those of the unbroken run" in told
    assert "every key as often as planned" in told
