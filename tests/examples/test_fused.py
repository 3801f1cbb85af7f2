"""The fused flights at a small size: the same model as the unfused one, in one call each way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.flights_data import split, synthetic
from examples.fm import FactorizationMachine, auc
from examples.fused import AUC_TOLERANCE, FusedMachine, Trained, main
from examples.trainer import Plan, train
from rockbed import PyStorage
from rockbed.client.backend import Backend

DATA = split(synthetic(3000), seed=1)
PLAN = Plan(epochs=2, batch=64)
KEYS = np.unique(DATA.train_keys)


class Counting:
    """A backend whose calls are counted."""

    def __init__(self, backend: Backend) -> None:
        self.inner = backend
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self.inner, name)


@pytest.fixture
def models(tmp_path: Path) -> Iterator[list[tuple[PyStorage, FactorizationMachine]]]:
    """An unfused and a fused one, in stores of their own."""
    machines: list[type[FactorizationMachine]] = [FactorizationMachine, FusedMachine]
    storages = [PyStorage(tmp_path / machine.__name__) for machine in machines]
    yield [(storage, machine(storage)) for storage, machine in zip(storages, machines, strict=True)]
    for storage in storages:
        storage.close()


def test_it_learns_what_the_unfused_model_learns(models: list[tuple[PyStorage, FactorizationMachine]]) -> None:
    losses = [[step.loss for step in train(storage, model, DATA, PLAN)] for storage, model in models]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)  # float32 sums in another order
    unfused, fused = (model for _, model in models)
    np.testing.assert_allclose(fused.predict(DATA.test_keys), unfused.predict(DATA.test_keys), rtol=1e-3, atol=1e-3)
    for ours, theirs in ((fused.linear, unfused.linear), (fused.factors, unfused.factors)):
        np.testing.assert_allclose(
            ours.lookup(KEYS, train=False), theirs.lookup(KEYS, train=False), rtol=1e-3, atol=1e-3
        )
    reached = [auc(model.predict(DATA.test_keys), DATA.test_labels) for _, model in models]
    assert reached[0] > 0.75
    assert abs(reached[0] - reached[1]) <= AUC_TOLERANCE


def test_a_step_is_one_lookup_and_one_push(models: list[tuple[PyStorage, FactorizationMachine]]) -> None:
    storage, model = models[1]
    counting: Any = Counting(storage.backend)
    storage.backend = counting
    model.step(DATA.train_keys[:64], DATA.train_labels[:64], ("trainer", 1))
    model.predict(DATA.test_keys[:64])
    assert counting.calls == ["fused_lookup", "fused_apply_gradients", "fused_lookup"]
    assert storage.last_request("trainer") == 1


@pytest.mark.parametrize("served", [False, True])
def test_the_program_compares_both_ways(served: bool, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--synthetic", "1000", "--epochs", "2", "--batch", "64", *(["--served"] if served else [])]
    assert main(options) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == ["unfused", "fused", "The"]


@pytest.mark.parametrize(("away", "status"), [(-1.1, 1), (-0.9, 0), (0.9, 0), (1.1, 1)])
def test_an_auc_beyond_the_tolerance_is_no_success(away: float, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    unfused = Trained(0.8, 1.0, 1.0)
    fused = Trained(0.8 + away * AUC_TOLERANCE, 1.0, 1.0)
    monkeypatch.setattr("examples.fused.compare", lambda *_, **__: (unfused, fused))
    assert main(["--synthetic", "100"]) == status


def test_without_the_flights_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_: object) -> None:
        raise ModuleNotFoundError("no flights here")

    monkeypatch.setattr("examples.fused.read_flights", absent)
    assert main([]) == 2
    assert capsys.readouterr().out == "no flights here\n"
