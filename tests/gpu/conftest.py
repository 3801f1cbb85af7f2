"""The device of a test: the CPU under the shim in the ordinary suite, and a GPU under `pytest -m gpu`."""

import pytest

from rockbed.storage.gpu.launcher import Launcher
from tests.gpu.host_launcher import HostLauncher


@pytest.fixture(params=["shim", pytest.param("cuda", marks=pytest.mark.gpu)])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    if request.param == "shim":
        return HostLauncher()
    from rockbed.storage.gpu.cupy_launcher import CupyLauncher

    return CupyLauncher()
