"""The journal's checksum, against its definition in plain integers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rockbed.storage.digest import digest

M = 2**64 - 1
P1, P2 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F
WORDS = st.lists(st.integers(0, M), max_size=40)


def _mix64(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & M
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & M
    return x ^ (x >> 31)


def _specification(words: list[int]) -> int:
    lanes = [P1, P2, P1 ^ P2, (P1 + (P2 >> 1)) & M, len(words)]
    for i, word in enumerate(words):
        x = (lanes[i % 4] + word * P2) & M
        lanes[i % 4] = (((x << 31) | (x >> 33)) & M) * P1 & M
    result = 0
    for i, lane in enumerate(lanes):
        result = _mix64(result ^ _mix64((lane + i) & M))
    return result


@given(WORDS, st.lists(st.integers(0, 40), max_size=4))
def test_the_digest_is_as_specified_however_the_words_are_cut(words: list[int], cuts: list[int]) -> None:
    array = np.array(words, np.uint64)
    pieces = np.split(array, sorted(min(cut, len(words)) for cut in cuts))
    assert digest([array]) == digest(pieces) == digest([array.tobytes()]) == _specification(words)


def test_golden_digest() -> None:
    assert digest([]) == _specification([])
    assert digest([b"Rockbed!"]) == _specification([int.from_bytes(b"Rockbed!", "little")])


def test_zeros_of_different_length_differ() -> None:
    assert len({digest([bytes(8 * n)]) for n in range(50)}) == 50
