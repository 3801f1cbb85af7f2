"""The device of a test: the CPU under the shim in the ordinary suite, and a GPU under `pytest -m gpu`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rockbed import PyStorage
from rockbed.storage.gpu import devices
from rockbed.storage.gpu.launcher import Launcher
from rockbed.storage.gpu.table import row_bytes
from tests.api.helpers import QUIET, Clock
from tests.gpu.host_launcher import HostLauncher
from tests.gpu.stores import ROOMY, Open


@pytest.fixture(params=["shim", pytest.param("cuda", marks=pytest.mark.gpu)])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    if request.param == "shim":
        return HostLauncher()
    from rockbed.storage.gpu.cupy_launcher import CupyLauncher

    return CupyLauncher()


@pytest.fixture
def open_storage(launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """See stores.Open."""
    monkeypatch.setattr(devices, "open_launcher", lambda name: launcher)
    if isinstance(launcher, HostLauncher):
        launcher.own_stream_only = True
    opened: list[PyStorage] = []

    def open_(name: str = "store", *, rows: int | None = None, **options: Any) -> PyStorage:
        """rows: of dim 4 without slots, how many the device has room for."""
        memory = ROOMY if rows is None else rows * row_bytes(4)
        on_device = {} if "device" in options else {"device": "cuda:0", "device_memory": memory}
        opened.append(PyStorage(tmp_path / name, **{**QUIET, **on_device, **options}))
        return opened[-1]

    yield open_
    for storage in opened:
        storage.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()
