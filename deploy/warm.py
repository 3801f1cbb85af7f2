"""Compiles the kernels that `rockbed serve` runs, so that no server has to wait for them: `python warm.py`.

numba keeps them in NUMBA_CACHE_DIR. A small store is served to a client in this process with every optimizer,
initializer and admission rule, because a kernel is compiled for the types of its arguments: going through the server
gives it those that the server will use.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rockbed import (
    AdaptiveEmbedding,
    BloomFrequency,
    Feature,
    Frequency,
    FusedEmbedding,
    PyEmbedding,
    PyInitializer,
    PyOptimizer,
    PyStorage,
    Ragged,
)
from rockbed.config import StoreConfig
from rockbed.optimizers.base import optimizer_names
from rockbed.server.daemon import Daemon
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.engine import Engine

KEYS = np.arange(2_000)
NEVER_SEEN = KEYS + KEYS.size
DIM = 8
# Rows of few groups fit into it, so that some are written back, evicted and read from disk, and groups have to shrink.
MEMORY_BUDGET = 1 << 20  # bytes
UNIFORM = {"name": "random_uniform", "min": -0.01, "max": 0.01}
OTHER_INITIALIZERS: list[dict[str, Any]] = [{"name": "zeros"}, {"name": "random_normal"}, {"name": "truncate_normal"}]
# Options of a group that have kernels of their own.
OPTIONS: list[dict[str, Any]] = [
    {"admission": {"name": "min_count", "count": 2, "keys_max": KEYS.size // 2}},  # forgets keys
    {"admission": {"name": "counting_bloom", "count": 2, "capacity": 10_000}},
    {"admission": {"name": "probability", "p": 0.5}},
    {"clip_norm": 1.0, "weight_min": -1.0, "weight_max": 1.0, "not_finite": "skip_row"},
    {"duplicates": "sequential", "refresh": "lookup", "ttl": 3600.0},
]


def groups() -> list[dict[str, Any]]:
    """Arguments of PyEmbedding, one for each group."""
    optimizers = [{"name": name} for name in optimizer_names()] + [{"name": "rmsprop", "momentum": 0.9}]
    made = [{"optimizer": optimizer, "initializer": UNIFORM} for optimizer in optimizers]
    made += [{"optimizer": {"name": "sgd"}, "initializer": initializer} for initializer in OTHER_INITIALIZERS]
    made += [{"optimizer": {"name": "sgd"}, "initializer": UNIFORM, **options} for options in OPTIONS]
    return made


def train(storage: PyStorage) -> None:
    """Open every group, look up, push, and ask for what operators ask for."""
    gradients = np.ones((KEYS.size, DIM), np.float32)
    opened = []
    for number, given in enumerate(groups()):
        rules = {"optimizer": PyOptimizer(given["optimizer"]), "initializer": PyInitializer(given["initializer"])}
        rows = PyEmbedding(storage, **{**given, **rules}, dimension=DIM, group=number)
        opened.append(rows)
        for _ in range(2):  # an admission rule gives a row at the second lookup
            rows.lookup(KEYS)
        gradients[0] = np.nan if given.get("not_finite") == "skip_row" else 1
        rows.apply_gradients(KEYS.repeat(2), gradients.repeat(2, axis=0))
        rows.lookup(KEYS, train=False)
        storage.get_rows(number, NEVER_SEEN)
    fused(opened[0], opened[-1])
    for threshold in (Frequency, BloomFrequency):
        adaptive(storage, threshold)
    storage.put_rows(0, KEYS[:10], gradients[:10])
    storage.shrink(group=0, min_count=1)  # removes those ten
    storage.flush()
    storage.check()


def adaptive(storage: PyStorage, counting: type[Frequency] | type[BloomFrequency]) -> None:
    """Have ids become frequent, and stop being so. Their rows are evicted and read again, as those of `train` are."""
    rules = PyOptimizer(name="adagrad"), PyInitializer(UNIFORM)
    threshold = counting(enter=2, half_life=4 * KEYS.size)
    rows = AdaptiveEmbedding(storage, *rules, DIM, f"adaptive/{counting.name}", KEYS.size // 10, threshold=threshold)
    for _ in range(4):
        found = rows.lookup(KEYS)
        found.apply_gradients(np.ones_like(found.rows))
    rows.lookup(NEVER_SEEN, train=False)
    rows.drop_returned()
    rows.report()


def fused(summed: PyEmbedding, sequential: PyEmbedding) -> None:
    """Look up and push bags of each kind, twenty keys long. sequential: of a group whose duplicates are."""
    features = [
        Feature("plain", summed, "mean"),
        Feature("limited", summed, "sqrtn", max_norm=1e-3, default_key=1),
        Feature("sequence", summed, None),
        Feature("in turn", sequential, "sum"),
    ]
    ends = np.arange(0, KEYS.size + 1, 20)
    weighted = Ragged(KEYS - 5, ends, np.full(KEYS.size, 0.5, np.float32))
    plain = Ragged(KEYS, ends)
    for names in (("plain",), ("plain", "limited", "sequence"), ("in turn",)):
        batch = {name: weighted if name == "limited" else plain for name in names}
        together = FusedEmbedding([each for each in features if each.name in names])
        out = together.lookup(batch)
        together.apply_gradients(out, np.ones_like(out.pooled), out.sequences)


def main() -> None:
    """Serve a new store, then serve it again: opening one that has rows runs other kernels."""
    logging.getLogger("rockbed").setLevel(logging.ERROR)  # that kernels are compiled is the point here
    with tempfile.TemporaryDirectory() as folder:
        config = ServerConfig(listen=f"unix:{folder}/socket")
        for _ in range(2):
            engine = Engine(Path(folder) / "store", StoreConfig(memory_budget=MEMORY_BUDGET))
            try:
                daemon = Daemon(engine, config)
                try:
                    with PyStorage(daemon.target) as storage:
                        train(storage)
                finally:
                    daemon.stop()
            finally:
                engine.close()


if __name__ == "__main__":
    main()
