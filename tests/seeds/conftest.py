"""The stores of the API's tests, over every transport."""

from tests.api.conftest import clock, open_storage, pytest_collection_modifyitems, storage

__all__ = ["clock", "open_storage", "pytest_collection_modifyitems", "storage"]
