"""Stores for the tests of the public API, over every transport, and a clock that the test owns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rockbed import PyStorage
from tests.api.helpers import QUIET, Clock, OpenStorage


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["embedded"])  # "grpc" joins when there is a daemon: the same tests, the same errors
def open_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStorage]:
    opened: list[PyStorage] = []

    def open_(name: str = "store", **options: Any) -> PyStorage:
        assert request.param == "embedded"
        storage = PyStorage(tmp_path / name, **{**QUIET, **options})
        opened.append(storage)
        return storage

    yield open_
    for storage in opened:
        storage.close()


@pytest.fixture
def storage(open_storage: OpenStorage) -> PyStorage:
    return open_storage()
