"""The gradients of pooled rows, brought together by row: those of all groups of a push at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rockbed.addresses import address_of
from rockbed.parallel import in_runs
from rockbed.server.bag_gradients import BagGradients, BagSums
from rockbed.storage import batch_kernels as k
from rockbed.storage.hot import HotTable
from rockbed.types import F32, I32, I64

_BLOCK_ROWS = 4096  # to be shared out among threads

Share = tuple[HotTable, I64, BagGradients]
"""A group's share of a push: its table, the row of each position, int64[n], -1 for none, and the gradients."""


@dataclass(slots=True)
class Summed:
    """rows, keys: int64[m], the distinct rows of a share, and their keys. grads: float32[m, dim], or to be summed when
    they are used. finite: whether all of them surely are."""

    rows: I64
    keys: I64
    grads: F32 | BagSums
    finite: bool


@dataclass(slots=True)
class _Distinct:
    """The distinct rows of a share. first, number: where its part begins of BagSums.order and of BagSums.starts, among
    those of all shares."""

    rows: I64
    keys: I64
    sums: BagSums
    first: int
    number: int


def by_row(shares: Sequence[Share]) -> list[Summed]:
    """Sum the gradients of each row, or leave that for later where the journal takes fewer bytes for it than for the
    sums. With the groups' locks held."""
    firsts = list(accumulate((rows.size for _, rows, _ in shares), initial=0))
    shape = firsts[-1]
    first, rows, keys = np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.int64)
    inverse, order = np.empty(shape, np.int32), np.empty(shape, np.int32)
    starts, counts = np.zeros(shape + len(shares), np.int64), np.empty(len(shares), np.int64)
    work = np.array(
        [
            (address_of(of), address_of(given.keys), of.size, table.mark_address, table.capacity, begins)
            for (table, of, given), begins in zip(shares, firsts, strict=False)
        ],
        k.SHARE,
    )
    results = first, inverse, order, starts, rows, keys, counts
    in_runs(firsts[:-1], shape, lambda start, end: k.number_rows(work, start, end, *results))
    found: list[_Distinct] = []
    for i, ((_, of, given), low, count) in enumerate(zip(shares, firsts, counts.tolist(), strict=False)):
        at, mine = slice(low, low + of.size), slice(low, low + count)
        numbers = inverse[at], given.bag, given.sizes, given.weights, given.grads, given.limits, order[at]
        sums = BagSums(*numbers, starts[low + i : low + i + count + 1])
        found.append(_Distinct(rows[mine], keys[mine], sums, low, low + i))
    later = [each.sums.for_journal() for each in found]
    now = [i for i, sums in enumerate(later) if sums is None]
    made = iter(_summed([found[i] for i in now], [shares[i][0] for i in now], order, starts, rows))
    return [
        Summed(each.rows, each.keys, sums, True) if sums is not None else Summed(each.rows, each.keys, *next(made))
        for each, sums in zip(found, later, strict=True)
    ]


def _summed(
    wanted: Sequence[_Distinct], tables: Sequence[HotTable], order: I32, starts: I64, rows: I64
) -> list[tuple[F32, bool]]:
    """The sums of each of these, float32[m, dim], and whether they are finite. order, starts, rows: of all shares."""
    sums = [np.empty((each.sums.count, each.sums.dim), np.float32) for each in wanted]
    blocks: list[tuple[int, ...]] = []
    begins: list[int] = []
    firsts, total = [0], 0
    for each, table, out in zip(wanted, tables, sums, strict=True):
        address = address_of(out)
        of = _addresses(each, table)
        for low in range(0, max(1, out.shape[0]), _BLOCK_ROWS):
            high = min(low + _BLOCK_ROWS, out.shape[0])
            blocks.append((*of, low, high, address + 4 * low * each.sums.dim))
            begins.append(total + low)
        total += out.shape[0]
        firsts.append(len(blocks))
    work, finite = np.array(blocks, k.BLOCK), np.empty(len(blocks), np.bool_)
    in_runs(begins, total, lambda start, end: k.sum_blocks(work, start, end, order, starts, rows, finite))
    return [(out, bool(finite[low:high].all())) for out, low, high in zip(sums, firsts, firsts[1:], strict=False)]


def _addresses(each: _Distinct, table: HotTable) -> tuple[int, ...]:
    """What batch_kernels.BLOCK says of a share."""
    sums, grads = each.sums, each.sums.grads
    arrays: list[int] = []
    for array in (sums.weights, grads.values, grads.at, grads.scale, sums.limits):
        arrays += (address_of(array), array.size)
    data = address_of(table.data), table.capacity, table.width
    return (address_of(sums.bag), sums.bag.size, each.first, each.number, *arrays, *data, sums.dim)
