"""A store in this process."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rockbed.allocation import keep_large_blocks
from rockbed.bags import Bags, copied
from rockbed.config import GroupConfig
from rockbed.device_arrays import on_device
from rockbed.reports import CheckReport, ExportReport, ImportReport, RowReport, ShrinkReport
from rockbed.requests import (
    AdaptiveKeys,
    ExportOptions,
    Gradients,
    ImportOptions,
    Lookup,
    OpenedGroup,
    PutRows,
    Request,
    ShrinkOptions,
)
from rockbed.server import (
    adaptive,
    checking,
    checkpointing,
    device_batches,
    dropping,
    dumping,
    exporting,
    fused,
    grouping,
    importing,
    inspecting,
    putting,
    shrinking,
    statistics,
)
from rockbed.server.engine import Engine
from rockbed.server.kept_batches import apply_kept
from rockbed.server.serving import Serving
from rockbed.storage.gpu.devices import Device
from rockbed.types import F32, I64, Bool

_OWNER = ""  # of batches that are kept: in one process there is nobody else


class Embedded:
    """The engine as a Backend."""

    def __init__(self, engine: Engine) -> None:
        keep_large_blocks()
        self._serving = Serving(engine)

    @property
    def engine(self) -> Engine:
        """The engine, another one after `restore_from`."""
        return self._serving.engine

    @property
    def path(self) -> Path:
        return self.engine.directory

    @property
    def device(self) -> Device | None:
        return self.engine.device

    def open_group(self, config: GroupConfig, *, by_name: bool = False) -> OpenedGroup:
        group, created = grouping.open_group(self.engine, config, by_name=by_name)
        return OpenedGroup(group.config, group.global_step, group.generation, created)

    def lookup(self, asked: Lookup, *, train: bool) -> None:
        self.engine.lookup(asked.group, asked.keys, asked.out, train=train, generation=asked.generation)

    def lookup_many(self, lookups: Sequence[Lookup], *, train: bool) -> None:
        self.engine.lookup_many(lookups, train=train)

    def apply_gradients(self, items: Sequence[Gradients], request: Request | None) -> bool:
        return self.engine.apply_gradients(items, request)

    def fused_lookup(
        self, batch: Sequence[Bags], pooled: F32, sequences: Sequence[F32], *, train: bool, keep: bool
    ) -> bytes | None:
        engine = self.engine
        if engine.device is not None and on_device(pooled):
            device_batches.lookup(engine, engine.device, batch, pooled, sequences, train=train)
            return None  # a copy of such a batch would take the device's memory, and spare nothing
        if keep:  # what is kept must not change with the caller's arrays
            batch = copied(batch)
        plan = fused.lookup(engine, batch, pooled, sequences, train=train)
        return engine.kept.keep(plan, _OWNER) if keep else None

    def fused_apply_gradients(
        self,
        batch: Sequence[Bags],
        handle: bytes | None,
        pooled: F32,
        sequences: Sequence[F32],
        steps: Mapping[int, int],
        request: Request | None,
    ) -> bool:
        engine = self.engine

        def push(of: Sequence[Bags] | fused.Plan) -> bool:
            return fused.apply_gradients(engine, of, pooled, sequences, steps, request)

        return push(batch) if handle is None else apply_kept(engine, handle, _OWNER, request, push)

    def adaptive_lookup(self, asked: AdaptiveKeys, out: F32, *, train: bool) -> tuple[Bool, int]:
        return adaptive.lookup(self.engine, asked, out, train=train)

    def put_rows(self, group: int, rows: PutRows, *, mode: str) -> int:
        return putting.put(self.engine, group, rows, mode=mode)

    def get_rows(self, group: int, keys: I64) -> RowReport:
        return inspecting.get_rows(self.engine, group, keys)

    def groups(self) -> dict[int, GroupConfig]:
        self.engine.check_open()
        return {number: group.config for number, group in sorted(self.engine.groups.items())}

    def generation(self, group: int) -> int:
        self.engine.check_open()
        found = self.engine.groups.get(group)
        return 0 if found is None else found.generation

    def alter_group(self, config: GroupConfig, generation: int) -> None:
        self.engine.alter_group(config, generation)

    def drop_group(self, group: int, generation: int = 0) -> int:
        return dropping.drop_group(self.engine, group, generation)

    def prefetch(self, group: int, keys: I64, generation: int) -> tuple[int, int]:
        return self.engine.prefetch(group, keys, generation)

    def last_request(self, client: str) -> int:
        self.engine.check_open()
        return self.engine.clients.last(client)

    def stats(self) -> dict[str, Any]:
        return statistics.collect(self.engine)

    def shrink(self, options: ShrinkOptions, progress: Callable[[int, int], None] | None) -> ShrinkReport:
        return shrinking.shrink(self.engine, options, progress)

    def dump(self, path: Path, condition: Mapping[str, Any]) -> int:
        return dumping.dump(self.engine, path, condition)

    def export(self, path: Path, options: ExportOptions, progress: Callable[[int, int], None] | None) -> ExportReport:
        return exporting.export(self.engine, path, options, progress)

    def remove_export(self, path: Path, sha256: str) -> None:
        self.engine.check_open()
        exporting.remove(path, sha256)

    def import_(self, path: Path, options: ImportOptions, progress: Callable[[int, int], None] | None) -> ImportReport:
        return importing.import_(self.engine, path, options, progress)

    def checkpoint(self, path: Path) -> None:
        checkpointing.checkpoint(self.engine, path)

    def restore_from(self, path: Path) -> str:
        return str(self._serving.restore(path))

    def check(self) -> CheckReport:
        return checking.check(self.engine)

    def flush(self) -> None:
        self.engine.flush()

    def compact(self) -> None:
        self.engine.compact()

    def close(self) -> None:
        self.engine.close()
