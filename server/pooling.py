"""Lookups of bags of keys: the features of a batch in one go where all they need is to read rows in memory, the others
each on its own."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from rockbed.addresses import Addresses
from rockbed.guarded_lock import all_shared
from rockbed.interrupts import Uninterrupted
from rockbed.parallel import GRAIN, in_runs, spread
from rockbed.server.bags import CleanBags
from rockbed.server.fetched import find_in
from rockbed.server.group import Group
from rockbed.server.lookups import absent_keys, look_up_absent, may_only_read, must_change, with_rows
from rockbed.server.seen import Seen
from rockbed.storage import bag_kernels, batch_kernels
from rockbed.types import F32, I64

Place = tuple[F32, int]
"""An array that takes results, float32[bags, width], C-contiguous, and the first of the columns that are for them."""

Wanted = tuple[Group, CleanBags, Place]
"""A feature of a batch: what to look up, and where to put it."""

_ALONE_ROWS = 1024  # that are found in memory take as long as what a feature waits for on its own: the disk
_NO_ROWS = np.empty((0, 0), np.float32)


def pool_all(wanted: Mapping[int, Wanted], seen: dict[int, Seen], *, train: bool) -> None:
    """Fill the place of each feature with the combined rows of its bags: out[b, column : column + dim]. Takes locks.

    wanted: by the number of the feature. seen: gets the row of each key, -1 where it is not in memory.
    train: as of lookups.lookup.
    """

    def alone(number: int) -> None:
        group, bags, place = wanted[number]
        seen[number] = _pool(group, bags, *place, train=train)

    with Uninterrupted():  # what other threads write to must not go away before they have ended
        seen.update(_pool_together(wanted, train=train))
        rest = [number for number in wanted if number not in seen]
        spread([(_ALONE_ROWS + wanted[number][1].keys.size, partial(alone, number)) for number in rest])


# --- together ---


def _pool_together(wanted: Mapping[int, Wanted], *, train: bool) -> dict[int, Seen]:
    """Look up the features for which no row has to be changed first. Returns where their rows are."""
    wanted = {
        number: (group, bags, place)
        for number, (group, bags, place) in wanted.items()
        if may_only_read(group, train=train) and (bags.pruned or group.config.padding_key is None)
    }
    if not wanted:
        return {}
    groups = {group.number: group for group, _, _ in wanted.values()}
    seen: dict[int, Seen] = {}
    lacking: list[tuple[int, Callable[[], None]]] = []
    now_ms = next(iter(groups.values())).host.now_ms()  # they have one host

    def complete(number: int, rows: I64) -> None:
        group, bags, place = wanted[number]
        seen[number] = _pool_absent(group, bags, rows, now_ms, *place, train=train)

    in_order = [group for _, group in sorted(groups.items())]  # in which pushes take their locks
    with all_shared(group.lock for group in in_order):
        for group in in_order:
            group.must_be_in_memory()
        for number, (rows, missing, expired) in zip(wanted, _find_and_pool(list(wanted.values()), now_ms), strict=True):
            group, _, _ = wanted[number]
            if must_change(group, missing, expired, train=train):
                continue
            group.count_lookup(rows.size, rows.size - missing - expired)
            if missing + expired:
                lacking.append((_ALONE_ROWS + rows.size, partial(complete, number, rows)))
            else:
                seen[number] = Seen(group.table, group.table.left, rows)
    spread(lacking)
    return seen


def _find_and_pool(wanted: Sequence[Wanted], now_ms: int) -> list[tuple[I64, int, int]]:
    """For each feature the row of each key, and how many keys have none, and one that has expired; where all have one
    the place is filled. With the locks of the groups shared."""
    pieces: list[tuple[Any, ...]] = []
    begins: list[int] = []  # of each piece, the number of its first key
    firsts, features = [0], [0]  # of each feature, the number of its first key, and of its first piece
    places = Addresses()  # the features that are pooled have theirs in one array
    for group, bags, (out, column) in wanted:
        group.table.calls += 1
        place = places.of(out), out.shape[1], column
        of_feature = (*group.table.addresses, group.oldest_ms(now_ms), *_described(bags), *place, firsts[-1])
        limit = bags.max_norm or 0
        for low, high in _cuts(bags):
            pieces.append((*of_feature, low, high, limit))
            begins.append(firsts[-1] + int(bags.offsets[low]))
        firsts.append(firsts[-1] + bags.keys.size)
        features.append(len(pieces))
    rows, absent = np.empty(firsts[-1], np.int64), np.empty((len(pieces), 2), np.int64)
    work = np.array(pieces, batch_kernels.PIECE)
    touch = max(group.table.touching for group, _, _ in wanted)
    in_runs(
        begins,
        rows.size,
        lambda start, end: batch_kernels.find_and_pool(work, start, end, touch, _NO_ROWS, rows, absent),
    )
    totals = np.add.reduceat(absent, features[:-1]).tolist()
    return [(rows[firsts[i] : firsts[i + 1]], missing, expired) for i, (missing, expired) in enumerate(totals)]


def _described(bags: CleanBags) -> tuple[int, ...]:
    """What batch_kernels.PIECE says of a feature's arrays."""
    return *bags.addresses, bags.keys.size, bags.count, bags.weights.size, bags.scale.size, not bags.are_rows


def _cuts(bags: CleanBags) -> Sequence[tuple[int, int]]:
    """The bags of a feature in runs that are worth a thread, one at least: each begins with waiting for its rows."""
    n = bags.keys.size // GRAIN
    if n <= 1:
        return ((0, bags.count),)
    cuts = np.searchsorted(bags.offsets[1:-1], np.arange(1, n) * GRAIN) + 1
    ends = sorted({0, bags.count, *cuts.tolist()})
    return list(pairwise(ends))


# --- on its own ---


def _pool(group: Group, bags: CleanBags, out: F32, column: int, *, train: bool) -> Seen:
    now_ms = group.host.now_ms()

    def combine(rows: I64, missing: int) -> tuple[I64, int, int]:
        if not missing:
            _combine(group, bags, rows, np.empty((0, group.config.dim), np.float32), out, column)
        return rows, missing, group.table.left

    rows, missing, left = with_rows(group, bags.keys, now_ms, combine, train=train)
    if missing:
        return _pool_absent(group, bags, rows, now_ms, out, column, train=train)
    return Seen(group.table, left, rows)


def _pool_absent(group: Group, bags: CleanBags, rows: I64, now_ms: int, out: F32, column: int, *, train: bool) -> Seen:
    """As `_pool`, where some keys have no row in memory. rows: of each key, -1 for those."""
    _, distinct, _, counts = absent_keys(group, bags.keys, rows)
    weights = look_up_absent(group, distinct, counts, now_ms, train=train)
    while True:
        with group.lock:
            group.must_be_in_memory()
            left = group.table.left
            rows, _ = group.table.find(bags.keys)
            group.hide_padding(bags.keys, rows)
            group.expire(bags.keys, rows, now_ms, restart=train)
            positions, absent, inverse, counts = absent_keys(group, bags.keys, rows)
            at, known = find_in(distinct, absent)
            if known.all():
                seen = Seen(group.table, left, rows.copy(), positions.size == 0)
                rows[positions] = -2 - at[inverse]
                _combine(group, bags, rows, weights, out, column)
                return seen
        # Rows that were there a moment ago have made room for others meanwhile. What is known of keys only grows.
        more = absent[~known]
        found = look_up_absent(group, more, counts[~known], now_ms, train=train)
        distinct, weights = np.concatenate([distinct, more]), np.concatenate([weights, found])
        order = np.argsort(distinct)
        distinct, weights = distinct[order], weights[order]


def _combine(group: Group, bags: CleanBags, rows: I64, absent: F32, out: F32, column: int) -> None:
    table, dim, limit = group.table, group.config.dim, bags.max_norm
    plain = not absent.size and not bags.weights.size and limit is None
    if plain and bags.are_rows:
        table.gather(rows, out)
        return

    def combine(low: int, high: int) -> None:
        to = dim, out, column, low, high
        if plain:
            bag_kernels.pool_rows(table.data, rows, bags.offsets, bags.scale, *to)
        else:
            most = np.float32(limit or 0)
            bag_kernels.pool(table.data, absent, rows, bags.offsets, bags.weights, bags.scale, most, *to)

    in_runs(bags.offsets[:-1], rows.size, combine)
