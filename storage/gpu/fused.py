"""Fused batches on the device: all features pooled in one launch, and their gradients summed to one per row.

The kernels are in pool.cu and backward.cu; this file writes the tables that they read and decides what is launched.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rockbed.bags import refuse
from rockbed.errors import BatchTooLarge, WrongShape
from rockbed.storage import hot_kernels as k
from rockbed.storage.gpu.launcher import DeviceArray, Launcher
from rockbed.storage.gpu.sources import BACKWARD, BLOCK_THREADS, POOL, TABLE
from rockbed.storage.gpu.table import DeviceTable
from rockbed.types import I64, AnyArray

_COMBINERS = {"sum": 0, "mean": 1, "sqrtn": 2, None: 3}
_NEGATIVE_KEYS, _DEFAULT_KEY, _PADDING_KEY, _ALIGNED = 1, 2, 4, 8
_IDS_MAX, _NO_ROW = 2**32 - 2, 2**32 - 1  # `NONE` of backward.cu

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
_WRONG, _FAR = 1, 2  # `Fault` of features.cuh


class FarWeights(Exception):
    """Internal: weights that nobody has looked at are too far from 1 to be added up as they are; nothing was done.

    features: which, by their places in the batch.
    """

    def __init__(self, features: list[int]) -> None:
        super().__init__()
        self.features = features


@dataclass(frozen=True, slots=True)
class DeviceBags:
    """One feature's share of a batch, as rockbed.bags.Bags, with its arrays on the device and its group's table.

    keys: int64[nnz]; offsets: int64[bags + 1]; weights: float32[nnz] or None. padding_key: the group's, as the bits of
    an int64. absent: each weight of a key that has no row. checked: whether offsets and weights were looked at before
    they came here. Whatever the kernels read of them they check.
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
    checked: bool = True

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


@dataclass(frozen=True, slots=True)
class _Features:
    """The table of features on the device; the blocks of a launch over it; whether all values lie at 16 bytes."""

    table: DeviceArray
    blocks: int
    aligned: bool


@dataclass(frozen=True, slots=True)
class _Sorted:
    """The uses of a batch, those of a row together: backward.cu says what each array is.

    bounds: the segments before those of each table, and all; pieces: how many there are besides the first of each row.
    """

    spots: DeviceArray
    order: DeviceArray
    ids: DeviceArray
    starts: DeviceArray
    extra: DeviceArray
    last: DeviceArray
    bounds: list[int]
    pieces: int


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
        float32[nnz, dim] for each of the others, filled. pin: the rows found stay until `unpin`. Raises what
        check_arrays raises for offsets that lead nowhere and weights that are not finite, FarWeights; the result means
        nothing then.
        """
        self._must_fit(pooled, sequences)
        features = self._described(pooled, sequences, k.TOUCHED | (k.PINNED if pin else 0))
        counts = self._zero_counts()
        threads = features.blocks * BLOCK_THREADS
        self.launcher.launch(POOL, "pool", threads, features.table, len(self.features), counts)
        self._check_offsets(features, counts)
        return self._absent(self.launcher.to_host(counts))

    def absent_keys(self, feature: int, found: Absent) -> tuple[I64, I64]:
        """The distinct keys of a feature that have no row, ascending, its default key included, and how often each is
        used: int64[n] both, on the host.

        found: what `pool` or `gradients` said of it. Waits for the device.
        """
        bags = self.features[feature]
        absent: I64 = np.full(found.defaults, bags.default_key or 0, np.int64)
        if found.keys:
            n, marks = bags.keys.size, self.launcher.empty(bags.keys.size, np.int32)
            table = self._described(None, (), k.TOUCHED).table
            self.launcher.launch(POOL, "mark_absent", n, table, feature, marks)
            rank = self.launcher.running_sum(marks)
            # not found.keys: should the keys have changed since, the kernel would write beyond its array
            keys = self.launcher.empty(int(self.launcher.to_host(rank[n - 1 :])[0]), np.int64)
            self.launcher.launch(TABLE, "collect_keys", n, bags.keys, marks, rank, n, keys)
            absent = np.concatenate([self.launcher.to_host(keys), absent])
        distinct, counts = np.unique(absent, return_counts=True)
        return distinct, counts

    def gradients(
        self, pooled: DeviceArray, sequences: Sequence[DeviceArray]
    ) -> tuple[list[RowGradients], list[Absent]]:
        """The gradient of each row that the batch uses, and what was absent, by feature: those uses give none.

        pooled, sequences: the gradients of what `pool` fills. The rows found are pinned until `unpin`. Uses of a row
        are added in float32 in the order of features, samples and keys, in pieces of 512: the same bits on every run.
        Waits for the device half-way, to know how many rows there are. Raises as `pool`.
        """
        self._must_fit(pooled, sequences)
        features = self._described(pooled, sequences, k.TOUCHED | k.PINNED)
        counts = self._zero_counts()
        self._check_offsets(features, counts)
        if self.positions == 0:
            return [], self._absent(self.launcher.to_host(counts))
        uses = self._sorted(features, counts)
        absent = self._absent(self.launcher.to_host(counts))
        return self._summed(features, uses), absent

    def unpin(self) -> None:
        """Let the rows of the batch be evicted again."""
        for table in self._tables:
            table.unpin()

    # --- inside ---

    def _must_fit(self, pooled: DeviceArray, sequences: Sequence[DeviceArray]) -> None:
        # The kernels do not check these. Callers make them; this catches our own mistakes.
        bags = [each for each in self.features if each.combiner is not None]
        if bags:
            assert pooled.dtype == np.float32
            assert pooled.shape == (bags[0].bags, sum(each.table.dim for each in bags))
        others = [each for each in self.features if each.combiner is None]
        assert [each.shape for each in sequences] == [(each.keys.size, each.table.dim) for each in others]
        assert all(each.dtype == np.float32 for each in sequences)

    def _sorted(self, features: _Features, counts: DeviceArray) -> _Sorted:
        launch, empty, n = self.launcher.launch, self.launcher.empty, self.positions
        ids, spots = empty(n, np.uint32), empty((n, 4), np.int32)
        ids[...] = _NO_ROW  # each is written, unless offsets are wrong, or change while they are read
        threads = features.blocks * BLOCK_THREADS
        launch(BACKWARD, "place_uses", threads, features.table, len(self.features), ids, spots, counts)
        order = self.launcher.stable_order(ids)
        ordered, heads = empty(n, np.uint32), empty(n, np.int32)
        launch(BACKWARD, "mark_heads", n, ids, order, n, ordered, heads)
        number, tables = self.launcher.running_sum(heads), len(self._tables)
        starts, bounds = empty(n + 1, np.int32), self.launcher.zeros(tables + 1, np.int32)
        first_id = self.launcher.to_device(self._first_id)
        launch(BACKWARD, "find_segments", n, ordered, number, n, first_id, tables, starts, bounds)
        extra = empty(n, np.int32)
        launch(BACKWARD, "count_extra", n, starts, bounds[tables:], n, extra)
        last = self.launcher.running_sum(extra)
        known = self.launcher.to_host(bounds).tolist()
        pieces = int(self.launcher.to_host(last[n - 1 :])[0])
        return _Sorted(spots, order, ordered, starts, extra, last, known, pieces)

    def _summed(self, features: _Features, uses: _Sorted) -> list[RowGradients]:
        launch, empty, total = self.launcher.launch, self.launcher.empty, uses.bounds[-1]
        shares, rows, results, blocks = np.zeros(len(self._tables), _SHARE), empty(total, np.int32), [], 0
        ranges = zip(uses.bounds[:-1], uses.bounds[1:], strict=True)
        for share, of, first_id, (first, end) in zip(shares, self._tables, self._first_id, ranges, strict=True):
            sums = empty((end - first, of.dim), np.float32)
            results.append(RowGradients(of, rows[first:end], sums))
            share["data"], share["sums"] = self.launcher.address(of.data), self.launcher.address(sums)
            share["first_id"], share["first_segment"], share["segments"] = first_id, first, end - first
            share["first_block"], share["dim"], share["stride"] = blocks, of.dim, of.stride
            blocks += -(-(end - first) * of.lanes // BLOCK_THREADS)
        table = self.launcher.to_device(shares.view(np.uint8)), len(shares)
        common = (features.table, features.aligned, *table, uses.spots, uses.order, uses.ids, uses.starts)
        launch(BACKWARD, "sum_segments", blocks * BLOCK_THREADS, *common)
        if uses.pieces:
            widest = max(of.dim for of in self._tables)
            segment_of, partial = empty(uses.pieces, np.int32), empty((uses.pieces, widest), np.float32)
            launch(BACKWARD, "find_extra", total, uses.extra, uses.last, total, segment_of)
            more = (uses.extra, uses.last, segment_of, uses.pieces, widest, partial)
            launch(BACKWARD, "sum_extra", uses.pieces * 32, *common, *more)
            launch(BACKWARD, "add_extra", uses.pieces * 32, *table, *more)
        launch(BACKWARD, "copy_rows_of", total, *table, uses.ids, uses.starts, total, rows)
        return [result for result in results if result.rows.size]

    def _described(self, pooled: DeviceArray | None, sequences: Sequence[DeviceArray], touch: int) -> _Features:
        # pooled: None where no values are read or written
        table = np.zeros(len(self.features), _FEATURE)
        ids = dict(zip(map(id, self._tables), self._first_id, strict=True))
        address, column, position, block, rest = self.launcher.address, 0, 0, 0, iter(sequences)
        for entry, bags in zip(table, self.features, strict=True):
            of, is_sequence = bags.table, bags.combiner is None
            values = next(rest, None) if is_sequence else pooled
            if values is not None:
                entry["values"] = address(values) + (0 if is_sequence else 4 * column)
                entry["value_stride"] = values.shape[1]
            entry["index"], entry["index_size"] = address(of.index), of.index_size
            entry["data"], entry["flags"] = address(of.data), address(of.flags)
            entry["keys"], entry["offsets"] = address(bags.keys), address(bags.offsets)
            entry["weights"] = 0 if bags.weights is None else address(bags.weights)
            entry["nnz"], entry["bags"] = bags.keys.size, bags.bags
            entry["default_key"], entry["padding_key"] = bags.default_key or 0, bags.padding_key or 0
            entry["first_block"], entry["first_position"], entry["first_id"] = block, position, ids[id(of)]
            entry["dim"], entry["stride"], entry["combiner"] = of.dim, of.stride, _COMBINERS[bags.combiner]
            entry["bits"] = (
                _NEGATIVE_KEYS * bags.negative
                | _DEFAULT_KEY * (bags.default_key is not None)
                | _PADDING_KEY * (bags.padding_key is not None)
                | _ALIGNED * (int(entry["value_stride"]) % 4 == 0 and int(entry["values"]) % 16 == 0)
            )
            entry["max_norm"], entry["absent"], entry["touch"] = bags.max_norm or 0, bags.absent, touch
            column += 0 if is_sequence else of.dim
            position += bags.positions
            # so many lanes for each bag; for a sequence one for each key, in such groups
            threads = -(-bags.keys.size // of.lanes) * of.lanes if is_sequence else bags.bags * of.lanes
            block += -(-threads // BLOCK_THREADS)
        aligned = bool((table["bits"] & _ALIGNED).all())
        return _Features(self.launcher.to_device(table.view(np.uint8)), block, aligned)

    def _zero_counts(self) -> DeviceArray:
        return self.launcher.zeros((len(self.features), len(_COUNTS)), np.int32)

    def _check_offsets(self, features: _Features, counts: DeviceArray) -> None:
        for i, bags in enumerate(self.features):
            if not bags.checked and (bags.combiner is None or bags.bags == 0):
                self.launcher.launch(POOL, "check_offsets", bags.bags + 1, features.table, i, counts)

    def _absent(self, counts: AnyArray) -> list[Absent]:
        for bags, (_, _, faults) in zip(self.features, counts, strict=True):
            if faults & _WRONG:
                self._must_be_sound(bags)
        far = [i for i, bags in enumerate(self.features) if counts[i, 2] & _FAR and not bags.checked]
        if far:
            raise FarWeights(far)
        return [Absent(int(keys), int(defaults)) for keys, defaults, _ in counts]

    def _must_be_sound(self, bags: DeviceBags) -> None:
        # The kernels say that something is wrong; what it is, is said as of arrays in memory.
        offsets = self.launcher.to_host(bags.offsets)
        weights = None if bags.weights is None else self.launcher.to_host(bags.weights)
        refuse(bags.name, bags.keys, offsets, weights)
