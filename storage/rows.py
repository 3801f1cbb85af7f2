"""`rows/`: the RocksDB instance that holds the records. The only file that knows rocksdict.

Rows arrive as sorted runs (SST files, ingested), deletions through the memtable; neither uses RocksDB's own log,
because the journal covers both until `flush` returned.
"""

import ctypes
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import rocksdict

from rockbed.cores import cores
from rockbed.errors import RockbedError
from rockbed.storage.files import os_errors, rocksdb_error
from rockbed.storage.forking import forget_in_child
from rockbed.storage.in_use import InUse
from rockbed.storage.record import KEY_BYTES, TTL_STAMP_BYTES, key_prefix, prefix_end
from rockbed.storage.row_options import BLOCK_BYTES, FEW_FILES, NEVER, row_options
from rockbed.storage.sst import write_sst
from rockbed.types import I64, U8

_SCAN_ROWS = 4096  # rows a step of an iteration: a step holds the GIL for about 3 ms
_DELETE_ROWS = 2000  # deletions a write batch: rocksdict holds the GIL while it writes one
_READ_ROWS = 256  # rows that are worth a thread of their own: about 1 ms
_READ_THREADS = min(8, cores())
# rows a call to RocksDB: until it returns it holds the block of each, beside the cache. 32 MB in all threads together
_CALL_ROWS = (32 << 20) // BLOCK_BYTES // _READ_THREADS
_BUFFER_BYTES = 4 << 20  # of the SST writer
_MOST_STAMP = 2**31 - 1
_TTL_MAX_S = 10 * 365 * 86_400  # RocksDB's time stamps end in 2038: a longer TTL is left to the sweeper


def _link_all(path: Path, view: Path) -> None:
    # rocksdict writes rocksdict-config.json at every opening: a reader, who may not write, opens links to the files
    # in a directory of its own
    for file in path.iterdir():
        if file.name not in ("LOCK", "rocksdict-config.json"):
            (view / file.name).symlink_to(file.resolve())


class RowFiles:
    """Records by 12-byte key. Thread-safe; raises Rockbed's errors.

    ttl_s: seconds for RocksDB's own reclaim, 0 = never, as is more than ten years.
    """

    def __init__(
        self, path: Path, *, ttl_s: int, cache_bytes: int, read_only: bool, options: rocksdict.Options | None = None
    ) -> None:
        self._path = path
        self._remove_view: weakref.finalize[..., RowFiles] | None = None
        self.runs = 0  # files written
        self._read_only = read_only
        self._use = InUse(f"the storage of {path.parent}")
        self._hidden: set[bytes] = set()  # by a reader
        self._hidden_groups: set[bytes] = set()  # likewise, as prefixes of their keys
        ttl_s = 0 if ttl_s > _TTL_MAX_S else ttl_s
        self._ttl_s = ttl_s
        # a read-only RocksDB is opened without the TTL layer, so it returns values with their stamp
        self._stamp_bytes = TTL_STAMP_BYTES if read_only else 0
        self._readers = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="rockbed-read")
        access = rocksdict.AccessType.read_only() if read_only else rocksdict.AccessType.with_ttl(ttl_s)
        options = options or row_options(cache_bytes, create=not read_only)
        self._held = ttl_s > 0 and not read_only
        self._merging = False  # until `pace_compaction` says when
        options.set_disable_auto_compactions(self._held)
        at = path
        if read_only:
            with os_errors(f"opening {path}"):
                at = Path(tempfile.mkdtemp(prefix="rockbed-reader-"))
                self._remove_view = weakref.finalize(self, shutil.rmtree, at, ignore_errors=True)
                _link_all(path, at)
        try:
            # named, or rocksdict takes what RocksDB wrote into its OPTIONS file, which lacks the cache and the filter
            families = {"default": options}
            self._db = rocksdict.Rdict(str(at), options=options, column_families=families, access_type=access)
        except Exception as error:
            raise rocksdb_error(error, f"opening {path}") from error
        forget_in_child(self)
        if not read_only:
            for left_over in path.glob("run-*.sst"):
                left_over.unlink()  # written, and not ingested before the process ended

    def stamp(self, *, expires: bool) -> int:
        """The TTL stamp of rows written now; rows that do not expire get one that RocksDB never finds old."""
        return int(time.time()) if expires else _MOST_STAMP - self._ttl_s

    def get(self, keys: U8, record_bytes: int) -> tuple[I64, U8]:
        """Fetch by key, best in ascending order. keys: uint8[n, 12].

        Returns the positions that were found, int64[m], and their records, uint8[m, record_bytes]. Releases the GIL.
        """
        wanted: list[Any] = keys.reshape(-1).view(f"V{KEY_BYTES}").tolist()
        try:
            with self._use.using():
                values = self._get(wanted)
        except RockbedError:
            raise
        except Exception as error:
            raise rocksdb_error(error, f"reading {len(wanted)} rows from {self._path}") from error
        if self._hidden or self._hidden_groups:
            values = [
                None if key in self._hidden or key[:2] in self._hidden_groups else value
                for key, value in zip(wanted, values, strict=True)
            ]
        # the one pass over keys in Python on this path: rocksdict returns a list, 30 ns a key beside its 2-10 us
        found = np.array([i for i, value in enumerate(values) if value is not None], np.int64)
        return found, self._matrix([value for value in values if value is not None], record_bytes)

    def _get(self, wanted: list[Any]) -> list[Any]:
        if len(wanted) < 2 * _READ_ROWS:
            return self._read(wanted)
        size = max(_READ_ROWS, -(-len(wanted) // _READ_THREADS))
        parts = [wanted[i : i + size] for i in range(0, len(wanted), size)]
        others = [self._readers.submit(self._read, part) for part in parts[1:]]
        values = self._read(parts[0])
        for other in others:
            values += other.result()
        return values

    def _read(self, wanted: list[Any]) -> list[Any]:
        values: list[Any] = []
        for start in range(0, len(wanted), _CALL_ROWS):
            values += self._db.get(wanted[start : start + _CALL_ROWS]) or ()
        return values

    def _matrix(self, values: list[bytes], record_bytes: int) -> U8:
        size = record_bytes + self._stamp_bytes
        joined = np.frombuffer(b"".join(values), np.uint8)
        if joined.size != len(values) * size:
            lengths = sorted({len(value) - self._stamp_bytes for value in values})
            raise rocksdb_error(
                ValueError(f"corruption: records of {lengths} bytes where the group's config gives {record_bytes}"),
                f"reading rows from {self._path}",
            )
        matrix = joined.reshape(len(values), size)
        return np.ascontiguousarray(matrix[:, :record_bytes]) if self._stamp_bytes else matrix

    def put_run(self, keys: U8, values: U8, order: I64) -> None:
        """Add or replace rows at once.

        keys: uint8[n, 12], distinct; values: uint8[n, v], stamp included; order: int64[n], sorts keys.
        Durable when it returns: the file is synced before RocksDB takes it.
        """
        self.runs += 1
        path = self._path / f"run-{os.getpid()}-{self.runs}.sst"
        doing = f"writing {len(keys)} rows to {self._path}"
        try:
            with os_errors(doing):
                write_sst(path, keys, values, order=order, sync=True, buffer_bytes=_BUFFER_BYTES)
            options = rocksdict.IngestExternalFileOptions()
            options.set_move_files(True)
            self._db.ingest_external_file([str(path)], options)
        except RockbedError:
            raise
        except Exception as error:
            raise rocksdb_error(error, doing) from error
        finally:
            path.unlink(missing_ok=True)  # gone where RocksDB has taken it

    def delete(self, keys: U8) -> None:
        """Delete by key, durable after `flush`. keys: uint8[n, 12].

        A reader, who deletes when it replays the journal, hides the rows instead.
        """
        raw = keys.reshape(-1).view(f"V{KEY_BYTES}").tolist()
        if self._read_only:
            self._hidden.update(raw)
            return
        write = rocksdict.WriteOptions()
        write.disable_wal = True  # type: ignore[method-assign, assignment]  # an attribute, whatever the stub says
        try:
            for start in range(0, len(raw), _DELETE_ROWS):
                batch = rocksdict.WriteBatch(raw_mode=True)
                for key in raw[start : start + _DELETE_ROWS]:  # rocksdict has no call that takes many keys
                    batch.delete(key)
                self._db.write(batch, write)
        except Exception as error:
            raise rocksdb_error(error, f"deleting {len(raw)} rows from {self._path}") from error

    def delete_group(self, group: int) -> None:
        """Delete every record of a group, durable after `flush`. A reader hides them."""
        if self._read_only:
            self._hidden_groups.add(key_prefix(group))
            return
        write = rocksdict.WriteOptions()
        write.disable_wal = True  # type: ignore[method-assign, assignment]  # an attribute, whatever the stub says
        end = prefix_end(key_prefix(group)) or b"\xff" * (KEY_BYTES + 1)
        try:
            self._db.delete_range(key_prefix(group), end, write)
        except Exception as error:
            raise rocksdb_error(error, f"deleting group {group} from {self._path}") from error

    def groups(self) -> Iterator[int]:
        """The numbers of the groups that have a record, found by leaps from one to the next."""
        cursor = self._db.iter()
        cursor.seek_to_first()
        while cursor.valid():
            group = int.from_bytes(cursor.key()[:2], "big")
            if key_prefix(group) not in self._hidden_groups:
                yield group
            end = prefix_end(key_prefix(group))
            if end is None:
                return
            cursor.seek(end)
        try:
            cursor.status()
        except Exception as error:
            raise rocksdb_error(error, f"looking for groups in {self._path}") from error

    def has_any(self, group: int) -> bool:
        """Whether any record of the group is there."""
        return next(self.scan(group, limit=1), None) is not None

    def scan(
        self, group: int, after: bytes | None = None, limit: int | None = None
    ) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """All (keys, values) of a group in key order, some thousands at a time, as of the first step.

        Values are records, a stamp perhaps behind them (`matrix` takes it off). after: begin behind this key.
        """
        if key_prefix(group) in self._hidden_groups:
            return
        options = rocksdict.ReadOptions()
        end = prefix_end(key_prefix(group))
        if end is not None:
            options.set_iterate_upper_bound(end)
        options.fill_cache(False)  # type: ignore[call-arg]  # a method, whatever the stub says
        start = key_prefix(group) if after is None else after + b"\0"
        try:
            yield from self._scan(group, start, options, limit)
        except RockbedError:
            raise
        except Exception as error:
            raise rocksdb_error(error, f"scanning group {group} in {self._path}") from error

    def _scan(
        self, group: int, start: bytes, options: rocksdict.ReadOptions, limit: int | None
    ) -> Iterator[tuple[list[bytes], list[bytes]]]:
        with self._use.using():
            items = self._db.items(from_key=start, read_opt=options)
            try:
                while chunk := list(islice(items, limit or _SCAN_ROWS)):
                    keys, values = zip(*chunk, strict=True)
                    start = keys[-1] + b"\0"
                    if self._hidden and not limit:
                        there = [pair for pair in chunk if pair[0] not in self._hidden]
                        keys, values = zip(*there, strict=True) if there else ((), ())
                    if keys:
                        yield list(keys), list(values)
                    if limit:
                        return
                    self._use.check()
            finally:
                del items  # an error's traceback would keep it, and it RocksDB's lock
            # rocksdict's iterators end without a word at a block that cannot be read: ask whether this was the end
            cursor = self._db.iter(options)
            cursor.seek(start)
            cursor.status()

    def matrix(self, values: list[bytes], record_bytes: int) -> U8:
        """Values of `scan` as uint8[n, record_bytes]. Raises StorageCorrupt where one has another size."""
        return self._matrix(values, record_bytes)

    def flush(self) -> None:
        """Make deletions durable."""
        try:
            self._db.flush()
        except Exception as error:
            raise rocksdb_error(error, f"flushing {self._path}") from error

    def hold_compaction(self, hold: bool) -> None:
        """Begin no compaction by itself while `hold`: they drop records whose TTL is over. Held after opening."""
        if self._ttl_s and not self._read_only and hold != self._held:
            self._set_option("disable_auto_compactions", "true" if hold else "false")
            self._held = hold

    def pace_compaction(self, most: int) -> None:
        """Let compactions begin when `most` files lie one upon the other, and go on until few are left.

        One that merges the runs of several write-backs reads and writes what lies below them once for all. The GIL is
        held for a millisecond where it begins or ends.
        """
        merging = self.uncompacted_files >= (FEW_FILES if self._merging else most)
        if merging != self._merging and not self._read_only:
            self._set_option("level0_file_num_compaction_trigger", str(FEW_FILES if merging else NEVER))
            self._merging = merging

    def _set_option(self, name: str, value: str) -> None:
        try:
            self._db.set_options({name: value})
        except Exception as error:
            raise rocksdb_error(error, f"changing the options of {self._path}") from error

    @property
    def uncompacted_files(self) -> int:
        """Files that lie one upon the other, so that a read may have to look into each, until they are compacted."""
        return int(self._db.property_value("rocksdb.num-files-at-level0") or 0)

    def is_behind(self, most: int) -> bool:
        """Whether more than `most` files wait for compaction, and it is not held."""
        return not self._held and self.uncompacted_files > most

    @property
    def drops_expired(self) -> bool:
        """Whether compactions drop records by a TTL."""
        return self._ttl_s > 0

    def compact(self) -> None:
        """Rewrite everything: reclaims the space of deleted and expired rows, compresses the last level."""
        try:
            with self._use.using():
                self._db.compact_range(None, None)
        except RockbedError:
            raise
        except Exception as error:
            raise rocksdb_error(error, f"compacting {self._path}") from error

    def checkpoint(self, path: Path) -> None:
        """A copy at `path` that shares the files (hard links) where it lies on the same file system."""
        try:
            with self._use.using():
                rocksdict.Checkpoint(self._db).create_checkpoint(str(path))
        except RockbedError:
            raise
        except Exception as error:
            raise rocksdb_error(error, f"writing a checkpoint to {path}") from error

    def statistics(self) -> dict[str, int]:
        """Sizes as RocksDB has them: `disk_bytes` and `uncompacted_files` are exact, the others its estimates."""
        names = {
            "disk_bytes": "rocksdb.total-sst-files-size",
            "live_bytes": "rocksdb.estimate-live-data-size",
            "records": "rocksdb.estimate-num-keys",
            "pending_compaction_bytes": "rocksdb.estimate-pending-compaction-bytes",
        }
        with self._use.using():
            found = {name: int(self._db.property_int_value(prop) or 0) for name, prop in names.items()}
            return {**found, "uncompacted_files": self.uncompacted_files}

    def forget(self) -> None:
        """In a forked child: never destroy the inherited RocksDB, which would write to the parent's files."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._db))
        if self._remove_view is not None:
            self._remove_view.detach()

    def close(self) -> None:
        """Close, after what is under way; RocksDB gives up its own compactions until the next opening."""
        self._use.end()  # RocksDB cannot be closed under a read, and an iterator that lives on would keep its lock
        self._readers.shutdown()
        self._db.close()
        if self._remove_view is not None:
            self._remove_view()
