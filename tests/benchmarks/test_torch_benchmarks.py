"""The benchmarks of the torch modules run, at a small size."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

from benchmarks import prefetching
from benchmarks.environments import Unavailable
from benchmarks.predecessor import save, trained
from examples.flights_data import split, synthetic

pytestmark = pytest.mark.torch


def test_the_predecessors_model_learns_with_our_module(tmp_path: Path) -> None:
    save(split(synthetic(4_000), 0), tmp_path / "data.npz")
    auc, seconds = trained(Path(sys.executable), "rockbed.compat.damo_embedding", tmp_path / "data.npz", 0)
    assert auc > 0.7
    assert seconds > 0


def test_a_package_that_does_not_run_is_said(tmp_path: Path) -> None:
    save(split(synthetic(100), 0), tmp_path / "data.npz")
    with pytest.raises(Unavailable, match="No module named 'no_such_package'"):
        trained(Path(sys.executable), "no_such_package", tmp_path / "data.npz", 0)


def test_training_is_timed_with_prefetching_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetching, "ROWS", 500)
    monkeypatch.setattr(prefetching, "BATCH", 32)
    prefetching.fill(tmp_path / "store")
    without, with_ = prefetching.measured(str(tmp_path / "store"), rounds=2, steps=2, memory_budget=1 << 20)
    assert len(without) == len(with_) == 2
    assert min(without + with_) > 0
