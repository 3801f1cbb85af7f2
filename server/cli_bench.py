"""`rockbed bench`: a quick look at how fast a store answers here and now."""

import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rockbed.errors import RockbedError, UnknownGroup
from rockbed.server.cli_options import AsJson
from rockbed.server.cli_output import console, print_json, progress, table
from rockbed.server.cli_store import Store

if TYPE_CHECKING:
    import numpy as np

    from rockbed.client.embedding import PyEmbedding
    from rockbed.client.storage import PyStorage

_SMALL = 16  # keys of a small call
_NOTE = "A quick look, from this machine at this moment: benchmarks/ has the comparison that figures are taken from."


def bench(
    store: Store,
    dim: Annotated[int, typer.Option(min=1, max=4096, help="Weights a row.")] = 16,
    keys: Annotated[int, typer.Option(min=1, help="Rows that there are to look up and push to.")] = 100_000,
    batch: Annotated[int, typer.Option(min=1, help="Keys a call.")] = 4_096,
    seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="Of each of the four measurements.")] = 3.0,
    threads: Annotated[int, typer.Option(min=1, max=256, help="That call at a time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """A quick measurement, on a group of its own that is dropped in the end: keys/s, and latency of small calls.

    Example: rockbed bench --server 127.0.0.1:7400 --threads 4
    """
    with store.open(create=True) as storage, _scratch(storage, dim) as rows:
        found = _measured(rows, keys=keys, batch=batch, seconds=seconds, threads=threads)
    if as_json:
        print_json({"dim": dim, "keys": keys, "batch": batch, "seconds": seconds, "threads": threads, **found})
        return
    rates = [(name, found[name + "_keys_s"]) for name in ("lookup", "push")]
    console().print(table((f"of {batch:,} keys, dim {dim}, {threads} threads", "keys/s"), rates))
    latencies = [(name, *found[f"small_{name}_ms"].values()) for name in ("lookup", "push")]
    console().print(table((f"of {_SMALL} keys, dim {dim}, 1 thread", "p50 ms", "p99 ms"), latencies))
    typer.echo(_NOTE)


@contextmanager
def _scratch(storage: "PyStorage", dim: int) -> "Iterator[PyEmbedding]":
    """A group of its own, which is dropped at the end of the block however that comes."""
    from rockbed.client.embedding import PyEmbedding
    from rockbed.client.initializer import PyInitializer
    from rockbed.client.optimizer import PyOptimizer

    taken = set(storage.groups())
    number = secrets.choice([number for number in range(1 << 16) if number not in taken])
    # who may create a group may not be allowed to drop it: better known before
    with suppress(UnknownGroup):
        storage.shrink(group=number, dry_run=True)
    rows = PyEmbedding(
        storage,
        PyOptimizer(name="adagrad", gamma=0.05),
        PyInitializer(name="random_uniform", min=-0.01, max=0.01),
        dim,
        number,
        seed=secrets.randbits(64),  # whoever has created the same group meanwhile has another one: GroupConflict
    )
    try:
        yield rows
    finally:
        try:
            storage.drop_group(number)
        except RockbedError as error:
            raise type(error)(f"{error} (the group {number} of the measurement is still there: drop it)") from None


def _measured(rows: "PyEmbedding", *, keys: int, batch: int, seconds: float, threads: int) -> dict[str, Any]:
    import numpy as np

    gradients = np.full((batch, rows.dim), 0.01, np.float32)

    def lookup(random: "np.random.Generator", n: int) -> None:
        rows.lookup(random.integers(0, keys, n))

    def push(random: "np.random.Generator", n: int) -> None:
        rows.apply_gradients(random.integers(0, keys, n), gradients[:n])

    with progress("creating rows") as tell:
        for start in range(0, keys, batch):
            rows.lookup(np.arange(start, min(keys, start + batch)))
            tell(min(keys, start + batch), keys)
        push(np.random.default_rng(), min(batch, keys))  # compiles what a push needs
    found: dict[str, Any] = {}
    for name, call in (("lookup", lookup), ("push", push)):
        with progress(f"measuring {name}"):
            found[f"{name}_keys_s"] = _keys_s(call, batch, seconds, threads)
            found[f"small_{name}_ms"] = _latencies_ms(call, min(_SMALL, batch), seconds)
    return found


Call = Callable[["np.random.Generator", int], None]


def _keys_s(call: Call, batch: int, seconds: float, threads: int) -> float:
    """Keys a second through calls of `batch` keys, from several threads at a time."""
    import numpy as np

    began = time.perf_counter()
    until = began + seconds
    stopped = False

    def work() -> int:
        random, calls = np.random.default_rng(), 0
        while not stopped and (calls == 0 or time.perf_counter() < until):
            call(random, batch)
            calls += 1
        return calls

    with ThreadPoolExecutor(threads) as pool:
        try:
            working = [pool.submit(work) for _ in range(threads)]
            wait(working, return_when=FIRST_EXCEPTION)
        finally:
            stopped = True  # Ctrl-C, also while threads are being started, or an error in one of them
        calls = sum(each.result() for each in working)
    return calls * batch / (time.perf_counter() - began)


def _latencies_ms(call: Call, keys: int, seconds: float) -> dict[str, float]:
    import numpy as np

    random = np.random.default_rng()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        began = time.perf_counter()
        call(random, keys)
        taken.append(1000 * (time.perf_counter() - began))
    p50, p99 = np.percentile(taken, [50, 99]).tolist()
    return {"p50": p50, "p99": p99}
