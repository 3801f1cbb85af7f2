"""How long a push's journal entry takes: our files beside one RocksDB put of the same bytes.

python -m benchmarks.journal [--keys 65536] [--dim 16] [--repeats 31]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rocksdict

from rockbed.storage.entries import Kind, Section, push_parts
from rockbed.storage.journal import Journal


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    """Measure in turn, print medians."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--keys", type=int, default=65_536)
    options.add_argument("--dim", type=int, default=16)
    options.add_argument("--repeats", type=int, default=31)
    given = options.parse_args()
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 2**63, given.keys)
    section = Section(1, keys, np.zeros(keys.size, np.uint8), rng.standard_normal((keys.size, given.dim), np.float32))
    payload = b"".join(bytes(part) for part in push_parts(None, [section]))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        (Path(folder) / "journal").mkdir()
        journal = Journal(Path(folder) / "journal", fsync="never")
        journal.open_for_append(0)
        database = rocksdict.Rdict(f"{folder}/rocksdb", options=rocksdict.Options(raw_mode=True))
        took: dict[str, list[float]] = {"journal": [], "RocksDB put": []}
        for i in range(given.repeats + 1):
            ours = _seconds(lambda: journal.append(Kind.PUSH, 0, push_parts(None, [section])))
            theirs = _seconds(lambda i=i: database.put(i.to_bytes(8, "big"), payload))  # type: ignore[misc]
            if i:  # the first round compiles
                took["journal"].append(ours)
                took["RocksDB put"].append(theirs)
        journal.close()
        database.close()
    print(f"one entry of {len(payload) / 1e6:.2f} MB ({given.keys:,} keys of dim {given.dim}), {os.cpu_count()} cores")
    for name, seconds in took.items():
        print(
            f"{name:12} median {np.median(seconds) * 1e3:6.2f} ms, {given.keys / np.median(seconds) / 1e6:6.1f} M "
            "keys/s"
        )
    ratio = np.median(np.array(took["RocksDB put"]) / np.array(took["journal"]))
    print(f"ratio, median of the rounds: {ratio:.1f}")


if __name__ == "__main__":
    main()
