"""The workers of a daemon, bound to so many cores, without clients: `python -m benchmarks.scaling_worker CORES`.

Threads take requests as bytes, have the service answer them, and serialize the answers, as gRPC's worker threads do.
Lines of JSON.
"""

import json
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import draw, gradients, run_of

ROWS, DIM = 1_000_000, 16
BATCHES = 16  # different requests of a thread
BUDGET = 1 << 30  # bytes: every row stays in memory


class _Context:
    """A call's context, as far as a call that does not fail needs one."""

    def invocation_metadata(self) -> tuple[()]:
        return ()


class Workers:
    """A store with all its rows in memory, and the service in front of it."""

    def __init__(self, directory: Path) -> None:
        from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
        from rockbed.server.limits import Limits
        from rockbed.server.service import EmbeddingService
        from rockbed.server.service_access import Access
        from rockbed.server.serving import Serving

        self.storage = PyStorage(directory, memory_budget=BUDGET)
        initializer = PyInitializer(name="random_uniform", min=-0.01, max=0.01)
        self._rows = PyEmbedding(self.storage, PyOptimizer(name="adagrad", gamma=0.01), initializer, DIM)
        for start in range(0, ROWS, 65_536):
            batch = run_of(start, min(ROWS, start + 65_536)).keys
            self._rows.lookup(batch)
            self._rows.apply_gradients(batch, np.zeros((batch.size, DIM), np.float32))
        engine = self.storage.backend.engine  # type: ignore[attr-defined]
        access = Access(None, ThreadPoolExecutor(1))
        self._service = EmbeddingService(Serving(engine), Limits(), access)

    def rate(self, what: str, keys: int, threads: int, seconds: float) -> float:
        """Keys a second that so many threads answer together. what: "lookup" or "apply"; keys: of a request."""
        asked = [self._requests(what, keys, thread) for thread in range(threads)]
        done = [0] * threads
        self._answer(what, asked[0][0])
        ready = threading.Barrier(threads + 1)

        def work(thread: int) -> None:
            ready.wait()
            while time.perf_counter() < end[0]:
                self._answer(what, asked[thread][done[thread] % BATCHES])
                done[thread] += 1

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        began = time.perf_counter()
        end = [began + seconds]
        ready.wait()
        for worker in workers:
            worker.join()
        return keys * sum(done) / (time.perf_counter() - began)

    def _requests(self, what: str, keys: int, thread: int) -> list[bytes]:
        from rockbed.messages import lookup_request, push_request
        from rockbed.requests import Gradients, Lookup, Request
        from rockbed.wire import FLOAT32
        from rockbed.wire_format import joined

        rng = np.random.default_rng([thread, keys])
        batches = [draw(ROWS, keys, False, rng).keys for _ in range(BATCHES)]
        if what == "lookup":
            out = np.empty((keys, DIM), np.float32)
            return [joined(lookup_request(Lookup(0, batch, out, 0), True, FLOAT32)) for batch in batches]
        grads = gradients(keys, DIM, rng)
        nobody = Request("", 0)  # such pushes may be repeated
        return [
            joined(push_request([Gradients(0, batch, grads, None)], [(batch, grads)], FLOAT32, nobody))
            for batch in batches
        ]

    def _answer(self, what: str, request: bytes) -> bytes:
        from rockbed.messages import push_response, read_lookup_request, read_push_request
        from rockbed.wire_format import joined

        context: Any = _Context()
        if what == "lookup":
            return joined(self._service.Lookup(read_lookup_request(request), context))
        answer = joined(self._service.ApplyGradients(read_push_request(request), context))
        assert answer == joined(push_response(applied=True))
        return answer


def main() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="rockbed-bench-") as folder:
        workers = Workers(Path(folder) / "store")
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                rate = workers.rate(asked["do"], asked["keys"], asked["threads"], asked["seconds"])
                answer: dict[str, Any] = {"rate": rate}
            except Exception as problem:
                answer = {"error": f"{type(problem).__name__}: {problem}"}
            print(json.dumps(answer), file=answers, flush=True)
        workers.storage.close()


if __name__ == "__main__":
    main()
