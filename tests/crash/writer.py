"""The process that is killed: trains from where the store says it was, and reports each acknowledged step on stdout.

python -m tests.crash.writer DIRECTORY SEED FSYNC STEPS
"""

import os
import sys
from pathlib import Path

from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from tests.crash.steps import CHECKPOINT_EVERY, DIMS, EXACT, FIRST, RATE, SHRINK_EVERY, SHRINK_MIN_COUNT, SHRUNK, pushes

CLIENT = "writer"


def open_store(directory: Path, fsync: str = "never") -> tuple[PyStorage, dict[int, PyEmbedding]]:
    """A store so small that write-back, ingestion, trimming and eviction go on all the time."""
    storage = PyStorage(
        directory, memory_budget=128 << 10, fsync=fsync, write_back_interval=0.02, journal_bytes_max=1 << 20
    )
    embeddings = {}
    for group, dim in DIMS.items():
        exact = group in (EXACT, SHRUNK)
        optimizer = PyOptimizer(name="sgd", gamma=1.0) if exact else PyOptimizer(name="adagrad", gamma=RATE)
        initializer = PyInitializer(name="constant", value=FIRST[group])
        embeddings[group] = PyEmbedding(storage, optimizer, initializer, dim, group)
    return storage, embeddings


def report(text: str) -> None:
    """One line, written at once: what was reported was acknowledged."""
    os.write(1, f"{text}\n".encode())


def main() -> None:
    """Train until killed, or for STEPS steps; then close."""
    directory, seed, fsync, steps = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    storage, embeddings = open_store(directory, fsync)
    report("open")
    first = storage.last_request(CLIENT) + 1
    for step in range(first, first + steps):
        items = pushes(seed, step)
        for group, keys, _ in items:
            if step % 3 == 0:
                embeddings[group].lookup(keys, train=False)
        storage.apply_gradients([(embeddings[g], keys, grads) for g, keys, grads in items], request=(CLIENT, step))
        report(f"pushed {step}")
        if step % SHRINK_EVERY == 0:
            report("shrinking")
            storage.shrink(group=SHRUNK, min_count=SHRINK_MIN_COUNT)
            report("shrunk")
        if step % CHECKPOINT_EVERY == 0:
            storage.checkpoint(directory.with_name(f"checkpoint-{step}"))
    report("closing")
    storage.close()
    report("closed")


if __name__ == "__main__":
    main()
