"""One model with one changed import: damo-embedding's own package, and Rockbed's module of its names, on the same data.

`python -m benchmarks.predecessor` trains a DeepFM on real flights with each in a process of its own, several seeds, and
prints the held-out AUC and the time of a step.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.environments import ROOT, Unavailable, python_for
from examples.flights_data import Split, read_flights, split
from examples.fm import auc

MODULES = {"damo-embedding 1.1.12": ("damo-torch", "damo_embedding"), "rockbed": ("", "rockbed.compat.damo_embedding")}


def trained(python: Path, module: str, data: Path, seed: int) -> tuple[float, float]:
    """(held-out AUC, median seconds of a step) of one process."""
    with tempfile.TemporaryDirectory(prefix="rockbed-predecessor-") as folder:
        command = [str(python), "-m", "benchmarks.predecessor_worker", module, str(data), str(seed)]
        environment = {"PYTHONPATH": str(ROOT), "PATH": f"{python.parent}:/usr/bin:/bin", "OMP_PROC_BIND": "true"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"{module}: {done.stderr.strip().splitlines()[-1:]}")
        with np.load(Path(folder) / "result.npz") as result, np.load(data) as arrays:
            return auc(result["scores"], arrays["test_labels"]), float(np.median(result["seconds"]))


def save(data: Split, path: Path) -> None:
    """For processes without the package of the flights."""
    # key 0 is padding to damo-embedding, and keys are hashes: none is 0
    np.savez(
        path,
        train_keys=data.train_keys,
        train_labels=data.train_labels,
        test_keys=data.test_keys,
        test_labels=data.test_labels,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predecessor", description=__doc__)
    parser.add_argument("--flights", type=int, default=60_000, metavar="ROWS", help="taken evenly (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of the network's weights (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rockbed-predecessor-") as folder:
        data = Path(folder) / "data.npz"
        save(split(read_flights(options.flights), 0), data)
        for name, (environment, module) in MODULES.items():
            try:
                python = python_for(environment) if environment else Path(sys.executable)
                found = [trained(python, module, data, seed) for seed in range(options.seeds)]
            except Unavailable as problem:
                print(f"without {name}: {problem}")
                continue
            aucs, seconds = zip(*found, strict=True)
            print(
                f"{name:22} held-out AUC {statistics.mean(aucs):.5f} ({min(aucs):.5f} to {max(aucs):.5f}); "
                f"{1e3 * statistics.median(seconds):.1f} ms a step"
            )


if __name__ == "__main__":
    main()
