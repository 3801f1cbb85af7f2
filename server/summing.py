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
from rockbed.types import F32, I32, I64, U8

_BLOCK_ROWS = 4096  # to be shared out among threads

Share = tuple[HotTable, I64, BagGradients]
"""A group's share of a push: its table, the row of each position, int64[n], -1 for none, and the gradients."""


@dataclass(slots=True)
class Summed:
    """rows, keys: int64[m], the distinct rows of a share, and their keys; fresh: of those, as of entries.Section;
    grads: float32[m, dim], or to be summed when they are used. finite: whether all of them surely are."""

    rows: I64
    keys: I64
    fresh: U8
    grads: F32 | BagSums
    finite: bool


@dataclass(slots=True)
class _Numbered:
    """The distinct rows of all shares: `number_rows` says what the arrays are.

    firsts, counts: where the positions of each share begin, and how many distinct rows it has.
    """

    firsts: list[int]
    counts: list[int]
    inverse: I32
    order: I32
    starts: I64
    rows: I64
    keys: I64
    fresh: list[U8]

    def sums(self, i: int, given: BagGradients) -> BagSums:
        """What is to be summed for share i."""
        low, count = self.firsts[i], self.counts[i]
        at = slice(low, low + given.keys.size)
        numbers = self.inverse[at], given.bag, given.sizes, given.weights, given.grads, given.limits, self.order[at]
        return BagSums(*numbers, self.starts[low + i : low + i + count + 1])


def by_row(shares: Sequence[Share]) -> list[Summed]:
    """Sum the gradients of each row, or leave that for later where the journal takes fewer bytes for it than for the
    sums. With the groups' locks held."""
    numbered = _numbered(shares)
    later: dict[int, BagSums] = {}
    for i, (_, _, given) in enumerate(shares):
        if given.are_fewer_than(numbered.counts[i]):
            sums = numbered.sums(i, given).for_journal()
            if sums is not None:
                later[i] = sums
    summed = _summed(shares, [i for i in range(len(shares)) if i not in later], numbered)
    found = []
    for i, (low, count, fresh) in enumerate(zip(numbered.firsts, numbered.counts, numbered.fresh, strict=False)):
        mine = numbered.rows[low : low + count], numbered.keys[low : low + count], fresh
        found.append(Summed(*mine, later[i], True) if i in later else Summed(*mine, *summed[i]))
    return found


def _numbered(shares: Sequence[Share]) -> _Numbered:
    firsts = list(accumulate((rows.size for _, rows, _ in shares), initial=0))
    n = firsts[-1]
    first, rows, keys = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    inverse, order = np.empty(n, np.int32), np.empty(n, np.int32)
    starts, counts = np.zeros(n + len(shares), np.int64), np.empty(len(shares), np.int64)
    # the journal takes whole words: each share has some zeros behind
    words = list(accumulate((-(-rows.size // 8) for _, rows, _ in shares), initial=0))
    fresh = np.zeros(8 * words[-1], np.uint8)
    work = [
        (
            address_of(of),
            given.addresses.keys,
            of.size,
            table.mark_address,
            table.flags_address,
            table.capacity,
            low,
            8 * w,
        )
        for (table, of, given), low, w in zip(shares, firsts, words, strict=False)
    ]
    given, results = np.array(work, k.SHARE), (first, inverse, order, starts, rows, keys, fresh, counts)
    in_runs(firsts[:-1], n, lambda start, end: k.number_rows(given, start, end, *results))
    found = counts.tolist()
    parts = [fresh[8 * w : 8 * w - (-count // 8) * 8] for w, count in zip(words, found, strict=False)]
    return _Numbered(firsts[:-1], found, inverse, order, starts, rows, keys, parts)


def _summed(shares: Sequence[Share], wanted: Sequence[int], numbered: _Numbered) -> dict[int, tuple[F32, bool]]:
    """By share, of those that are wanted, the sums, float32[m, dim], and whether they are finite."""
    sizes = [numbered.counts[i] * shares[i][2].dim for i in wanted]
    sums = np.empty(sum(sizes), np.float32)
    out = address_of(sums)
    blocks: list[tuple[int, ...]] = []
    begins: list[int] = []
    ends: list[int] = []  # of each share, among the blocks
    total = 0
    for i, size in zip(wanted, sizes, strict=True):
        table, _, given = shares[i]
        low, count = numbered.firsts[i], numbered.counts[i]
        of_share = *_bags(given, low, low + i), *table.data_addresses
        for start in range(0, max(1, count), _BLOCK_ROWS):
            end = min(start + _BLOCK_ROWS, count)
            blocks.append((*of_share, start, end, out + 4 * given.dim * start))
            begins.append(total + start)
        ends.append(len(blocks))
        total, out = total + count, out + 4 * size
    work, finite = np.array(blocks, k.BLOCK), np.empty(len(blocks), np.bool_)
    arrays = numbered.order, numbered.starts, numbered.rows
    in_runs(begins, total, lambda start, end: k.sum_blocks(work, start, end, *arrays, finite))
    are_finite, found, start, at = finite.tolist(), {}, 0, 0
    for i, size, end in zip(wanted, sizes, ends, strict=True):
        found[i] = sums[at : at + size].reshape(-1, shares[i][2].dim), all(are_finite[start:end])
        start, at = end, at + size
    return found


def _bags(given: BagGradients, first: int, number: int) -> tuple[int, ...]:
    """What batch_kernels.BLOCK says of a share's bags. first, number: see there."""
    of, grads = given.addresses, given.grads
    weights = address_of(given.weights), given.weights.size
    source = of.values, grads.values.size, of.at, grads.at.size, address_of(grads.scale), grads.scale.size
    return of.bag, given.bag.size, first, number, *weights, *source, address_of(given.limits), given.limits.size
