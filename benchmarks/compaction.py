"""What RocksDB's compaction costs beside write-back under other settings than those of storage/row_options.py.

python -m benchmarks.compaction [--groups 26] [--rows 40000] [--share 0.33] [--write-backs 24] [--pause 0.03]

Each write-back writes a share of the rows of each group, as training with random keys does, in one run of each.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from rockbed.storage.record import TTL_STAMP_BYTES, disk_order, encode_keys
from rockbed.storage.row_options import FEW_FILES, row_options
from rockbed.storage.rows import RowFiles
from rockbed.types import I64

RECORD_BYTES = 100
READ_ROWS = 4096
SETTINGS = {  # size of the files in MB; of how many write-backs the runs are merged together, 0: each alone
    "files of 64 MB, each run alone": (64, 0),
    "files of 8 MB, each run alone": (8, 0),
    "files of 4 MB, each run alone": (4, 0),
    "files of 4 MB, two write-backs": (4, 2),
    "files of 4 MB, four write-backs": (4, 4),
}


def _put(files: RowFiles, group: int, keys: I64, rng: np.random.Generator) -> None:
    values = rng.integers(0, 256, (keys.size, RECORD_BYTES + TTL_STAMP_BYTES), np.uint8)
    values[:, RECORD_BYTES:] = np.frombuffer((2**31 - 1).to_bytes(TTL_STAMP_BYTES, "little"), np.uint8)
    files.put_run(encode_keys(group, keys), values, disk_order(keys))


def _read_us(files: RowFiles, keys: list[I64], rng: np.random.Generator) -> float:
    """Microseconds that a row takes, read from files that the system has in memory: a median over groups."""
    took = []
    for group, there in enumerate(keys):
        wanted = rng.choice(there, min(READ_ROWS, there.size), replace=False)
        encoded = encode_keys(group, wanted[disk_order(wanted)])
        begin = time.perf_counter()
        files.get(encoded, RECORD_BYTES)
        took.append((time.perf_counter() - begin) / wanted.size * 1e6)
    return float(np.median(took))


def _compactions(path: Path) -> tuple[int, float]:
    """The rows that compactions have read, and the seconds of CPU that they took, by RocksDB's own log."""
    events = [
        json.loads(line[line.index("{") :])
        for line in (path / "LOG").read_text(errors="replace").splitlines()
        if "EVENT_LOG_v1" in line
    ]
    done = [event for event in events if event["event"] == "compaction_finished"]
    return sum(e["num_input_records"] for e in done), sum(e["compaction_time_cpu_micros"] for e in done) / 1e6


def _measure(path: Path, given: argparse.Namespace, file_mb: int, merged: int) -> str:
    rng = np.random.default_rng(1)
    options = row_options(32 << 20, create=True)
    options.set_target_file_size_base(file_mb << 20)
    files = RowFiles(path, ttl_s=0, cache_bytes=0, read_only=False, options=options)
    keys = [rng.integers(0, 2**63, given.rows) for _ in range(given.groups)]
    for group, there in enumerate(keys):
        _put(files, group, there, rng)
    files.compact()
    written, reads = 0, []
    for _ in range(given.write_backs):
        for group, there in enumerate(keys):
            dirty = there[rng.random(there.size) < given.share]
            _put(files, group, dirty, rng)
            written += dirty.size
            time.sleep(given.pause)
        files.pace_compaction(max(merged * given.groups, FEW_FILES))
        reads.append(_read_us(files, keys, rng))
    files.close()
    rows, seconds = _compactions(path)
    return (
        f"{rows / written:5.2f} rows read by compactions for one written back, {seconds / written * 1e6:5.2f} us of "
        f"CPU; a cold row {np.median(reads):.2f} us"
    )


def main() -> None:
    """Print what compaction cost under each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=26)
    parser.add_argument("--rows", type=int, default=40_000, help="of each group")
    parser.add_argument("--share", type=float, default=0.33, help="of the rows that a write-back writes")
    parser.add_argument("--write-backs", type=int, default=24)
    parser.add_argument("--pause", type=float, default=0.03, help="seconds after each run, for compaction")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for i, (name, (file_mb, merged)) in enumerate(SETTINGS.items()):
            print(f"{name:32} {_measure(Path(folder) / str(i), given, file_mb, merged)}", flush=True)


if __name__ == "__main__":
    main()
