"""The first use of a kernel says that it is being compiled; a process that finds it in the cache says nothing.

In processes of their own, with a cache of their own (NUMBA_CACHE_DIR): this one has compiled what it needs.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.source_tree import ROOT

NOTICE = "rockbed: compiling CPU kernels for this machine"

# Counts what numba compiles of rockbed's, by numba's own events, and marks on stderr how far the script has come.
COUNTING = """
import sys
import numba
import numpy as np
from numba.core import event

class Counter(event.Listener):
    compiled = 0
    def on_start(self, event):
        self.compiled += event.data["dispatcher"].py_func.__module__.startswith("rockbed")
    def on_end(self, event):
        pass

counter = Counter()
event.register("numba:compile", counter)

def mark(word):
    print(word, file=sys.stderr, flush=True)
"""
ONE_ROW = """
from rockbed import PyInitializer, PyOptimizer

@numba.njit
def of_the_user(x):
    return x + 1

of_the_user(1)
mark("-- first call")
w = np.zeros(3, np.float32)
PyInitializer(name="ones").call(w)
mark("-- another kernel")
PyOptimizer(name="sgd", gamma=0.5).call(w, np.ones(3, np.float32))
mark("-- the same again")
PyOptimizer(name="sgd", gamma=0.5).call(w, np.ones(3, np.float32))
print(counter.compiled, w.tolist())
"""
STORE = """
from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
with PyStorage(sys.argv[1]) as storage:
    rows = PyEmbedding(storage, PyOptimizer(name="sgd", gamma=0.5), PyInitializer(name="ones"), 4)
    keys = np.arange(10)
    rows.lookup(keys)
    rows.apply_gradients(keys, np.ones((10, 4), np.float32))
    storage.flush()
    print(counter.compiled, rows.lookup(keys[:3], train=False)[:, 0].tolist())
"""


@dataclass
class Ran:
    """What one process compiled of rockbed's, its result, and what it wrote to stderr."""

    compiled: int
    result: list[float]
    said: str


def run(script: str, cache: Path, *arguments: object) -> Ran:
    command = [sys.executable, "-c", COUNTING + script, *map(str, arguments)]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    compiled, result = done.stdout.split(" ", 1)
    return Ran(int(compiled), json.loads(result), done.stderr)


def files_of(cache: Path) -> dict[str, int]:
    """Each file of the cache and when it was written."""
    return {str(file.relative_to(cache)): file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()}


def test_the_first_process_says_once_that_it_compiles_and_the_next_finds_the_kernels(tmp_path: Path) -> None:
    first = run(ONE_ROW, tmp_path)
    before, at_first, *later = first.said.split("-- ")
    assert before == ""  # neither the import says it nor a function of the user's
    assert at_first.count(NOTICE) == 1
    assert "cached" in at_first  # and that it is for once
    assert [part for part in later if NOTICE in part] == []
    assert first.compiled >= 2
    kept = files_of(tmp_path)
    assert kept

    second = run(ONE_ROW, tmp_path)
    assert second.result == first.result == [0.0, 0.0, 0.0]
    assert second.compiled == 0
    assert NOTICE not in second.said
    assert files_of(tmp_path) == kept


@pytest.mark.slow  # compiles the kernels of a store, some 20 s
def test_a_store_compiles_in_the_first_process_only(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = run(STORE, cache, tmp_path / "store")
    assert first.compiled > 5
    assert first.said.count(NOTICE) == 1
    again = run(STORE, cache, tmp_path / "another")  # the same calls in a new store
    assert again.result == first.result == [0.5, 0.5, 0.5]
    assert (again.compiled, again.said) == (0, "")
