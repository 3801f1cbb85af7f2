"""Rockbed, served: `rockbed serve` in a process of its own, asked over the loopback by the same API.

As users have it: large messages lie in memory that client and server share.
"""

from collections.abc import Sequence

from benchmarks.contenders.base import Contender, Settings
from benchmarks.contenders.rockbed_contender import Rockbed, compile_kernels, memory_budget
from benchmarks.data import F32, Batch
from benchmarks.servers import rockbed_server
from rockbed import Connection, PyStorage


class Daemon(Rockbed):
    connection = Connection()

    def open(self, settings: Settings) -> None:
        compile_kernels(settings.directory.with_name("warm-up"))  # the server reads them from numba's cache
        self._server = rockbed_server(settings.directory, "--memory-budget", str(memory_budget(settings)))
        target, _ = self._server.address()
        self._use(PyStorage(target, connection=self.connection), settings)

    def train_step(self, batches: Sequence[Batch], grads: Sequence[F32]) -> None:
        tables = [self._tables[batch.table] for batch in batches]
        keys = [batch.keys for batch in batches]
        self._storage.lookup(list(zip(tables, keys, strict=True)))  # one call, as the push is
        self._storage.apply_gradients(list(zip(tables, keys, grads, strict=True)))

    def close(self) -> None:
        super().close()
        self._server.stop()


def make() -> Contender:
    return Daemon()
