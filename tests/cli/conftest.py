"""A filled store for each test, over both ways to it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rockbed import PyStorage
from tests.cli.helpers import Place, fill, make_store
from tests.server.served import Server


@pytest.fixture(autouse=True)
def _no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ROCKBED_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture
def served(server: Server, tmp_path: Path) -> Place:
    target = server.start()
    with PyStorage(target) as storage:
        fill(storage)
    return Place(("--server", target), tmp_path, on_server=True)


@pytest.fixture
def model(tmp_path: Path) -> Place:
    make_store(tmp_path / "model")
    return Place(("--data", str(tmp_path / "model")), tmp_path, on_server=False)


@pytest.fixture(params=["directory", "server"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue("model" if request.param == "directory" else "served")
    return found
