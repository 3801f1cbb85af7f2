"""The stores of the API's tests, over every transport."""

import pytest

from tests.api.conftest import open_storage, pytest_collection_modifyitems, storage

__all__ = ["open_storage", "pytest_collection_modifyitems", "storage"]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors go quickest on one thread, and tests run beside others."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
