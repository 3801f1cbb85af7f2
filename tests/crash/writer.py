"""The process that is killed: trains from where the store says it was, and reports on stdout what it does.

It is forked from one that has imported what it needs (`lives`), which takes longer than most lives.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from rockbed import Feature, FusedEmbedding, PyEmbedding, PyInitializer, PyOptimizer, PyStorage, Ragged
from rockbed.types import I64
from tests.crash.steps import (
    ADAGRAD,
    ADAM,
    ADMITTED,
    BAG,
    CHECKPOINT_EVERY,
    EXPIRING,
    FLUSH_EVERY,
    GLOBAL,
    GROUPS,
    MIN_COUNT,
    MISS,
    SHRINK_EVERY,
    SHRINK_MIN_COUNT,
    SHRUNK,
    TTL_S,
    Batch,
    batch,
    global_step,
)

CLIENT = "writer"
_PARAMETERS = {"sgd": {"gamma": 1.0}, "adagrad": ADAGRAD, "adam": ADAM}


@dataclass(frozen=True)
class Orders:
    """A life. busy: so little memory and journal that write-back, eviction and trimming go on all the time, with
    flushes, shrinks and checkpoints between; otherwise nothing is written back, and the journal has everything.

    now_s: the clock at the start. steps: after so many it closes the store; 0 = goes on until it is killed.
    """

    directory: str
    seed: int
    now_s: int
    busy: bool
    fsync: str = "never"
    steps: int = 0


def open_store(
    directory: Path, clock: Callable[[], float], *, busy: bool = False, fsync: str = "never"
) -> tuple[PyStorage, dict[int, PyEmbedding]]:
    """The store with all of its groups."""
    storage = PyStorage(
        directory,
        memory_budget=256 << 10 if busy else 64 << 20,
        fsync=fsync,
        fsync_interval=0.1,
        write_back_interval=0.02 if busy else 1e6,
        journal_bytes_max=1 << 20 if busy else 1 << 30,
        clock=clock,
    )
    embeddings = {}
    for group, shape in GROUPS.items():
        low, high = shape.first
        uniform = PyInitializer(name="random_uniform", min=low, max=high)
        embeddings[group] = PyEmbedding(
            storage,
            PyOptimizer({"name": shape.optimizer, **_PARAMETERS[shape.optimizer]}),
            PyInitializer(name="constant", value=low) if low == high else uniform,
            shape.dim,
            group,
            ttl=TTL_S if group == EXPIRING else None,
            step="global" if group == GLOBAL else "row",
            admission={"name": "min_count", "count": MIN_COUNT} if group == ADMITTED else None,
            miss_value=MISS,
        )
    return storage, embeddings


def report(text: str) -> None:
    """One line, written at once: it says what begins now, or what has been acknowledged."""
    os.write(1, f"{text}\n".encode())


def train(
    storage: PyStorage, embeddings: dict[int, PyEmbedding], orders: Orders, set_clock: Callable[[int], None]
) -> None:
    """Steps until killed, or as many as ordered."""
    now_s, first = orders.now_s, storage.last_request(CLIENT) + 1
    step = first
    while not orders.steps or step < first + orders.steps:
        made = batch(orders.seed, step)
        now_s += made.seconds
        report(f"looking {step} {now_s}")
        set_clock(now_s)
        look_up(embeddings, made)
        report(f"pushing {step}")
        if made.has(GLOBAL):
            embeddings[GLOBAL].global_step = global_step(step)
        push(storage, embeddings, made, step)
        report(f"pushed {step}")
        if orders.busy:
            care(storage, step, Path(orders.directory))
        step += 1


def look_up(embeddings: dict[int, PyEmbedding], made: Batch) -> None:
    """A step's training lookups, in one call where it is fused."""
    if made.fused and made.looked:
        fused(embeddings, [group for group, _ in made.looked]).lookup(bags(made.looked))
    else:
        for group, keys in made.looked:
            embeddings[group].lookup(keys)


def push(storage: PyStorage, embeddings: dict[int, PyEmbedding], made: Batch, step: int) -> None:
    """A step's push: of a kept batch, of a batch, or of keys and gradients."""
    if not made.fused:
        items = [(embeddings[group], keys, grads) for group, keys, grads in made.pushed]
        storage.apply_gradients(items, request=(CLIENT, step))
        return
    pooling = fused(embeddings, [group for group, _, _ in made.pushed])
    shares = bags([(group, keys) for group, keys, _ in made.pushed])
    pooled = np.zeros((len(next(iter(shares.values()))), pooling.dim), np.float32)
    for group, _, grads in made.pushed:
        each = grads[::BAG]
        pooled[: len(each), pooling.columns[str(group)]] = each
    of = pooling.lookup(shares, train=False, keep=True) if step % 4 else shares
    pooling.apply_gradients(of, pooled, request=(CLIENT, step))


def fused(embeddings: dict[int, PyEmbedding], groups: list[int]) -> FusedEmbedding:
    """A feature for each group, which is its name."""
    return FusedEmbedding([Feature(str(each), embeddings[each], "sum", prune_negative=False) for each in groups])


def bags(shares: list[tuple[int, I64]]) -> dict[str, Ragged]:
    """Each group's keys in bags of BAG."""
    ends = np.arange(0, max(keys.size for _, keys in shares) + BAG, BAG)
    return {str(group): Ragged(keys, np.minimum(ends, keys.size)) for group, keys in shares}


def care(storage: PyStorage, step: int, directory: Path) -> None:
    """What is due after a step."""
    if step % FLUSH_EVERY == 0:
        report("flushing")
        storage.flush()
        report("flushed")
    if step % SHRINK_EVERY == 0:
        report("shrinking")
        storage.shrink(group=SHRUNK, min_count=SHRINK_MIN_COUNT)
        report("shrunk")
    if step % CHECKPOINT_EVERY == 0:
        report(f"checkpointing {step}")
        storage.checkpoint(directory.with_name(f"checkpoint-{step}"))
        report(f"checkpointed {step}")


def live(given: "Connection[None, Orders]", said: "Connection[bytes, None]") -> None:
    """Wait for orders, open, train, close. said: becomes stdout."""
    os.dup2(said.fileno(), 1)
    said.close()
    orders = given.recv()
    clock = [orders.now_s]
    report("opening")
    storage, embeddings = open_store(Path(orders.directory), lambda: clock[0], busy=orders.busy, fsync=orders.fsync)
    report("open")
    train(storage, embeddings, orders, lambda now_s: clock.__setitem__(0, now_s))
    report("closing")
    storage.close()
    report("closed")
