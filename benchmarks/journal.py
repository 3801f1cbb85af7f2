"""How long a push's journal entry takes: in new files, in files used again, and as one RocksDB put of the same bytes.

python -m benchmarks.journal [--keys 65536] [--dim 16] [--repeats 51]
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


def _journal(directory: Path) -> Journal:
    directory.mkdir()
    journal = Journal(directory, fsync="never")
    journal.open_for_append(0)
    return journal


def main() -> None:
    """Measure in turn, print medians."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--keys", type=int, default=65_536)
    options.add_argument("--dim", type=int, default=16)
    options.add_argument("--repeats", type=int, default=51)
    given = options.parse_args()
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 2**63, given.keys)
    section = Section(1, keys, np.zeros(keys.size, np.uint8), rng.standard_normal((keys.size, given.dim), np.float32))
    payload = b"".join(bytes(part) for part in push_parts(None, [section]))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        new, again = (_journal(Path(folder) / name) for name in ("new", "again"))
        database = rocksdict.Rdict(f"{folder}/rocksdb", options=rocksdict.Options(raw_mode=True))

        def append(journal: Journal) -> int:
            return journal.append(Kind.PUSH, 0, push_parts(None, [section]))

        for _ in range(3):  # until every file has been full once, as in a store that is busy for some seconds
            while len(again.segments) < 4:
                append(again)
            again.trim(again.last_lsn)
        contenders: dict[str, Callable[[int], object]] = {
            "new files": lambda _: append(new),
            "files used again": lambda _: append(again),
            "RocksDB put": lambda i: database.put(i.to_bytes(8, "big"), payload),
        }
        took: dict[str, list[float]] = {name: [] for name in contenders}
        for i in range(given.repeats):
            for name, call in contenders.items():
                begin = time.perf_counter()
                call(i)
                took[name].append(time.perf_counter() - begin)
            if len(again.segments) > 2:
                again.trim(again.last_lsn)
        new.close()
        again.close()
        database.close()
    print(f"one entry of {len(payload) / 1e6:.2f} MB ({given.keys:,} keys of dim {given.dim}), {os.cpu_count()} cores")
    for name, seconds in took.items():
        median, slow = np.median(seconds), np.quantile(seconds, 0.9)
        ratio = np.median(np.array(took["RocksDB put"]) / np.array(seconds))
        print(
            f"{name:16} median {median * 1e3:6.2f} ms, 90% below {slow * 1e3:6.2f} ms, "
            f"{given.keys / median / 1e6:5.1f} M keys/s, RocksDB takes {ratio:.1f} times as long (median of the rounds)"
        )


if __name__ == "__main__":
    main()
