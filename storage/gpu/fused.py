"""Fused batches on the device: all features pooled in one launch, and their gradients summed to one per row.

The kernels are in pool.cu and backward.cu; this file writes the tables that they read and decides what is launched.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rockbed.errors import BatchTooLarge, WrongShape
from rockbed.storage import hot_kernels as k
from rockbed.storage.gpu.launcher import DeviceArray, Launcher
from rockbed.storage.gpu.sources import BACKWARD, BLOCK_THREADS, POOL, TABLE, Module
from rockbed.storage.gpu.table import DeviceTable
from rockbed.types import AnyArray

_SEQUENCE = 3
_COMBINERS = {"sum": 0, "mean": 1, "sqrtn": 2, None: _SEQUENCE}
_NEGATIVE_KEYS, _DEFAULT_KEY, _PADDING_KEY, _ALIGNED = 1, 2, 4, 8
_PIECE = 512  # uses of a row that are summed in one go: PIECE of backward.cu
_IDS_MAX = 2**32 - 2

_LONGS = (
    *("index", "index_size", "data", "flags", "keys", "offsets", "weights", "values", "value_stride", "nnz", "bags"),
    *("default_key", "padding_key", "first_block", "first_position", "first_id"),
)
_FEATURE = np.dtype(
    [
        *((name, "i8") for name in _LONGS),
        *((name, "i4") for name in ("dim", "stride", "combiner", "bits")),
        *((name, "f4") for name in ("max_norm", "absent")),
        *((name, "i4") for name in ("touch", "unused")),
    ]
)  # `Feature` of features.cuh
_SHARE = np.dtype(
    [
        *((name, "i8") for name in ("data", "sums", "first_id", "first_segment", "segments", "first_block")),
        *((name, "i4") for name in ("dim", "stride")),
    ]
)  # `Share` of backward.cu
_COUNTS = ("absent", "absent_defaults", "faults")  # `Counts` of features.cuh


@dataclass(frozen=True, slots=True)
class DeviceBags:
    """One feature's share of a batch, as rockbed.bags.Bags, with its arrays on the device and its group's table.

    keys: int64[nnz]; offsets: int64[bags + 1]; weights: float32[nnz] or None. Offsets and weights are checked by the
    kernels. padding_key: the group's, as the bits of an int64. absent: each weight of a key that has no row.
    """

    name: str
    table: DeviceTable
    keys: DeviceArray
    offsets: DeviceArray
    weights: DeviceArray | None = None
    combiner: str | None = "mean"
    max_norm: float | None = None
    default_key: int | None = None
    negative: bool = False
    padding_key: int | None = None
    absent: float = 0.0

    @property
    def bags(self) -> int:
        return int(self.offsets.size) - 1

    @property
    def positions(self) -> int:
        """Places in the batch where a row can be used: its keys, and each bag's default key."""
        return int(self.keys.size) + (self.bags if self.default_key is not None else 0)


@dataclass(frozen=True, slots=True)
class Absent:
    """Uses of keys that have no row, for one feature: by its keys, and by bags filled with its default key."""

    keys: int
    defaults: int


@dataclass(frozen=True, slots=True)
class RowGradients:
    """The gradients of a batch for the rows of one table: rows int32[n], distinct, ascending; grads float32[n, dim]."""

    table: DeviceTable
    rows: DeviceArray
    grads: DeviceArray


class FusedBatch:
    """A batch on the device. What it was made from must stay as it is while it is used."""

    def __init__(self, launcher: Launcher, features: Sequence[DeviceBags]) -> None:
        self.launcher = launcher
        self.features = list(features)
        sizes = {each.name: each.bags for each in self.features if each.combiner is not None}
        if len(set(sizes.values())) > 1:
            raise WrongShape(f"the features of a batch differ in the number of bags: {sizes}")
        self._tables = list({id(each.table): each.table for each in self.features}.values())
        first_id = np.cumsum([0, *(table.capacity for table in self._tables)])
        self.positions = sum(each.positions for each in self.features)
        if self.positions > 2**31 - 1 or first_id[-1] > _IDS_MAX:
            raise BatchTooLarge(
                f"{self.positions} keys and default keys over tables of {first_id[-1]} rows in one fused batch: "
                f"{2**31 - 1} and {_IDS_MAX} are the most. Send smaller batches"
            )
        self._first_id = first_id[:-1].astype(np.int64)

    def pool(self, pooled: DeviceArray, sequences: Sequence[DeviceArray], *, pin: bool = False) -> list[Absent]:
        """Look every feature up in one launch. Returns what was absent, by feature; waits for the device to know it.

        pooled: float32[bags, sum of the dims of the features with a combiner], filled in their order; sequences:
        float32[nnz, dim] for each of the others, filled. pin: the rows found stay until `unpin` of their tables.
        Raises WrongShape for offsets that lead nowhere and weights that are not finite; the result means nothing then.
        """
        table, blocks = self._table(pooled, sequences, k.TOUCHED | (k.PINNED if pin else 0))
        counts = self._zero_counts()
        self._launch(POOL, "pool", blocks * BLOCK_THREADS, table, len(self.features), counts)
        return self._absent(self.launcher.to_host(counts))

    def absent_keys(self, feature: int, found: Absent) -> AnyArray:
        """The distinct keys of a feature that have no row, ascending: int64[n] on the host, its default key included.

        found: what `pool` or `gradients` said of it. Waits for the device.
        """
        bags = self.features[feature]
        defaults = [bags.default_key] if found.defaults else []
        if not found.keys:
            return np.array(defaults, np.int64)
        marks = self.launcher.empty(bags.keys.size, np.int32)
        table, _ = self._table(None, (), k.TOUCHED)
        self._launch(POOL, "mark_absent", bags.keys.size, table, feature, marks)
        rank = self.launcher.running_sum(marks)
        keys = self.launcher.empty(found.keys, np.int64)
        self._launch(TABLE, "collect_keys", bags.keys.size, bags.keys, marks, rank, bags.keys.size, keys)
        return np.unique(np.append(self.launcher.to_host(keys), np.array(defaults, np.int64)))

    def gradients(
        self, pooled: DeviceArray, sequences: Sequence[DeviceArray]
    ) -> tuple[list[RowGradients], list[Absent]]:
        """The gradient of each row that the batch uses, and what was absent, by feature: those uses give none.

        pooled, sequences: the gradients of what `pool` fills. The rows found are pinned. Uses of a row are added in
        float32 in the order of features, samples and keys, in pieces of 512: the same bits on every run. Waits for the
        device once, to know how many rows there are. Raises WrongShape as `pool`.
        """
        table, blocks = self._table(pooled, sequences, k.TOUCHED | k.PINNED)
        n, count = self.positions, len(self.features)
        if n == 0:
            return [], [Absent(0, 0)] * count
        empty, counts = self.launcher.empty, self._zero_counts()
        ids, spots = empty(n, np.uint32), empty((n, 4), np.int32)
        self._launch(BACKWARD, "place_uses", blocks * BLOCK_THREADS, table, count, ids, spots, counts)
        order = self.launcher.stable_order(ids)
        tables = len(self._tables)
        ordered, heads, starts = empty(n, np.uint32), empty(n, np.int32), empty(n + 1, np.int32)
        # what the host has to know, in one array: the segments before each table's, how many extra pieces, the counts
        known = self.launcher.zeros(tables + 1, np.int32)
        self._launch(BACKWARD, "mark_heads", n, ids, order, n, ordered, heads)
        number = self.launcher.running_sum(heads)
        first_id = self.launcher.to_device(self._first_id)
        self._launch(BACKWARD, "find_segments", n, ordered, number, n, first_id, tables, starts, known)
        extra = empty(n, np.int32)
        self._launch(BACKWARD, "count_extra", n, starts, known[tables:], n, extra)
        last = self.launcher.running_sum(extra)
        bounds = self.launcher.to_host(known)
        pieces = int(self.launcher.to_host(last[n - 1 :])[0])
        absent = self._absent(self.launcher.to_host(counts))
        return self._summed(table, spots, order, ordered, starts, extra, last, bounds, pieces), absent

    def unpin(self) -> None:
        """Let the rows of the batch be evicted again."""
        for table in self._tables:
            table.unpin()

    # --- inside ---

    def _summed(
        self,
        table: DeviceArray,
        spots: DeviceArray,
        order: DeviceArray,
        ordered: DeviceArray,
        starts: DeviceArray,
        extra: DeviceArray,
        last: DeviceArray,
        bounds: AnyArray,
        pieces: int,
    ) -> list[RowGradients]:
        shares = np.zeros(len(self._tables), _SHARE)
        results, blocks = [], 0
        rows = self.launcher.empty(int(bounds[-1]), np.int32)
        for share, of, first_id, first, end in zip(
            shares, self._tables, self._first_id, bounds[:-1], bounds[1:], strict=True
        ):
            sums = self.launcher.empty((int(end - first), of.dim), np.float32)
            results.append(RowGradients(of, rows[first:end], sums))
            share["data"], share["sums"] = self.launcher.address(of.data), self.launcher.address(sums)
            share["first_id"], share["first_segment"], share["segments"] = first_id, first, end - first
            share["first_block"], share["dim"], share["stride"] = blocks, of.dim, of.stride
            blocks += -(-int(end - first) * of.lanes // BLOCK_THREADS)
        device, tables = self.launcher.to_device(shares.view(np.uint8)), len(shares)
        sorted_uses = (spots, order, ordered, starts)
        self._launch(BACKWARD, "sum_segments", blocks * BLOCK_THREADS, table, device, tables, *sorted_uses)
        if pieces:
            widest = max(of.dim for of in self._tables)
            segment_of = self.launcher.empty(pieces, np.int32)
            partial = self.launcher.empty((pieces, widest), np.float32)
            self._launch(BACKWARD, "find_extra", int(bounds[-1]), extra, last, int(bounds[-1]), segment_of)
            more = (extra, last, segment_of, pieces, widest, partial)
            self._launch(BACKWARD, "sum_extra", pieces * 32, table, device, tables, *sorted_uses, *more)
            self._launch(BACKWARD, "add_extra", pieces * 32, device, tables, *more)
        self._launch(BACKWARD, "copy_rows_of", int(bounds[-1]), device, tables, ordered, starts, int(bounds[-1]), rows)
        return [result for result in results if result.rows.size]

    def _table(
        self, pooled: DeviceArray | None, sequences: Sequence[DeviceArray], touch: int
    ) -> tuple[DeviceArray, int]:
        """The table of features on the device, and the blocks of a launch over it. pooled: None where none is read."""
        table = np.zeros(len(self.features), _FEATURE)
        ids = dict(zip(map(id, self._tables), self._first_id, strict=True))
        column, position, block, rest = 0, 0, 0, iter(sequences)
        for entry, bags in zip(table, self.features, strict=True):
            of, address = bags.table, self.launcher.address
            values, at = (next(rest, None), 0) if bags.combiner is None else (pooled, 4 * column)
            width = 0 if values is None else int(values.shape[1])
            entry["index"], entry["index_size"] = address(of.index), of.index_size
            entry["data"], entry["flags"] = address(of.data), address(of.flags)
            entry["keys"], entry["offsets"] = address(bags.keys), address(bags.offsets)
            entry["weights"] = 0 if bags.weights is None else address(bags.weights)
            entry["values"] = 0 if values is None else address(values) + at
            entry["value_stride"], entry["nnz"], entry["bags"] = width, bags.keys.size, bags.bags
            entry["default_key"], entry["padding_key"] = bags.default_key or 0, bags.padding_key or 0
            entry["first_block"], entry["first_position"], entry["first_id"] = block, position, ids[id(of)]
            entry["dim"], entry["stride"], entry["combiner"] = of.dim, of.stride, _COMBINERS[bags.combiner]
            entry["bits"] = (
                _NEGATIVE_KEYS * bags.negative
                | _DEFAULT_KEY * (bags.default_key is not None)
                | _PADDING_KEY * (bags.padding_key is not None)
                | _ALIGNED * (width % 4 == 0 and int(entry["values"]) % 16 == 0)
            )
            entry["max_norm"], entry["absent"], entry["touch"] = bags.max_norm or 0, bags.absent, touch
            column += of.dim if bags.combiner is not None else 0
            position += bags.positions
            # bags, or for a sequence its keys, a lane each
            threads = bags.bags * of.lanes if bags.combiner is not None else -(-bags.keys.size // of.lanes) * of.lanes
            block += -(-threads // BLOCK_THREADS)
        return self.launcher.to_device(table.view(np.uint8)), block

    def _zero_counts(self) -> DeviceArray:
        return self.launcher.zeros((len(self.features), len(_COUNTS)), np.int32)

    def _absent(self, counts: AnyArray) -> list[Absent]:
        for bags, (_, _, faults) in zip(self.features, counts, strict=True):
            if faults:
                raise WrongShape(
                    f"feature {bags.name!r}: {faults} bags or weights are wrong: offsets run from 0 to the number of "
                    f"keys ({bags.keys.size}) and never fall, weights are finite"
                )
        return [Absent(int(keys), int(defaults)) for keys, defaults, _ in counts]

    def _launch(self, module: Module, kernel: str, threads: int, *arguments: object) -> None:
        self.launcher.launch(module, kernel, threads, *arguments)
