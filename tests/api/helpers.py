"""What tests of the public API build and send."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rockbed import Connection, PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.client.embedded import Embedded
from rockbed.reports import ExportReport, ImportReport
from rockbed.server.daemon import Daemon
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.engine import Engine
from rockbed.storage import hot_kernels
from rockbed.types import F32, I64
from tests.crash_image import crash_image

QUIET: dict[str, Any] = {"write_back_interval": 3600.0, "sweep_rows_s": 0}
"""Options of a store that writes back and sweeps only when a test says so."""

SMALL = 1 << 17
"""A memory budget of some hundred rows: most of a test's rows are on disk."""


@dataclass
class Clock:
    """Seconds since 1970 that pass when the test says so."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Served(PyStorage):
    """A storage on a server of its own in this process, over a Unix socket; its end is the server's too."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.inner = PyStorage(directory, **options)
        try:
            # sockets have short names
            self._folder = tempfile.TemporaryDirectory(prefix="rockbed-")
            config = ServerConfig(
                listen=f"unix:{self._folder.name}/s", checkpoints=directory.parent, exports=directory.parent
            )
            self.daemon = Daemon(engine_of(self.inner), config)
            super().__init__(self.daemon.target, connection=Connection(retry_s=5))
        except BaseException:
            self.inner.close()
            raise

    @property
    def path(self) -> Path:
        return self.inner.path

    def dump(self, path: Any, condition: Any = None) -> int:
        return super().dump(Path(path).name, condition)

    def export(self, path: Any, **options: Any) -> ExportReport:
        if options.get("since") is not None:
            options["since"] = Path(options["since"]).name
        return super().export(Path(path).name, **options)

    def remove_export(self, path: Any, report: ExportReport) -> None:
        super().remove_export(Path(path).name, report)

    def import_(self, path: Any, **options: Any) -> ImportReport:
        return super().import_(Path(path).name, **options)

    def checkpoint(self, path: Any) -> None:
        super().checkpoint(Path(path).name)

    def restore_from(self, path: Any) -> str:
        return str(self.path.parent / super().restore_from(Path(path).name))

    def close(self) -> None:
        super().close()
        self.daemon.stop(0)
        self.daemon.engine.close()
        self.inner.close()
        self._folder.cleanup()


def engine_of(storage: PyStorage) -> Engine:
    """The engine behind a storage, for tests that look or reach into it."""
    if isinstance(storage, Served):
        return storage.daemon.engine
    backend = storage.backend
    assert isinstance(backend, Embedded)
    return backend.engine


OpenStorage = Callable[..., PyStorage]
"""(name of the store = "store", **options of PyStorage) -> an open storage, closed at the end of the test."""


def sgd(lr: float = 0.5) -> PyOptimizer:
    return PyOptimizer(name="sgd", gamma=lr)


def adagrad(lr: float = 0.5) -> PyOptimizer:
    return PyOptimizer(name="adagrad", gamma=lr)


def zeros() -> PyInitializer:
    return PyInitializer(name="zeros")


def uniform(bound: float = 1.0) -> PyInitializer:
    return PyInitializer(name="random_uniform", min=-bound, max=bound)


def embedding(
    storage: PyStorage,
    dim: int = 4,
    group: int | str = 0,
    *,
    optimizer: PyOptimizer | None = None,
    initializer: PyInitializer | None = None,
    **options: Any,
) -> PyEmbedding:
    """A group with SGD at 0.5 and rows that begin as zeros, unless said otherwise."""
    return PyEmbedding(storage, optimizer or sgd(), initializer or zeros(), dim, group, **options)


def keys_of(*keys: int) -> I64:
    return np.array(keys, np.int64)


def ones(n: int, dim: int = 4, value: float = 1.0) -> F32:
    return np.full((n, dim), value, np.float32)


def push_in_pieces(rows: PyEmbedding, keys: I64, value: float = 1.0, *, size: int = 200) -> None:
    """Push the same gradient for every key, in pushes that fit into a small memory budget."""
    for start in range(0, keys.size, size):
        part = keys[start : start + size]
        rows.apply_gradients(part, ones(part.size, rows.dim, value))


def as_after_kill(storage: PyStorage, to: Path) -> Path:
    """A copy of the files of an open store: what another process would find if this one were killed now."""
    return crash_image(storage.path, to)


def assert_sound(storage: PyStorage) -> None:
    """check() finds nothing wrong, and what write-back relies on is true."""
    assert storage.check().problems == []
    if isinstance(storage, Served) or isinstance(storage.backend, Embedded):
        for group in list(engine_of(storage).groups.values()):
            flags = group.table.flags[: group.table.high].copy()  # of one moment: the store may be working
            changed = flags & (hot_kernels.DIRTY | hot_kernels.WRITING) != 0
            assert (flags[changed] & hot_kernels.TOUCHED != 0).all()


def run_python(script: str, *args: object, timeout_s: float = 60) -> "subprocess.CompletedProcess[str]":
    """Run a script in another process, with `np` and the names of rockbed that it may want imported."""
    head = (
        "import os, sys\nimport numpy as np\nfrom rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage\n"
    )
    command = [sys.executable, "-c", head + script, *map(str, args)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=root)
