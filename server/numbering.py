"""The distinct rows of a push's shares, one share after the other in one array of each kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rockbed.addresses import address_of
from rockbed.storage.hot import HotTable
from rockbed.types import I64, U8


@dataclass(slots=True)
class Numbered:
    """To be filled by kernels of batch_kernels: `number_rows` there says what the arrays are.

    firsts: where the positions of each share begin, and the end of the last; words: the same of the words of `fresh`,
    of which the journal takes whole ones.
    """

    firsts: list[int]
    words: list[int]
    rows: I64
    keys: I64
    fresh: U8
    counts: I64

    @classmethod
    def of(cls, sizes: Sequence[int]) -> "Numbered":
        """sizes: how many positions each share has."""
        firsts = list(accumulate(sizes, initial=0))
        words = list(accumulate((-(-size // 8) for size in sizes), initial=0))
        n = firsts[-1]
        fresh, counts = np.zeros(8 * words[-1], np.uint8), np.empty(len(sizes), np.int64)
        return cls(firsts, words, np.empty(n, np.int64), np.empty(n, np.int64), fresh, counts)

    def share(self, i: int, table: HotTable, rows: I64, keys: int) -> tuple[int, ...]:
        """What batch_kernels.SHARE says of share i. rows: of each position; keys: the address of theirs."""
        of_table = table.mark_address, table.flags_address, table.capacity
        return address_of(rows), keys, rows.size, *of_table, self.firsts[i], 8 * self.words[i]

    def of_share(self, i: int, count: int) -> tuple[I64, I64, U8]:
        """The rows of share i, `count` of them, their keys, and which are fresh, as of entries.Section."""
        low, fresh = self.firsts[i], 8 * self.words[i]
        end = low + count
        return self.rows[low:end], self.keys[low:end], self.fresh[fresh : fresh + count + -count % 8]
