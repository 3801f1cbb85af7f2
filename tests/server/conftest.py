"""Stores for tests of what goes on behind the API: without the background thread, unless a test is about it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rockbed import Connection, PyStorage
from tests.api.helpers import QUIET, Clock, OpenStorage, engine_of
from tests.server.served import Connect, Server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_storage(tmp_path: Path) -> Iterator[OpenStorage]:
    """(name = "store", still = True, **options): with `still`, its background thread has been stopped."""
    opened: list[PyStorage] = []

    def open_(name: str = "store", *, still: bool = True, **options: Any) -> PyStorage:
        storage = PyStorage(tmp_path / name, **{**QUIET, **options})
        opened.append(storage)
        if still and not options.get("read_only"):
            engine_of(storage)._background.stop()
        return storage

    yield open_
    for storage in opened:
        storage.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture
def connect() -> Iterator[Connect]:
    opened: list[PyStorage] = []

    def connect_(target: str, **options: Any) -> PyStorage:
        opened.append(PyStorage(target, connection=Connection(**{"retry_s": 10, **options})))
        return opened[-1]

    yield connect_
    for storage in opened:
        storage.close()
