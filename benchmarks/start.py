"""What a start costs: `import rockbed`; and opening, looking up, pushing and closing, twice, with no compiled kernels
and with cached ones.

python -m benchmarks.start [--repeats 5]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

IMPORT = "import rockbed"
FIRST = """
import logging, sys, numpy as np, rockbed
logging.disable()
optimizer, initializer = rockbed.PyOptimizer(name="adagrad"), rockbed.PyInitializer(name="random_uniform")
keys = np.arange(1000)
for _ in range(2):  # a new store, and one that has rows on disk
    with rockbed.PyStorage(sys.argv[1]) as storage:
        rows = rockbed.PyEmbedding(storage, optimizer, initializer, 16)
        rows.apply_gradients(keys, rows.lookup(keys))
"""


def _seconds(code: str, cache: str) -> float:
    # timed inside, without the start of Python itself
    timed = f"import time; begin = time.perf_counter()\n{code}\nprint(time.perf_counter() - begin)"
    with tempfile.TemporaryDirectory() as store:
        done = subprocess.run(
            [sys.executable, "-c", timed, store],
            env={**os.environ, "NUMBA_CACHE_DIR": cache},
            check=True,
            capture_output=True,
            text=True,
        )
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    took: dict[str, list[float]] = {
        "import rockbed": [],
        "first use, kernels compiled": [],
        "first use, kernels cached": [],
    }
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            took["import rockbed"].append(_seconds(IMPORT, cache))
            took["first use, kernels compiled"].append(_seconds(FIRST, cache))
            took["first use, kernels cached"].append(_seconds(FIRST, cache))
    for name, seconds in took.items():
        print(f"{name:28} median {statistics.median(seconds):6.3f} s  ({min(seconds):.3f} to {max(seconds):.3f})")


if __name__ == "__main__":
    main()
