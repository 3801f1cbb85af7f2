"""The benchmark of the device tier says that there is no GPU, and what it would measure is right."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu
from rockbed.errors import DeviceUnavailable
from rockbed.storage.gpu import cupy_launcher, devices
from rockbed.storage.gpu.launcher import Launcher


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def none(device: int = 0) -> None:
        raise DeviceUnavailable("no CUDA device can be used")

    monkeypatch.setattr(cupy_launcher, "CupyLauncher", none)
    assert gpu.main([]) == 1
    assert capsys.readouterr().err == "Nothing was measured: no CUDA device can be used\n"


def test_what_it_measures_is_a_lookup_and_a_step(launcher: Launcher) -> None:
    case = gpu.prepare(launcher, gpu.Sizes(features=3, samples=8, ids=4, rows=50), dim=8)
    case.lookup()
    out = launcher.to_host(case.out).reshape(8, 3, 8)
    for f, (table, numbers) in enumerate(zip(case.tables, case.numbers, strict=True)):
        rows = table.gather(table.find(launcher.to_device(gpu.keys_of(numbers)))[0])
        sums = launcher.to_host(rows).reshape(8, 4, 8).sum(axis=1)
        np.testing.assert_allclose(out[:, f], sums, rtol=1e-5, atol=1e-6)
    assert case.lookup_bytes() == 3 * 8 * (4 + 1) * 8 * 4
    case.train()
    case.lookup()
    assert (launcher.to_host(case.out).reshape(8, 3, 8) != out).all()
    distinct = sum(np.unique(numbers).size for numbers in case.numbers)
    assert case.train_bytes() == case.lookup_bytes() + 3 * 8 * 8 * 4 + 2 * distinct * 9 * 4


def test_what_it_measures_through_a_store_is_the_same_work(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "open_launcher", lambda name: launcher)
    store = gpu.Store.open(tmp_path / "store", gpu.Sizes(features=2, samples=8, ids=4, rows=50), dim=8)
    with store.storage:
        out = store.lookup()
        for f in range(2):
            rows = store.fused.features[f].embedding.lookup(store.batch[str(f)].keys)
            np.testing.assert_allclose(out[str(f)], rows.reshape(8, 4, 8).sum(axis=1), rtol=1e-5, atol=1e-6)
        store.train()
        figures = store.storage.stats()["groups"][0]
        assert figures["device_rows"] == figures["updates"] == np.unique(store.batch["0"].keys).size
        before, there = store.lookup().pooled, store.on_device()
        np.testing.assert_array_equal(launcher.to_host(there.lookup().pooled), before)
        there.train()
        assert store.storage.stats()["groups"][0]["updates"] == 2 * figures["updates"]
