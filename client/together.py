"""What callers send for several embeddings of a storage at once, checked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rockbed.client.arrays import checked_keys
from rockbed.errors import InvalidConfig, WrongDtype
from rockbed.requests import Gradients, Lookup

if TYPE_CHECKING:
    from rockbed.client.embedding import PyEmbedding
    from rockbed.client.storage import PyStorage


def checked_lookups(storage: "PyStorage", items: Sequence[Any]) -> list[Lookup]:
    """What is asked by each (PyEmbedding, keys), with a new array for its rows. Raises WrongDtype, InvalidConfig."""
    lookups = []
    for item in items:
        if not isinstance(item, tuple | list) or len(item) != 2 or not hasattr(item[0], "checked"):
            raise WrongDtype(f"a lookup takes a list of (PyEmbedding, keys), not of {type(item).__name__}")
        embedding, keys = item
        _must_be_of(storage, embedding)
        sent = checked_keys(keys)
        out = np.empty((sent.size, embedding.dim), np.float32)
        lookups.append(Lookup(embedding.group, sent, out, embedding.generation))
    return lookups


def checked_push(storage: "PyStorage", items: Sequence[Any]) -> list[Gradients]:
    """The shares of a push of (PyEmbedding, keys, gradients). Raises WrongDtype, WrongShape, InvalidConfig."""
    shares = []
    for item in items:
        if not isinstance(item, tuple | list) or len(item) != 3 or not hasattr(item[0], "checked"):
            raise WrongDtype(f"a push takes a list of (PyEmbedding, keys, gradients), not of {type(item).__name__}")
        embedding, keys, gradients = item
        _must_be_of(storage, embedding)
        shares.append(embedding.checked(keys, gradients))
    return shares


def _must_be_of(storage: "PyStorage", embedding: "PyEmbedding") -> None:
    if embedding.storage is not storage:
        raise InvalidConfig(f"{embedding!r} belongs to another storage than {storage!r}")
