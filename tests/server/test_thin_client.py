"""A client of a server needs numpy and gRPC: neither numba nor RocksDB."""

import subprocess
import sys
from pathlib import Path

from tests.server.served import Server
from tests.source_tree import ROOT

SCRIPT = """
import sys
for name in ("numba", "llvmlite", "rocksdict"):
    sys.modules[name] = None  # importing it raises
import numpy as np
import rockbed
with rockbed.PyStorage(sys.argv[1]) as storage:
    optimizer = rockbed.PyOptimizer(name="adam", gamma=0.5, schedule={"name": "cosine_decay", "decay_steps": 10})
    initializer = rockbed.PyInitializer(name="random_uniform", min=-1, max=1)
    rows = rockbed.PyEmbedding(storage, optimizer, initializer, 4, 1, admission={"name": "min_count", "count": 1})
    keys = np.arange(10)
    first = rows.lookup(keys)
    rows.apply_gradients(keys, np.ones((10, 4), np.float32))
    assert (rows.lookup_async(keys, train=False).result() < first).all()
    assert rows.prefetch(keys) == (10, 0)
    storage.put_rows(1, keys[:1], np.zeros((1, 4), np.float32))
    print(storage.get_rows(1, keys[:1]).explain(0))
    storage.checkpoint("monday"); storage.shrink(min_norm=1.0); storage.check(); storage.compact()
    print(sorted(storage.groups()), storage.stats()["rows"])
"""


def test_everything_works_where_neither_can_be_imported(server: Server, tmp_path: Path) -> None:
    target = server.start()
    done = subprocess.run([sys.executable, "-c", SCRIPT, target], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "present: 0 updates" in done.stdout
