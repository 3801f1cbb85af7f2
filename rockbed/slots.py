"""Slots: each key of a group is in one of 16,384, by which rows are sorted on disk and divided among storages.

rockbed.kernels.mix64 is the same for compiled loops; this one is for whole arrays, and needs numpy alone.
"""

import numpy as np

from rockbed.types import I64, U64

SLOTS = 1 << 14


def mix64(values: U64) -> U64:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014; Stafford's variant 13): one to one."""
    z = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = z ^ (z >> np.uint64(31))
    return mixed


def slots_of(keys: I64) -> I64:
    """The slot of each key, 0..16383: the low bits of its mix64."""
    slots: I64 = (mix64(keys.view(np.uint64)) & np.uint64(SLOTS - 1)).astype(np.int64)
    return slots
