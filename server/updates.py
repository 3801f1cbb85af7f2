"""Updates of rows with their gradients: what is done when the journal has a push."""

import math
from collections.abc import Callable

import numpy as np

from rockbed.parallel import in_parts
from rockbed.server.bag_gradients import BagSums
from rockbed.server.group import Group
from rockbed.storage import gradient_kernels
from rockbed.storage import hot_kernels as k
from rockbed.storage.distinct_kernels import distinct, slots_for
from rockbed.types import F32, I64

_BLOCK_BYTES = 1 << 19  # of gradients that are summed and used before they leave the cache


def apply(group: Group, rows: I64, grads: F32 | BagSums, sequential: bool, step: int, now_ms: int, lsn: int) -> None:
    """Update rows. With the lock held.

    sequential: rows may repeat and are updated in order; otherwise they are distinct. step: the global step, or -1 for
    each row's own.
    """
    norms: list[tuple[float, float]] = []

    def update(rows: I64, grads: F32) -> None:
        norms.append(_update(group, rows, grads, step, now_ms, lsn))

    if isinstance(grads, BagSums):
        sums = grads
        in_parts(rows.size, lambda part: _in_blocks(group, rows, sums, part, update))
    elif sequential and rows.size:
        found, first, inverse, rank = (np.empty(rows.size, np.int64) for _ in range(4))
        count = distinct(rows, np.empty(slots_for(rows.size), np.int32), found, first, inverse)
        gradient_kernels.occurrence(inverse, count, rank)
        order = np.argsort(rank, kind="stable")  # all first occurrences, then all second ones, ...
        ends = np.cumsum(np.bincount(rank))
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            at = order[start:end]
            update(rows[at], grads[at])
    elif rows.size:
        in_parts(rows.size, lambda part: update(rows[part], grads[part]))
    group.counters.updates += rows.size
    group.counters.gradient_square_sum += sum(total for total, _ in norms)
    group.gradient_norm.note(math.sqrt(max((largest for _, largest in norms), default=0.0)))


def _in_blocks(group: Group, rows: I64, sums: BagSums, part: slice, update: Callable[[I64, F32], None]) -> None:
    # no more gradients at a time than stay in the cache from being summed to being used
    size = max(64, _BLOCK_BYTES // (4 * sums.dim))
    grads = np.empty((min(size, part.stop - part.start), sums.dim), np.float32)
    for low in range(part.start, part.stop, size):
        high = min(low + size, part.stop)
        sums.part(low, high, group.table.data, rows, grads)
        update(rows[low:high], grads[: high - low])


def _update(group: Group, rows: I64, grads: F32, step: int, now_ms: int, lsn: int) -> tuple[float, float]:
    # rows: distinct, so that parts of a batch can be updated side by side
    config, table, lr = group.config, group.table, group.optimizer.lr
    steps, rates = np.empty(rows.size, np.int64), np.empty(rows.size, np.float32)
    with np.errstate(all="ignore"):  # a caller's setting must not make this raise: the journal has the push
        now = now_ms, lsn, step
        norms: tuple[float, float] = gradient_kernels.begin_update(
            table.header, table.flags, rows, grads, *now, lr, steps, rates
        )
        if group.schedule is not None:
            rates = group.schedule.rate(lr, steps - 1).astype(np.float32)
        if config.clip_value is not None:
            limit = np.float32(config.clip_value)
            grads = np.clip(grads, -limit, limit)
        if config.clip_norm is not None:
            grads = grads.copy()
            gradient_kernels.clip_norm(grads, config.clip_norm)
        group.optimizer.apply(table.data, rows, np.ascontiguousarray(grads), rates, steps)
        if config.weight_min is not None or config.weight_max is not None:
            low = -np.inf if config.weight_min is None else config.weight_min
            high = np.inf if config.weight_max is None else config.weight_max
            k.bound_weights(table.data, rows, config.dim, np.float32(low), np.float32(high))
    return norms
