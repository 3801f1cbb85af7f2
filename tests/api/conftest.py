"""Stores for the tests of the public API, over every transport, and a clock that the test owns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rockbed import PyStorage
from rockbed.client import shared_memory
from rockbed.server import lookups, seen
from tests.api.helpers import QUIET, Clock, OpenStorage, Served


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what means nothing over the wire."""
    items[:] = [item for item in items if not (item.get_closest_marker("embedded") and _is_remote(item))]


def _is_remote(item: pytest.Item) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("open_storage") == "grpc"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["embedded", "grpc"])
def open_storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OpenStorage]:
    opened: list[PyStorage] = []
    if request.param == "embedded":  # so that small batches go every way
        monkeypatch.setattr(lookups, "_SHARED_KEYS", 0)
        monkeypatch.setattr(seen, "_KEYS_LEAST", 1)
    else:  # small messages lie in shared memory, too; elsewhere in the tests they travel
        monkeypatch.setattr(shared_memory, "WORTH_BYTES", 0)

    def open_(name: str = "store", **options: Any) -> PyStorage:
        kind = PyStorage if request.param == "embedded" else Served
        storage = kind(tmp_path / name, **{**QUIET, **options})
        opened.append(storage)
        return storage

    yield open_
    for storage in opened:
        storage.close()


@pytest.fixture
def storage(open_storage: OpenStorage) -> PyStorage:
    return open_storage()
