"""DeepFM in torch at a small size: what its rows in Rockbed learn is what torch.nn.Embedding learns."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

from examples.torch_deepfm import AUC_TOLERANCE, LOSS_TOLERANCE, Trained, main  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("served", [False, True])
def test_both_learn_alike(served: bool, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--synthetic", "4000", "--epochs", "3", "--batch", "64", *(["--served"] if served else [])]
    assert main(options) == 0
    ours, theirs, away = capsys.readouterr().out.splitlines()
    aucs = [float(line.split("AUC ")[1].split(";")[0]) for line in (ours, theirs)]
    assert aucs[0] == pytest.approx(aucs[1], abs=AUC_TOLERANCE)
    assert aucs[0] > 0.75
    assert away.startswith("The losses of the first 100 steps differ by ")


@pytest.mark.parametrize(
    ("loss", "auc", "status"), [(0.9, 0.9, 0), (1.1, 0, 1), (-1.1, 0, 1), (0, 1.1, 1), (0, -1.1, 1)]
)
def test_another_end_is_no_success(loss: float, auc: float, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Trained([0.5, 0.0], 0.8, 1.0)
    ours = Trained([0.5, loss * LOSS_TOLERANCE], 0.8 + auc * AUC_TOLERANCE, 1.0)
    monkeypatch.setattr("examples.torch_deepfm.compare", lambda *_: (ours, theirs))
    assert main(["--synthetic", "100"]) == status


def test_without_the_flights_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_: object) -> None:
        raise ModuleNotFoundError("no flights here")

    monkeypatch.setattr("examples.torch_deepfm.read_flights", absent)
    assert main([]) == 2
    assert capsys.readouterr().out == "no flights here\n"
