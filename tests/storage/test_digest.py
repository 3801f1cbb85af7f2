"""The journal's checksum, against its definition in plain integers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rockbed.storage.digest import digest
from tests.splitmix import MASK, mix64

P1, P2 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F
WORDS = st.lists(st.integers(0, MASK), max_size=40)


def _specification(words: list[int]) -> int:
    lanes = [P1, P2, P1 ^ P2, (P1 + (P2 >> 1)) & MASK, len(words)]
    for i, word in enumerate(words):
        x = (lanes[i % 4] + word * P2) & MASK
        lanes[i % 4] = (((x << 31) | (x >> 33)) & MASK) * P1 & MASK
    result = 0
    for i, lane in enumerate(lanes):
        result = mix64(result ^ mix64((lane + i) & MASK))
    return result


@given(WORDS, st.lists(st.integers(0, 40), max_size=4))
def test_the_digest_is_as_specified_however_the_words_are_cut(words: list[int], cuts: list[int]) -> None:
    array = np.array(words, np.uint64)
    pieces = np.split(array, sorted(min(cut, len(words)) for cut in cuts))
    assert digest([array]) == digest(pieces) == digest([array.tobytes()]) == _specification(words)


def test_golden_digest() -> None:
    assert digest([]) == 0x28AA664B8546938C
    assert digest([b"Rockbed!"]) == 0xE608514826455E13
    assert digest([np.arange(9)]) == 0x23FA3D78728A6282
    assert digest([bytes(range(16)), bytes(range(16, 40))]) == 0x74FA581DB27C6E23


def test_zeros_of_different_length_differ() -> None:
    assert len({digest([bytes(8 * n)]) for n in range(50)}) == 50
