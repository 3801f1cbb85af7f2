"""What only a GPU can show: its bits are the shim's, runs repeat, memory runs out, a sanitizer's verdict."""

import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from rockbed.errors import DeviceOutOfMemory, DeviceUnavailable
from rockbed.storage.gpu.launcher import Launcher
from rockbed.types import F32, I64
from tests.gpu.batches import batch_of, random_grads, shape_of, table_of
from tests.gpu.fused_spec import random_feature
from tests.gpu.host_launcher import HostLauncher
from tests.source_tree import ROOT

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu() -> Any:
    from rockbed.storage.gpu.cupy_launcher import CupyLauncher

    return CupyLauncher()


def features_of(launcher: Launcher, bags: int, keys: I64) -> list[Any]:
    rng = np.random.default_rng(8)
    tables = [
        table_of(launcher, dim, keys, seed=dim, rows=keys.size + 64, optimizer="adam") for dim in (3, 16, 64, 130)
    ]
    features = []
    for i in range(12):
        combiner = ("mean", "sum", None, "sqrtn")[i % 4]
        settings: dict[str, Any] = {"combiner": combiner, "max_norm": (None, 2.0)[i % 2]}
        if combiner is not None:
            settings["default_key"] = (None, 3)[i % 3 == 0]
        spec = random_feature(rng, bags, keys, longest=30, weighted=i % 5 == 0 and combiner is not None, **settings)
        features.append((tables[i % 4][0], spec))
    return features


def train(launcher: Launcher, bags: int, keys: I64, steps: int = 2) -> list[F32]:
    """Some steps of lookup and push; what was looked up, and all rows after it."""
    features = features_of(launcher, bags, keys)
    results = []
    for t in range(steps):
        batch = batch_of(launcher, features)
        out = launcher.empty(shape_of(features), np.float32)
        sequences = [
            launcher.empty((s.keys.size, table.dim), np.float32) for table, s in features if s.combiner is None
        ]
        batch.pool(out, sequences, pin=True)
        results += [launcher.to_host(each) for each in (out, *sequences)]
        pooled, own, _ = random_grads(launcher, features, seed=t)
        for each in batch.gradients(pooled, own)[0]:
            results.append(launcher.to_host(each.grads))
            each.table.update(each.rows, each.grads, 0.01, step=-1, now_ms=t, lsn=t)
        batch.unpin()
    for table in dict.fromkeys(table for table, _ in features):
        results.append(table.records(table.find(launcher.to_device(keys))[0]))
    return results


def test_a_gpu_gives_the_bits_of_the_shim(gpu: Any) -> None:
    for on_gpu, on_shim in zip(train(gpu, 40, np.arange(200)), train(HostLauncher(), 40, np.arange(200)), strict=True):
        np.testing.assert_array_equal(on_gpu, on_shim)


def test_every_run_gives_the_same_bits(gpu: Any) -> None:
    keys = np.arange(5_000)
    runs = [[each.tobytes() for each in train(gpu, 20_000, keys)] for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]


def test_a_large_batch_of_keys_that_repeat(gpu: Any) -> None:
    table, _ = table_of(gpu, 8, np.arange(10), rows=400_000)
    keys = np.random.default_rng(1).integers(0, 150_000, 1_000_000)
    rows, created = table.insert(gpu.to_device(keys), 1, 1)
    rows, distinct = gpu.to_host(rows), np.unique(keys)
    assert created == (distinct >= 10).sum()
    assert np.unique(rows).size == distinct.size
    assert np.array_equal(table.headers(gpu.to_device(rows))[0], keys)


def test_too_much_memory_is_an_error_of_its_own(gpu: Any) -> None:
    with pytest.raises(DeviceOutOfMemory, match=f"no {1 << 50} bytes left"):
        gpu.empty(1 << 48, np.float32)


def test_a_device_that_is_not_there_is_named() -> None:
    from rockbed.storage.gpu.cupy_launcher import CupyLauncher

    with pytest.raises(DeviceUnavailable, match="there is no cuda:99"):
        CupyLauncher(99)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "synccheck"])
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer: it comes with the CUDA toolkit")
    tests = ["tests/gpu/test_pool.py", "tests/gpu/test_backward.py", "tests/gpu/test_index.py"]
    chosen = "cuda and (many_features or share_a_table or thousands or one_row or come_and_go)"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *tests, "-k", chosen]
    options = ["--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    done = subprocess.run([sanitizer, *options, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "passed" in done.stdout
