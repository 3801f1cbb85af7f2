"""The models in torch at a small size: what their rows in Rockbed learn is what torch.nn.Embedding learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

from torch import nn  # noqa: E402

from examples import torch_deepfm, torch_dlrm, torch_two_tower  # noqa: E402
from examples.criteo_data import COLUMNS  # noqa: E402
from examples.flights_data import Examples, Split, split  # noqa: E402
from examples.torch_comparison import (  # noqa: E402
    LOSS_TOLERANCE,
    SCORE_TOLERANCE,
    InRockbed,
    Known,
    Trained,
    base_score,
    score,
    verdict,
)
from examples.torch_dlrm import DLRM  # noqa: E402
from examples.torch_two_tower import found  # noqa: E402
from examples.trainer import Plan  # noqa: E402
from rockbed import PyStorage  # noqa: E402
from rockbed.types import F32  # noqa: E402

pytestmark = pytest.mark.torch

MODELS = {"deepfm": torch_deepfm.main, "dlrm": torch_dlrm.main, "two_tower": torch_two_tower.main}
PLAN = ["--epochs", "3", "--batch", "40"]


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the format of MovieLens 100K's u.data: users and films that are more and less generous and good."""
    random = np.random.default_rng(0)
    generous, good = random.normal(0, 0.6, 60), random.normal(0, 0.6, 90)
    lines = []
    for pair in random.choice(60 * 90, 1500, replace=False).tolist():
        user, film = divmod(pair, 90)
        stars = int(np.clip(np.rint(3.5 + generous[user] + good[film] + random.normal(0, 0.6)), 1, 5))
        lines.append(f"{user + 1}\t{film + 1}\t{stars}\t{880_000_000 + int(random.integers(10**7))}\n")
    path = tmp_path_factory.mktemp("films") / "u.data"
    path.write_text("".join(lines))
    return path


def clicks(path: Path, separator: str) -> Path:
    """A file in a format of Criteo's: a count and a category tell of the clicks, some of both are missing."""
    random = np.random.default_rng(0)
    counts, categories = random.poisson(3.0, (1500, 13)), random.integers(0, 20, (1500, 26))
    odds = 0.5 * counts[:, 0] + random.normal(0, 1.5, 20)[categories[:, 0]] - 1.5
    clicked = random.random(1500) < 1 / (1 + np.exp(-odds))
    missing = random.random((1500, 39)) < 0.1
    lines = [separator.join(COLUMNS)] if separator == "," else []
    for label, numbers, values, absent in zip(clicked, counts.tolist(), categories.tolist(), missing, strict=True):
        cells = [str(number) for number in numbers] + [f"{value:08x}" for value in values]
        shown = ["" if gone else cell for cell, gone in zip(cells, absent, strict=True)]
        lines.append(separator.join([str(int(label)), *shown]))
    path.write_text("\n".join(lines) + "\n")
    return path


def alike(main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[float]:
    """Run a model both ways and check what it says. Returns the scores, Rockbed's and torch's."""
    status = main([*arguments, *PLAN])
    said = capsys.readouterr().out
    assert status == 0, said
    ours, theirs, away = said.splitlines()
    assert away.startswith("The losses of the first 100 steps differ by ")
    return [float(line.split("held-out ")[1].split()[1].rstrip(";")) for line in (ours, theirs)]


@pytest.mark.parametrize("served", [[], ["--served"]], ids=["embedded", "served"])
@pytest.mark.parametrize("model", MODELS)
def test_both_learn_alike(model: str, served: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = alike(MODELS[model], ["--synthetic", "1500", *served], capsys)
    assert ours == pytest.approx(theirs, abs=SCORE_TOLERANCE)
    assert ours > 0.75


@pytest.mark.parametrize("served", [[], ["--served"]], ids=["embedded", "served"])
@pytest.mark.parametrize("model", MODELS)
def test_both_learn_alike_from_film_ratings(
    model: str, served: list[str], films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = alike(MODELS[model], ["--movielens", str(films), *served], capsys)
    assert ours == pytest.approx(theirs, abs=SCORE_TOLERANCE)
    if model == "two_tower":
        assert ours < 0.95  # RMSE of stars, whose standard deviation is above 1
    else:
        assert ours > 0.65


@pytest.mark.parametrize(
    ("separator", "served"), [(",", []), ("\t", ["--served"])], ids=["csv-embedded", "kaggle-served"]
)
@pytest.mark.parametrize("model", MODELS)
def test_both_learn_alike_from_clicks(
    model: str, separator: str, served: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = clicks(tmp_path / "clicks", separator)
    ours, theirs = alike(MODELS[model], ["--criteo", str(path), *served], capsys)
    assert ours == pytest.approx(theirs, abs=SCORE_TOLERANCE)
    assert ours > 0.6


@pytest.mark.parametrize(
    ("loss", "score", "status"), [(0.9, 0.9, 0), (1.1, 0, 1), (-1.1, 0, 1), (0, 1.1, 1), (0, -1.1, 1)]
)
def test_another_end_is_no_success(loss: float, score: float, status: int) -> None:
    ours = Trained([0.5, loss * LOSS_TOLERANCE], 0.8 + score * SCORE_TOLERANCE, 1.0)
    assert verdict(ours, Trained([0.5, 0.0], 0.8, 1.0), "AUC") == status


def test_a_loss_that_is_no_number_is_no_success() -> None:
    nothing = Trained([float("nan")], float("nan"), 1.0)
    assert verdict(nothing, nothing, "AUC") == 1


def test_without_examples_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def absent(*_: object) -> None:
        raise ModuleNotFoundError("no flights here")

    monkeypatch.setattr("examples.torch_comparison.read_flights", absent)
    assert torch_deepfm.main([]) == 2
    assert capsys.readouterr().out == "no flights here\n"
    assert torch_dlrm.main(["--criteo", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().out


def data_of(
    keys: list[list[int]],
    labels: list[float],
    numbers: dict[str, F32] | None = None,
    *,
    rated: bool = False,
    held_out: float = 0.0,
) -> Split:
    names = tuple("abc"[: len(keys[0])])
    labelled = np.array(labels, np.float32)
    return split(
        Examples(np.array(keys), labelled, names, "", "", numbers=numbers or {}, rated=rated), 0, held_out=held_out
    )


def test_dlrm_sees_the_dot_product_of_each_two_vectors(tmp_path: Path) -> None:
    numbers = {"x": np.array([1, 2, 4, 8], np.float32)}
    data = data_of([[1, 5, 9], [2, 6, 10], [3, 7, 11], [4, 8, 12]], [0, 1, 0, 1], numbers)
    with PyStorage(str(tmp_path / "store")) as storage:
        model = DLRM(InRockbed(storage, 1), data, Plan(factors=4))
        keys, dense = torch.from_numpy(data.train_keys), torch.from_numpy(data.train_dense)
        scores = model(keys, dense).detach()
        assert model.bottom is not None
        vectors = [model.bottom(dense).detach(), *model.vectors(keys).detach().unbind(dim=1)]
        products = [(vectors[i] * vectors[j]).sum(dim=1) for i in range(4) for j in range(i)]
        seen = torch.cat([vectors[0], torch.stack(products, dim=1)], dim=1)
        torch.testing.assert_close(scores, model.top(seen).squeeze(1).detach())
        assert sorted(storage.names()) == ["dlrm/a", "dlrm/b", "dlrm/c"]


def test_keys_that_are_not_known_give_zeros_and_no_gradient() -> None:
    table = Known(np.array([-5, 3, 8]), np.array([[1, 2], [3, 4], [5, 6]], np.float32))
    rows = table(torch.tensor([[3, 9], [-6, -5]]))
    assert rows.tolist() == [[[3, 4], [0, 0]], [[0, 0], [1, 2]]]
    rows.sum().backward()
    assert table.rows.weight.grad.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]


def test_what_is_found_is_among_the_best_that_count() -> None:
    scores = np.array([[4, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1]], np.float32)
    left_out = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    wanted = np.array([1, 2, 2])  # the second best; the third; the second of those that count
    assert found(scores, wanted, left_out, 2) == pytest.approx(2 / 3)


def test_the_base_is_the_score_that_fits_all_best() -> None:
    assert base_score(data_of([[1]] * 4, [0, 1, 1, 1])) == pytest.approx(np.log(3))
    assert np.isfinite(base_score(data_of([[1]] * 4, [1, 1, 1, 1])))
    assert base_score(data_of([[1]] * 4, [1, 2, 4, 5], rated=True)) == 3


def test_ratings_are_judged_by_rmse_and_the_rest_by_auc() -> None:
    class First(nn.Module):
        def forward(self, keys: Any, _: Any) -> Any:
            return keys[:, 0].float()

    data = data_of([[1], [2], [3]], [0, 0, 1], held_out=1.0)
    assert score(First(), data) == 1.0
    rated = data_of([[1], [2], [3]], [1, 2, 5], rated=True, held_out=1.0)
    assert score(First(), rated) == pytest.approx(np.sqrt(4 / 3))
