"""The store that an example of this folder works on."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rockbed import PyStorage


@contextmanager
def opened(arguments: Sequence[str]) -> Iterator[PyStorage]:
    """The store that the command line names, a directory or grpc://HOST:PORT; without one a temporary directory."""
    folder = tempfile.TemporaryDirectory(prefix="rockbed-seed-")
    with folder as path, PyStorage(arguments[0] if arguments else path) as storage:
        yield storage
