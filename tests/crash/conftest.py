"""A server in a process of its own."""

from collections.abc import Iterator

import pytest

from tests.crash.serving import Process


@pytest.fixture
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("serve"))
    yield process
    process.kill()
