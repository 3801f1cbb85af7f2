"""`PyStorage`: a store, in this process or on a server."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rockbed.client.ahead import Ahead
from rockbed.client.arrays import checked_flag, checked_group, checked_keys, checked_rows
from rockbed.client.backend import Backend
from rockbed.client.connection import Connection
from rockbed.client.copying import SharedByCopies
from rockbed.client.parameters import Parameters, as_mapping
from rockbed.client.request_ids import RequestId, checked_client, checked_request
from rockbed.client.target import must_be_default, must_be_directory
from rockbed.client.together import checked_lookups, checked_push
from rockbed.config import GroupConfig, StoreConfig
from rockbed.reports import CheckReport, ExportReport, ImportReport, RowReport, ShrinkReport
from rockbed.requests import ExportOptions, ImportOptions, ShrinkOptions
from rockbed.slots import SLOTS
from rockbed.types import F32, I64, U64

if TYPE_CHECKING:
    from rockbed.client.embedding import PyEmbedding


class PyStorage(SharedByCopies):
    """An open store. Thread-safe; a context manager. One at a time for a directory, many on a server."""

    def __init__(
        self,
        target: str | os.PathLike[str],
        ttl: float = 0,
        *,
        memory_budget: int = 1 << 30,
        fsync: str = "interval",
        fsync_interval: float = 1.0,
        write_back_interval: float = 30.0,
        journal_bytes_max: int = 2 << 30,
        block_cache_bytes: int = 32 << 20,
        sweep_rows_s: int = 20_000,
        read_only: bool = False,
        repair: bool = False,
        device: str | None = None,
        device_memory: int | None = None,
        clock: Callable[[], float] = time.time,
        connection: Connection | None = None,
    ) -> None:
        """Open the store in a directory, or make one there; or connect to a server that has one open.

        target: a directory, new, empty or a store; or "grpc://HOST:PORT", with TLS "grpcs://HOST:PORT", or
        "grpc+unix:///path/of/a/socket". A server has settings of its own: for one, only `connection` may be given,
        which has no meaning for a directory.
        ttl: seconds that a row lives after it was last written, 0 = for ever; groups may have their own.
        memory_budget: bytes of rows, headers and index that are kept in memory; colder rows stay on disk.
        fsync: when the journal is forced to the disk itself: "never" (the system does, within about half a minute),
            "interval" (every fsync_interval seconds), "always" (before a push returns). Whatever it is, a killed
            process loses nothing; it decides what a power cut may lose.
        write_back_interval: seconds after which changed rows are written from memory to RocksDB at the latest.
        journal_bytes_max: limit of the journal, files kept to be used again included; write-back begins at half of it,
            pushes wait at all of it. Opening after a crash replays up to this much.
        block_cache_bytes: RocksDB's cache of blocks read from disk, beside the memory budget.
        sweep_rows_s: rows a second that are looked at for expiry in the background; 0 = none.
        read_only: look up only (train=False); several such storages may share a directory that nobody writes.
        repair: if the journal is damaged, keep what precedes the damage and set the rest aside, instead of refusing
            to open.
        device: "cuda:0", or another number, keeps hot rows in the memory of that NVIDIA GPU, above those in memory, and
            looks up and trains there; docs/gpu.md says which groups. None and "cpu": no GPU is used.
        device_memory: bytes of it for rows and their index; 1 GiB if not given.
        clock: gives seconds since 1970; for tests.

        Raises InvalidConfig, StoreLocked, StorePathInvalid, StorePermission, StoreNotFound (read_only),
        StorageCorrupt, JournalCorrupt, FormatTooNew, StorageFull, ServerUnavailable, DeviceUnavailable.
        """
        config = StoreConfig(
            ttl_s=ttl,
            memory_budget=memory_budget,
            block_cache_bytes=block_cache_bytes,
            fsync=fsync,
            fsync_interval_s=fsync_interval,
            write_back_interval_s=write_back_interval,
            journal_bytes_max=journal_bytes_max,
            sweep_rows_s=sweep_rows_s,
            read_only=read_only,
            repair=repair,
            device=device,
            device_memory=device_memory,
        )
        self._target = str(target)
        self.ahead = Ahead()
        self.columns: dict[Any, Any] = {}  # what feature columns have opened here
        self.variables: dict[str, Any] = {}  # those that are open, by name: see rockbed.client.variables
        # each end loads what it needs: a client has no use for RocksDB, a store in this process none for gRPC
        self.backend: Backend
        if self._target.startswith(("grpc://", "grpcs://", "grpc+unix://")):
            from rockbed.client.remote import Remote

            must_be_default(self._target, config, clock)
            self.backend = Remote(self._target, connection or Connection())
        else:
            from rockbed.client.embedded import Embedded
            from rockbed.server.engine import Engine

            must_be_directory(target, connection)
            self.backend = Embedded(Engine(target, config, clock=clock))

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self.backend.path

    # --- training ---

    def lookup(self, items: "Sequence[tuple[PyEmbedding, I64 | U64]]", *, train: bool = True) -> list[F32]:
        """The weights for several embeddings of this storage at once, as PyEmbedding.lookup gives them: on a server in
        one call, where they fit into a message.

        items: (embedding, keys). Returns float32[n, dim] for each, in their order. Raises what PyEmbedding.lookup
        raises, and InvalidConfig for an embedding of another storage.
        """
        train = checked_flag("train", train)
        lookups = checked_lookups(self, items)
        self.backend.lookup_many(lookups, train=train)
        return [each.out for each in lookups]

    def apply_gradients(
        self, items: "Sequence[tuple[PyEmbedding, I64 | U64, F32]]", *, request: RequestId | None = None
    ) -> bool:
        """Apply gradients to several embeddings of this storage as one change: all or nothing, durable when it returns.

        items: (embedding, keys, gradients), as PyEmbedding.apply_gradients takes them. request: (client id, number),
        the numbers going up from 1; a request that has been applied before is acknowledged, not applied again, and
        False is returned.
        Raises what PyEmbedding.apply_gradients raises, RequestTooOld, and InvalidConfig for an embedding of another
        storage.
        """
        return self.backend.apply_gradients(checked_push(self, items), checked_request(request))

    def apply_gradients_async(
        self, items: "Sequence[tuple[PyEmbedding, I64 | U64, F32]]", *, request: RequestId | None = None
    ) -> "Future[bool]":
        """As `apply_gradients`, in a thread: see PyEmbedding.apply_gradients_async."""
        return self.ahead.push(self.backend.apply_gradients, checked_push(self, items), checked_request(request))

    def last_request(self, client: str) -> int:
        """The newest request number applied for a client id, 0 where there is none: a trainer resumes after it."""
        return self.backend.last_request(checked_client(client))

    # --- rows and groups ---

    def groups(self) -> dict[int, GroupConfig]:
        """The groups of the store and their settings, by number."""
        return self.backend.groups()

    def names(self) -> dict[str, int]:
        """The numbers of the groups that have a name, by name: the catalogue of the store."""
        return {config.name: number for number, config in self.groups().items() if config.name is not None}

    def drop_group(self, group: int) -> int:
        """Drop a group with all of its rows, for good, durably. Returns how many rows it had, as counted.

        Who has it open gets UnknownGroup from then on, also when its number is another group's. Raises UnknownGroup,
        ReadOnlyStorage, the disk's errors.
        """
        self.columns.clear()  # they are opened again at their next use
        return self.backend.drop_group(checked_group(group))

    def get_rows(self, group: int, keys: I64 | U64) -> RowReport:
        """What is known of keys: their rows, or why there is none. Changes nothing.

        keys: as PyEmbedding.lookup takes them. Raises UnknownGroup, WrongDtype, WrongShape, StorageClosed.
        """
        return self.backend.get_rows(checked_group(group), checked_keys(keys))

    def put_rows(
        self,
        group: int,
        keys: I64 | U64,
        weights: F32,
        *,
        slots: F32 | None = None,
        update_num: I64 | None = None,
        update_time_ms: I64 | None = None,
        mode: str = "replace",
    ) -> int:
        """Store rows as they are, past optimizer and admission: all or nothing, durable when it returns.

        keys: distinct. weights: float32[n, dim]. slots: float32[n, state] in the order of the optimizer's slots, None =
        those of a new row. update_num: int64[n] update counts, None = 0. update_time_ms: int64[n] since 1970, None =
        now; a time to come counts as now, and a row that has expired by it is left out. mode: "replace" rows that
        exist, or "keep" them. Returns how many were stored.
        Raises UnknownGroup, WrongDtype, WrongShape, DimMismatch, InvalidConfig, RowNotFinite, BatchTooLarge,
        ReadOnlyStorage, StorageFull and the disk's other errors. Then nothing was stored.
        """
        rows = checked_rows(checked_keys(keys), weights, slots, update_num, update_time_ms)
        return self.backend.put_rows(checked_group(group), rows, mode=mode)

    # --- care ---

    def stats(self) -> dict[str, Any]:
        """Sizes and counters of the store and of each group; see docs/operations.md for every name."""
        return self.backend.stats()

    def shrink(
        self,
        *,
        group: int | None = None,
        max_age: float | None = None,
        min_count: int | None = None,
        min_norm: float | None = None,
        min_step: int | None = None,
        returned: bool = False,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> ShrinkReport:
        """Remove rows: those that have expired, and those that meet any of the conditions given.

        group: only this one. max_age: seconds since the last update. min_count: fewer updates than this. min_norm: a
        smaller L2 norm of the weights than this. min_step: last updated before this global step, of a group with
        step="global"; a step that is long past may be known to a 16th of its age only, and rows stay that much longer.
        returned: of the exact part of an adaptive embedding, the rows of ids that are not frequent any more. Both take
        one `group`. dry_run: count, remove nothing. progress: called with (rows looked at, rows in all, as estimated).
        Returns counts by group and reason. Raises UnknownGroup, InvalidConfig, ReadOnlyStorage.
        """
        options = ShrinkOptions(
            group=group,
            max_age_s=max_age,
            min_count=min_count,
            min_norm=min_norm,
            min_step=min_step,
            returned=returned,
            dry_run=dry_run,
        )
        return self.backend.shrink(options, progress)

    def dump(self, path: str | os.PathLike[str], condition: Parameters | Mapping[str, Any] | None = None) -> int:
        """Write weights to a file in damo-embedding's dump format. Returns the number of rows.

        On a server `path` is a name, and the server chooses the directory.
        condition: "expire_days" (leave out rows last updated longer ago), "min_count" (fewer updates), "group".
        The file holds, little-endian: i32 n; i32 groups[n]; i32 dims[n]; i64 counts[n]; then for each row
        i64 key; i32 group; f32 weights[dim].
        Raises UnknownName, InvalidConfig, UnknownGroup, StoreExists, StoreNotFound (the directory), StorageFull.
        """
        return self.backend.dump(Path(path), as_mapping("dump condition", condition))

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "parquet",
        groups: Sequence[int] | None = None,
        max_age: float | None = None,
        min_count: int | None = None,
        min_norm: float | None = None,
        min_abs: float | None = None,
        cutoff: float | None = None,
        slots: bool = False,
        digests: bool = False,
        since: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ExportReport:
        """Write rows to a new directory of table files and a manifest; docs/export.md says what they hold.

        On a server `path` is a name, and the server chooses the directory. Rows that have expired are left out.
        format: "parquet", "safetensors" (both need rockbed[export]), or "npz". groups: only these.
        max_age, min_count, min_norm: leave out what shrink would remove by them. min_abs: leave out rows all of whose
        weights are nearer to 0 than this. cutoff: write weights nearer to 0 than this as 0. slots: with the optimizer's
        state, so that training can go on from an import. digests: with 16 bytes a row that a later export can be
        compared with. since: the path of such an export beside this one: write only the rows that differ from those it
        stands for, and the keys of those that are gone; digests are written, too. progress: called with (rows looked
        at, rows in all, as estimated).
        Raises InvalidConfig, UnknownName, MissingPackage, UnknownGroup, StoreExists, StorageFull; with digests
        ReadOnlyStorage; with since StoreNotFound, StorageCorrupt, FormatTooNew, GroupConflict.
        """
        options = ExportOptions(
            format=format,
            groups=groups,
            max_age_s=max_age,
            min_count=min_count,
            min_norm=min_norm,
            min_abs=min_abs,
            cutoff=cutoff,
            slots=slots,
            digests=digests or since is not None,
            since=None if since is None else str(since),
        )
        return self.backend.export(Path(path), options, progress)

    def remove_export(self, path: str | os.PathLike[str], report: ExportReport) -> None:
        """Remove what `export` wrote to a path and gave this report of; never another export that has the path now.

        Raises StoreNotFound, and the disk's errors.
        """
        self.backend.remove_export(Path(path), report.sha256)

    def import_(
        self,
        path: str | os.PathLike[str],
        *,
        groups: Sequence[int] | None = None,
        mode: str = "replace",
        chain: bool = True,
        slots: tuple[int, int] = (0, SLOTS),
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImportReport:
        """Store the rows of an export, or of a damo-embedding dump; groups that are not there are created.

        On a server `path` is a name in its directory of exports. Everything is read and checked before the first row
        is stored; an import that was interrupted after that can be repeated. A dump's groups must exist: it does not
        say how they learn. Rows come with the slots, counts and times that the files have, else as new ones.
        groups: only what goes to these. The rows of a group with a name go to the one of this name here, others to that
        of the same number. mode: rows that exist are overwritten ("replace") or left alone ("keep"). chain: before an
        export `since` another one that one is imported, from the whole export on; with False it alone is, into a store
        that has what it goes on from. slots: only keys from the first of these to before the second, of 16,384 (see
        docs/architecture.md). dry_run: check everything, store nothing. progress: called with (rows done, rows in all);
        the first number is 0 while the files are checked.
        Raises InvalidConfig, UnknownGroup, DimMismatch, GroupConflict (the slots are another optimizer's, the keys
        another variable's), RowNotFinite, StoreNotFound, StorageCorrupt, FormatTooNew, MissingPackage, ReadOnlyStorage,
        StorageFull.
        """
        options = ImportOptions(
            groups=groups, mode=mode, chain=chain, slots_from=slots[0], slots_to=slots[1], dry_run=dry_run
        )
        return self.backend.import_(Path(path), options, progress)

    def checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, a directory, while training goes on: every row as it was at one moment.

        On a server `path` is a name, and the server chooses the directory. Table files are shared by hard links where
        it lies on the same file system. Raises StoreExists, StorageFull.
        """
        self.backend.checkpoint(Path(path))

    def restore_from(self, path: str | os.PathLike[str]) -> str:
        """Put a checkpoint in the place of this store, in one step. Returns where the store of before is kept: a
        directory beside it, which may be removed.

        On a server `path` is the name of a checkpoint in the server's directory, and a name is returned; calls that
        come meanwhile are tried again. Raises StoreNotFound, StorageCorrupt, FormatTooNew (the checkpoint),
        ReadOnlyStorage, StorageFull, StorageFailed (the store's directory is a mount point, say); then the store is as
        it was.
        """
        self.columns.clear()
        return self.backend.restore_from(Path(path))

    @staticmethod
    def restore(path: str | os.PathLike[str], directory: str | os.PathLike[str]) -> None:
        """Make a store at `directory`, which must not exist (or be empty), from a checkpoint.

        Raises StoreNotFound, StoreExists, StorageCorrupt, FormatTooNew, StorageFull.
        """
        from rockbed.storage import checkpoint

        checkpoint.restore(Path(path), Path(directory))

    def check(self) -> CheckReport:
        """Read everything and report what is wrong: files, checksums, records, index, counts.

        Changes no row; `rows` in stats() is counted anew.
        """
        return self.backend.check()

    def flush(self) -> None:
        """Write every changed row to RocksDB and trim the journal. Pushes are durable without it."""
        self.backend.flush()

    def compact(self) -> None:
        """Flush, and have RocksDB rewrite its files: frees the space of rows that are gone, compresses the last level.

        Raises GroupConflict where a group's ttl was raised since the storage was opened.
        """
        self.backend.compact()

    def close(self) -> None:
        """Finish pushes that go on in threads, write back, close the files, let go of the directory. May be called
        twice."""
        self.ahead.finish()
        self.variables.clear()
        self.columns.clear()
        self.backend.close()

    def __enter__(self) -> "PyStorage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PyStorage({self._target!r})"
