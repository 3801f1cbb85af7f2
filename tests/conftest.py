"""What every test shares: hypothesis profiles, and loud skips for tests that need torch or a GPU."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.source_tree import modules
from tests.stale_kernels import delete_stale

# No deadline: the first example of a test may compile a kernel. A failure prints the line that repeats it.
settings.register_profile("default", deadline=None, print_blob=True)
# `make test` uses this one: the same examples every time, so that a red run is the fault of the change in hand.
settings.register_profile("repeatable", parent=settings.get_profile("default"), derandomize=True)
# For a night: pytest --hypothesis-profile=thorough
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=2_000)
settings.load_profile("default")


def _gpu_is_there() -> bool:
    if importlib.util.find_spec("cupy") is None:
        return False
    # Asked in another process: a test run that forks must not have a CUDA context of its own yet.
    probe = "import cupy, sys; sys.exit(cupy.cuda.runtime.getDeviceCount() == 0)"
    return subprocess.run([sys.executable, "-c", probe], capture_output=True, timeout=120).returncode == 0


def pytest_configure(config: pytest.Config) -> None:
    """Drop compiled kernels that a change in another file has made stale, so that the shared cache can be trusted."""
    if not hasattr(config, "workerinput"):  # once, not again in each process of pytest-xdist
        delete_stale(modules())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, so that no process ends with one alone. Skip what cannot run here, with the reason and
    the remedy; -ra prints them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    wanted = {name for item in items for name in ("gpu", "torch") if item.get_closest_marker(name)}
    reasons = {}
    if "torch" in wanted and importlib.util.find_spec("torch") is None:
        reasons["torch"] = "torch is not installed: `make test-torch` installs it and runs these"
    if "gpu" in wanted and not _gpu_is_there():
        reasons["gpu"] = "no CuPy, or no CUDA device: pip install 'rockbed[gpu]' on a machine with an NVIDIA GPU"
    for item in items:
        for name, reason in reasons.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(path)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system; the simulated full disks below run everywhere")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)
