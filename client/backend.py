"""What the client API asks of a store, open in this process or on a server. Arguments have been checked."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rockbed.bags import Bags
from rockbed.config import GroupConfig
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
from rockbed.types import F32, I64, Bool

if TYPE_CHECKING:
    from rockbed.storage.gpu.devices import Device


class Backend(Protocol):
    """Thread-safe. Each method raises what the method of PyStorage or PyEmbedding that calls it says."""

    @property
    def path(self) -> Path:
        """The store's directory. Raises InvalidConfig where it is on a server."""

    @property
    def device(self) -> "Device | None":
        """The device on which this process keeps rows of the store, whose arrays calls may then have; None: no arrays
        of a device are taken."""

    def open_group(self, config: GroupConfig, *, by_name: bool = False) -> OpenedGroup:
        """Create the group, or open it; by_name: the one of the config's name, whatever the config's number is."""

    def lookup(self, asked: Lookup, *, train: bool) -> None:
        """Fill an array with the weights of keys."""

    def lookup_many(self, lookups: Sequence[Lookup], *, train: bool) -> None:
        """As `lookup` for each, in as few calls as may be."""

    def apply_gradients(self, items: Sequence[Gradients], request: Request | None) -> bool:
        """Apply all of it or nothing, durably. Returns False for a request that had been applied before."""

    def fused_lookup(
        self, batch: Sequence[Bags], pooled: F32, sequences: Sequence[F32], *, train: bool, keep: bool
    ) -> bytes | None:
        """Look up all features of a batch in one call.

        pooled: float32[B, D], C-contiguous, filled with the results of the features that have a combiner side by side,
        D = the sum of their groups' dims. sequences: for each other feature float32[nnz, dim], filled with its rows.
        Where a batch has arrays of `device`, these are of it as well.
        keep: returns a handle by which `fused_apply_gradients` may be told of the batch for a short time; None where
        it cannot be kept, or is not to be. Raises what `check_bags` raises, whether or not it was called before: the
        arrays are the caller's, who may have changed them.
        """

    def fused_apply_gradients(
        self,
        batch: Sequence[Bags],
        handle: bytes | None,
        pooled: F32,
        sequences: Sequence[F32],
        steps: Mapping[int, int],
        request: Request | None,
    ) -> bool:
        """Apply the gradients of what `fused_lookup` filled, all or nothing, durably.

        handle: stands for the batch, which then is what the handle was given for. pooled, sequences: as of
        `fused_lookup`, float32, C-contiguous. Any array of all these may be one of `device`. steps: by group, the
        global step of those that have step="global".
        Returns False for a request that had been applied before. Raises UnknownHandle where the handle stands for
        nothing any more, or for another's batch; then nothing was applied.
        """

    def adaptive_lookup(self, asked: AdaptiveKeys, out: F32, *, train: bool) -> tuple[Bool, int]:
        """Fill out float32[n, dim], C-contiguous, with rows of an adaptive variable, in as few calls as may be.

        Returns bool[n], True where it is the exact row, and how many exact rows were made.
        """

    def put_rows(self, group: int, rows: PutRows, *, mode: str) -> int:
        """See PyStorage.put_rows."""

    def get_rows(self, group: int, keys: I64) -> RowReport:
        """See PyStorage.get_rows."""

    def groups(self) -> dict[int, GroupConfig]:
        """See PyStorage.groups."""

    def generation(self, group: int) -> int:
        """That of the group which has this number now (see requests.Lookup); 0 where none has it."""

    def alter_group(self, config: GroupConfig, generation: int) -> None:
        """See PyEmbedding.alter."""

    def drop_group(self, group: int, generation: int = 0) -> int:
        """See PyStorage.drop_group."""

    def prefetch(self, group: int, keys: I64, generation: int) -> tuple[int, int]:
        """Bring rows from disk into memory. Returns how many distinct keys have theirs there, and how many none."""

    def last_request(self, client: str) -> int:
        """See PyStorage.last_request."""

    def stats(self) -> dict[str, Any]:
        """See PyStorage.stats."""

    def shrink(self, options: ShrinkOptions, progress: Callable[[int, int], None] | None) -> ShrinkReport:
        """See PyStorage.shrink."""

    def dump(self, path: Path, condition: Mapping[str, Any]) -> int:
        """See PyStorage.dump."""

    def export(self, path: Path, options: ExportOptions, progress: Callable[[int, int], None] | None) -> ExportReport:
        """See PyStorage.export."""

    def remove_export(self, path: Path, sha256: str) -> None:
        """See PyStorage.remove_export."""

    def import_(self, path: Path, options: ImportOptions, progress: Callable[[int, int], None] | None) -> ImportReport:
        """See PyStorage.import_."""

    def checkpoint(self, path: Path) -> None:
        """See PyStorage.checkpoint."""

    def restore_from(self, path: Path) -> str:
        """See PyStorage.restore_from."""

    def check(self) -> CheckReport:
        """See PyStorage.check."""

    def flush(self) -> None:
        """See PyStorage.flush."""

    def compact(self) -> None:
        """See PyStorage.compact."""

    def close(self) -> None:
        """See PyStorage.close."""
