"""The gradients of a push brought together by row: those of all groups at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rockbed.addresses import address_of
from rockbed.parallel import in_runs
from rockbed.requests import Gradients
from rockbed.server.bag_gradients import BagGradients, BagSums
from rockbed.server.numbering import Numbered
from rockbed.storage import batch_kernels as k
from rockbed.storage.hot import HotTable
from rockbed.types import F32, I32, I64, U8

_BLOCK_ROWS = 4096  # to be shared out among threads

BagShare = tuple[HotTable, I64, BagGradients]
"""A group's share of a push: its table, the row of each position, int64[n], -1 for none, and the gradients."""

KeyShare = tuple[HotTable, I64, Gradients | BagGradients]
"""The same, with a gradient for each key: bags are `alone`."""


@dataclass(slots=True)
class Summed:
    """rows, keys: int64[m], the distinct rows of a share, and their keys; fresh: of those, as of entries.Section;
    grads: float32[m, dim], or to be summed when they are used. finite: whether all of them surely are, and what was
    given for positions that have no row."""

    rows: I64
    keys: I64
    fresh: U8
    grads: F32 | BagSums
    finite: bool


def by_row(shares: Sequence[KeyShare]) -> list[Summed]:
    """Sum the gradients of each row, those of a share by one thread. With the groups' locks held."""
    of = Numbered.of([rows.size for _, rows, _ in shares])
    sources = [_source(given) for _, _, given in shares]
    dims = [source[-1] for source in sources]
    floats = list(accumulate((rows.size * dim for (_, rows, _), dim in zip(shares, dims, strict=True)), initial=0))
    sums, finite = np.empty(floats[-1], np.float32), np.empty(len(shares), np.bool_)
    begin = address_of(sums)
    work: list[tuple[int, ...]] = []
    for i, ((table, rows, given), source, at) in enumerate(zip(shares, sources, floats, strict=False)):
        keys = given.addresses.keys if isinstance(given, BagGradients) else address_of(given.keys)
        work.append((*source, begin + 4 * at, *of.share(i, table, rows, keys)))
    todo, results = np.array(work, k.GRADIENTS), (of.rows, of.keys, of.fresh, of.counts, finite)
    in_runs(of.firsts[:-1], of.firsts[-1], lambda start, end: k.sum_gradients(todo, start, end, *results))
    found = []
    for i, (count, is_finite) in enumerate(zip(of.counts.tolist(), finite.tolist(), strict=True)):
        mine = sums[floats[i] : floats[i] + count * dims[i]].reshape(count, dims[i])
        found.append(Summed(*of.of_share(i, count), mine, is_finite))
    return found


def _source(given: Gradients | BagGradients) -> tuple[int, int, int, int, int]:
    """Where the gradients of a KeyShare lie, and their dim, as batch_kernels.GRADIENTS says it."""
    if isinstance(given, BagGradients):
        return given.addresses.values, given.grads.values.size, given.addresses.at, given.grads.at.size, given.dim
    return address_of(given.grads), given.grads.size, 0, 0, given.grads.shape[1]


def bags_by_row(shares: Sequence[BagShare]) -> list[Summed]:
    """Sum the gradients of each row, or leave that for later where the journal takes fewer bytes for it than for the
    sums. With the groups' locks held."""
    of = Numbered.of([rows.size for _, rows, _ in shares])
    n, firsts = of.firsts[-1], of.firsts[:-1]
    first, inverse, order = np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n, np.int32)
    starts = np.zeros(n + len(shares), np.int64)
    work = np.array(
        [of.share(i, table, rows, given.addresses.keys) for i, (table, rows, given) in enumerate(shares)], k.SHARE
    )
    results = first, inverse, order, starts, of.rows, of.keys, of.fresh, of.counts
    in_runs(firsts, n, lambda start, end: k.number_rows(work, start, end, *results))
    counts = of.counts.tolist()
    later: dict[int, BagSums] = {}
    for i, ((_, _, given), low, end, count) in enumerate(zip(shares, firsts, of.firsts[1:], counts, strict=True)):
        if given.are_fewer_than(count):
            sums = BagSums(
                inverse[low:end],
                given.bag,
                given.sizes,
                given.weights,
                given.grads,
                given.limits,
                order[low:end],
                starts[low + i : low + i + count + 1],
            )
            kept = sums.for_journal()
            if kept is not None:
                later[i] = kept
    now = _summed(shares, [i for i in range(len(shares)) if i not in later], of, counts, order, starts)
    return [
        Summed(*of.of_share(i, count), later[i], True) if i in later else Summed(*of.of_share(i, count), *next(now))
        for i, count in enumerate(counts)
    ]


def _summed(
    shares: Sequence[BagShare], wanted: Sequence[int], of: Numbered, counts: Sequence[int], order: I32, starts: I64
) -> Iterator[tuple[F32, bool]]:
    """Of each of the wanted shares the sums, float32[m, dim], and whether they are finite."""
    sizes = [counts[i] * shares[i][2].dim for i in wanted]
    sums = np.empty(sum(sizes), np.float32)
    out = address_of(sums)
    blocks: list[tuple[int, ...]] = []
    begins: list[int] = []
    ends: list[int] = []  # of each share, among the blocks
    rows = 0
    for i, size in zip(wanted, sizes, strict=True):
        table, _, given = shares[i]
        of_share = *_bags(given, of.firsts[i], of.firsts[i] + i), *table.data_addresses
        for low in range(0, max(1, counts[i]), _BLOCK_ROWS):
            high = min(low + _BLOCK_ROWS, counts[i])
            blocks.append((*of_share, low, high, out + 4 * given.dim * low))
            begins.append(rows + low)
        ends.append(len(blocks))
        rows, out = rows + counts[i], out + 4 * size
    work, finite = np.array(blocks, k.BLOCK), np.empty(len(blocks), np.bool_)
    in_runs(begins, rows, lambda start, end: k.sum_blocks(work, start, end, order, starts, of.rows, finite))
    are_finite, start, at = finite.tolist(), 0, 0
    for i, size, end in zip(wanted, sizes, ends, strict=True):
        yield sums[at : at + size].reshape(counts[i], shares[i][2].dim), all(are_finite[start:end])
        start, at = end, at + size


def _bags(given: BagGradients, first: int, number: int) -> tuple[int, ...]:
    """What batch_kernels.BLOCK says of a share's bags. first, number: see there."""
    of, grads = given.addresses, given.grads
    weights = address_of(given.weights), given.weights.size
    source = of.values, grads.values.size, of.at, grads.at.size, address_of(grads.scale), grads.scale.size
    return of.bag, given.bag.size, first, number, *weights, *source, address_of(given.limits), given.limits.size
