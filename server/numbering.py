"""The distinct rows of a push's shares, one share after the other in one array of each kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rockbed.addresses import address_of
from rockbed.storage.distinct_kernels import slots_for
from rockbed.storage.hot import HotTable
from rockbed.types import I32, I64, U8


@dataclass(slots=True)
class Numbered:
    """To be filled by kernels of batch_kernels: `number_rows` there says what the arrays are.

    firsts: where the positions of each share begin, and the end of the last; words: the same of the words of `fresh`,
    of which the journal takes whole ones; starts: the same of the slots of each.
    """

    firsts: list[int]
    words: list[int]
    starts: list[int]
    slots: I32
    rows: I64
    keys: I64
    fresh: U8
    counts: I64

    @classmethod
    def of(cls, sizes: Sequence[int]) -> "Numbered":
        """sizes: how many positions each share has."""
        firsts = list(accumulate(sizes, initial=0))
        words = list(accumulate((-(-size // 8) for size in sizes), initial=0))
        starts = list(accumulate(map(slots_for, sizes), initial=0))
        n, slots = firsts[-1], np.empty(starts[-1], np.int32)
        fresh, counts = np.zeros(8 * words[-1], np.uint8), np.empty(len(sizes), np.int64)
        return cls(firsts, words, starts, slots, np.empty(n, np.int64), np.empty(n, np.int64), fresh, counts)

    def share(self, i: int, table: HotTable, rows: I64, keys: int) -> tuple[int, ...]:
        """What batch_kernels.SHARE says of share i. rows: of each position; keys: the address of theirs."""
        start, end = self.starts[i : i + 2]
        slots = address_of(self.slots) + 4 * start, end - start
        of_table = table.flags_address, table.capacity
        return address_of(rows), keys, rows.size, *slots, *of_table, self.firsts[i], 8 * self.words[i]

    def of_share(self, i: int, count: int) -> tuple[I64, I64, U8]:
        """The rows of share i, `count` of them, their keys, and which are fresh, as of entries.Section."""
        low, fresh = self.firsts[i], 8 * self.words[i]
        end = low + count
        return self.rows[low:end], self.keys[low:end], self.fresh[fresh : fresh + count + -count % 8]
