"""Rows a second of write_sst beside rocksdict's SstFileWriter and WriteBatch, and what ingesting stops meanwhile.

    python -m benchmarks.sst [--rows 100000 1000000] [--repeats 5]

Values of 176 + 4 bytes, random keys of one group; every way writes the same rows, one after the other in each round,
and the median of the rounds is printed. A stall is the longest time in which a second Python thread that only counts
did not run (in a round of its own, as the two share the GIL): the GIL was held, or the machine was busy: how busy, the
first line shows, where nothing else runs.
"""

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    IngestExternalFileOptions,
    Options,
    Rdict,
    SstFileWriter,
    WriteBatch,
    WriteOptions,
)

from rockbed.storage.sst import write_sst
from rockbed.types import U8

VALUE_BYTES = 176 + 4
BATCH_ROWS = 2_000
TTL_S = 30 * 24 * 3600


@dataclass
class Measured:
    """One way to write: how long it took alone, and the longest stall of another thread beside it."""

    seconds: list[float] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)


def stall_beside(work: Callable[[], object]) -> float:
    """Run work with a thread beside it that only counts. -> the longest time, in s, between two of its steps."""
    stop, started, longest = threading.Event(), threading.Event(), 0.0

    def count() -> None:
        nonlocal longest
        last = time.perf_counter()
        started.set()
        while not stop.is_set():
            now = time.perf_counter()
            longest = max(longest, now - last)
            last = now

    thread = threading.Thread(target=count)
    thread.start()
    started.wait()
    work()
    stop.set()
    thread.join()
    return longest


def options() -> Options:
    """As a rows database has them: a Bloom filter, no compaction meanwhile."""
    result = Options(raw_mode=True)
    result.create_if_missing(True)
    result.set_disable_auto_compactions(True)
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_size(16 << 10)
    result.set_block_based_table_factory(table)
    return result


def by_sst_file_writer(path: Path, keys: list[bytes], values: list[bytes]) -> None:
    writer = SstFileWriter(options=options())
    writer.open(str(path))
    for key, value in zip(keys, values, strict=True):
        writer[key] = value
    writer.finish()


def by_write_batch(db: Any, keys: list[bytes], values: list[bytes]) -> None:
    unlogged: Any = WriteOptions()
    unlogged.disable_wal = True
    for start in range(0, len(keys), BATCH_ROWS):
        batch = WriteBatch(raw_mode=True)
        for key, value in zip(keys[start : start + BATCH_ROWS], values[start : start + BATCH_ROWS], strict=True):
            batch[key] = value
        db.write(batch, unlogged)
    db.flush()


def ingest(db: Any, path: Path) -> None:
    moving = IngestExternalFileOptions()
    moving.set_move_files(True)
    db.ingest_external_file([str(path)], moving)


def rows(n: int, seed: int) -> tuple[U8, U8]:
    """keys uint8[n, 12] of group 0 and values uint8[n, 180] that end with the time, as a database with a TTL wants."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 256, (n, 12), dtype=np.uint8)
    keys[:, :2] = 0
    keys[:, 2] &= 0x3F
    values = rng.integers(0, 256, (n, VALUE_BYTES), dtype=np.uint8)
    values[:, -4:] = np.array([int(time.time())], "<i4").view(np.uint8)
    return keys, values


def measure(n: int, repeats: int, folder: Path) -> dict[str, Measured]:
    keys, values = rows(n, seed=0)
    order = np.argsort(keys.reshape(-1).view("S12"), kind="stable")
    sorted_keys, sorted_values = keys[order], values[order]
    key_list = [key.tobytes() for key in sorted_keys]
    value_list = [value.tobytes() for value in sorted_values]
    results: dict[str, Measured] = {}

    def take(name: str, work: Callable[..., object], *arguments: Any, **options: Any) -> None:
        result = results.setdefault(name, Measured())
        if watched:
            result.stalls.append(stall_beside(partial(work, *arguments, **options)))
        else:
            start = time.perf_counter()
            work(*arguments, **options)
            result.seconds.append(time.perf_counter() - start)

    for round_, watched in product(range(repeats), (False, True)):
        base = folder / f"{n}-{round_}-{watched}"
        base.mkdir()
        # The first file lies on an empty database, the others over rows of the same keys.
        db: Any = Rdict(str(base / "db"), options(), access_type=AccessType.with_ttl(TTL_S))
        batched: Any = Rdict(str(base / "batched"), options(), access_type=AccessType.with_ttl(TTL_S))
        take("nothing (0.2 s asleep)", time.sleep, 0.2)
        take("write_sst", write_sst, base / "plain.sst", sorted_keys, sorted_values)
        take("  ingest", ingest, db, base / "plain.sst")
        take("write_sst sync=True", write_sst, base / "sync.sst", sorted_keys, sorted_values, sync=True)
        take("  ingest, synced", ingest, db, base / "sync.sst")
        take("write_sst order=", write_sst, base / "order.sst", keys, values, order=order)
        take("write_sst, no filter", write_sst, base / "bare.sst", sorted_keys, sorted_values, bloom_bits_per_key=0)
        take("SstFileWriter", by_sst_file_writer, base / "theirs.sst", key_list, value_list)
        take("  ingest, theirs", ingest, db, base / "theirs.sst")
        take("WriteBatch and flush", by_write_batch, batched, key_list, value_list)
        db.close()
        batched.close()
        shutil.rmtree(base)
    return results


def report(n: int, results: dict[str, Measured]) -> None:
    print(f"\n{n:,} rows of {VALUE_BYTES} bytes")
    print(f"{'':24}{'ms':>9}{'M rows/s':>10}{'stall ms: median':>18}{'largest':>9}")
    for name, result in results.items():
        seconds = statistics.median(result.seconds)
        rate = "" if name.startswith("nothing") else f"{n / seconds / 1e6:.2f}"
        stalls_ms = [stall * 1e3 for stall in result.stalls]
        print(f"{name:24}{seconds * 1e3:9.1f}{rate:>10}{statistics.median(stalls_ms):18.1f}{max(stalls_ms):9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(1_000, 1, Path(folder))  # compiles
        for n in arguments.rows:
            report(n, measure(n, arguments.repeats, Path(folder)))


if __name__ == "__main__":
    main()
