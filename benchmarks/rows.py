"""Cold reads and bytes on disk under other settings of RocksDB than those of storage/row_options.py.

python -m benchmarks.rows [--rows 1000000] [--reads 20000] [--repeats 7]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import rocksdict

from rockbed.storage.record import TTL_STAMP_BYTES, disk_order, encode_keys, pack, record_bytes
from rockbed.storage.row_options import row_options
from rockbed.storage.rows import RowFiles
from rockbed.types import I64, U8

DIM, WIDTH = 16, 32
SETTINGS = {
    "LZ4, indexes in memory (as is)": ("lz4", False),
    "zstd, indexes in memory": ("zstd", False),
    "uncompressed, indexes in memory": ("none", False),
    "LZ4, indexes in the block cache": ("lz4", True),
}


def _table(rows: int, rng: np.random.Generator) -> tuple[I64, U8]:
    """Rows as Adagrad leaves them after some updates with random gradients."""
    keys = rng.integers(0, 2**63, rows)
    header = np.zeros((rows, 4), np.int64)
    header[:, 0] = keys
    header[:, 1] = 1_790_000_000_000 + rng.integers(0, 10_000, rows)
    header[:, 2] = rng.integers(1, 50, rows)
    header[:, 3] = rng.integers(1, 5_000, rows)
    data = rng.standard_normal((rows, WIDTH), np.float32)
    data[:, DIM:] **= 2
    values = np.empty((rows, record_bytes(WIDTH) + TTL_STAMP_BYTES), np.uint8)
    pack(np.arange(rows), header, np.zeros(rows, np.uint8), data, 1, DIM, 1_790_000_000, values)
    return keys, values


def _open(path: Path, compression: str, cached: bool) -> RowFiles:
    options = row_options(32 << 20, create=True, index_in_cache=cached)
    options.set_bottommost_compression_type(getattr(rocksdict.DBCompressionType, compression)())
    return RowFiles(path, ttl_s=0, cache_bytes=0, read_only=False, options=options)


def main() -> None:
    """Print bytes a row and reads a second for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    rng = np.random.default_rng(1)
    keys, values = _table(given.rows, rng)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        opened = {}
        for i, (name, (compression, cached)) in enumerate(SETTINGS.items()):
            opened[name] = _open(Path(folder) / str(i), compression, cached)
            opened[name].put_run(encode_keys(1, keys), values, disk_order(keys))
            opened[name].compact()
        took: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for _ in range(given.repeats):
            chosen = rng.choice(given.rows, given.reads, replace=False)
            wanted = encode_keys(1, keys[chosen[disk_order(keys[chosen])]])
            for name, files in opened.items():
                begin = time.perf_counter()
                files.get(wanted, record_bytes(WIDTH))
                took[name].append(time.perf_counter() - begin)
        for name, files in opened.items():
            size = files.statistics()["disk_bytes"] / given.rows
            print(f"{name:34} {size:6.1f} bytes a row, {given.reads / np.median(took[name]) / 1e3:6.0f} k reads/s")
            files.close()


if __name__ == "__main__":
    main()
