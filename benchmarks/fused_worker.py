"""A contender of benchmarks.fused in a process of its own: `python -m benchmarks.fused_worker NAME`, lines of JSON."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

BATCHES = 8
LEARNING_RATE = 0.01


class Contender(Protocol):
    """Numbers are those of benchmarks.fused."""

    def call(self, what: str, how: str) -> Callable[[int], object]:
        """What is timed: a call for batch 0..BATCHES-1. what: "lookup", "train" or "served"; how: of CONTENDERS,
        or of SERVED."""

    def settle(self) -> None:
        """Do what was put off until now."""


def numbers(sizes: dict[str, Any]) -> list[list[Any]]:
    """The same rows for every contender: of each batch, for each feature, int64[samples * ids]."""
    random = np.random.default_rng(7)
    n = sizes["samples"] * sizes["ids"]
    return [[random.integers(0, sizes["rows"], n) for _ in range(sizes["features"])] for _ in range(BATCHES)]


def gradients(sizes: dict[str, Any]) -> Any:
    """float32[samples, features * dim]."""
    shape = sizes["samples"], sizes["features"] * sizes["dim"]
    return np.random.default_rng(8).normal(0, 0.01, shape).astype(np.float32)


class Fbgemm:
    """FBGEMM's table-batched embedding on the CPU, as TorchRec uses it."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        import torch
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        rules = {"rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "adagrad": EmbOptimType.EXACT_ADAGRAD}
        table = (sizes["rows"], sizes["dim"], EmbeddingLocation.HOST, ComputeDevice.CPU)
        self._torch = torch
        self._tables = SplitTableBatchedEmbeddingBagsCodegen(
            [table] * sizes["features"],
            optimizer=rules[sizes["optimizer"]],
            learning_rate=LEARNING_RATE,
            pooling_mode=PoolingMode.SUM,
        )
        self._batches = [torch.from_numpy(np.concatenate(batch)) for batch in numbers(sizes)]
        self._offsets = torch.arange(0, self._batches[0].numel() + 1, sizes["ids"])
        self._gradients = torch.from_numpy(gradients(sizes))

    def call(self, what: str, how: str) -> Callable[[int], object]:
        return {"lookup": self._lookup, "train": self._train}[what]

    def settle(self) -> None:
        pass

    def _lookup(self, i: int) -> object:
        with self._torch.no_grad():
            return self._tables(self._batches[i], self._offsets)

    def _train(self, i: int) -> None:
        self._tables(self._batches[i], self._offsets).backward(self._gradients)


class Rockbed:
    """Both ways: fused, and feature by feature."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        from benchmarks.fused_tables import Tables, fill
        from benchmarks.servers import rockbed_server

        folder = Path(sizes["folder"])
        rows = np.random.default_rng(9).integers(0, 2**62, (sizes["features"], sizes["rows"]))
        keys = [[ids[at] for ids, at in zip(rows, batch, strict=True)] for batch in numbers(sizes)]
        fill(folder / "served", sizes, rows)
        self._server = rockbed_server(folder / "served", "--memory-budget", str(4 << 30))
        self._address, _ = self._server.address()
        fill(folder / "local", sizes, rows)
        self._local = Tables(str(folder / "local"), sizes, keys, gradients(sizes))
        self._served = Tables(self._address, sizes, keys, gradients(sizes))
        for tables in (self._local, self._served):
            tables.warm_up()

    def call(self, what: str, how: str) -> Callable[[int], object]:
        if what == "served":
            return self._served.step(how)
        return getattr(self._local, f"{how}_{what}")  # type: ignore[no-any-return]

    def settle(self) -> None:
        for tables in (self._local, self._served):
            tables.storage.compact()  # which writes back first

    def travelled(self, how: str) -> int:
        """Bytes of one train step, both ways, where no memory is shared."""
        from benchmarks.counting import Counting
        from rockbed import Connection

        with Counting(self._address) as counting:
            through = self._served.by(counting.address, Connection(shared_memory=False))
            step = through.step(how)
            step(0)  # with what only the first call needs
            before = counting.bytes
            step(1)
            after = counting.bytes
            through.storage.close()
        return after - before

    def close(self) -> None:
        self._local.storage.close()
        self._served.storage.close()
        self._server.stop()


def timed(call: Callable[[int], object], seconds: float, average: Callable[[list[float]], Any]) -> float:
    """The average seconds of a call."""
    taken: list[float] = []
    call(0)
    began = time.perf_counter()
    while not taken or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call(len(taken) % BATCHES)
        taken.append(time.perf_counter() - start)
    return float(average(taken))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print: only the answers may go to the real standard output
    contender: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if command["do"] == "open":
                contender = {"fbgemm": Fbgemm, "rockbed": Rockbed}[sys.argv[1]](command)
            elif command["do"] == "bytes":
                answer["bytes"] = contender.travelled(command["how"])
            elif command["do"] == "settle":
                contender.settle()
            elif command["do"] == "close":
                contender.close()
            else:
                average = np.median if command["do"] == "lookup" else np.mean
                answer["taken"] = timed(contender.call(command["do"], command["how"]), command["seconds"], average)
        except Exception as problem:
            answer["error"] = f"{type(problem).__name__}: {problem}"
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
