"""rockbed.storage.checksum against the published vectors of XXH64 and against the specification in plain integers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rockbed.kernels import kernel
from rockbed.storage.checksum import xxh64_of
from rockbed.types import U8


@kernel
def xxh64(data: Any, seed: Any) -> Any:
    return xxh64_of(data, 0, data.size, seed)


@kernel
def _hash_of_middle(data: Any, start: int, stop: int) -> Any:
    return xxh64_of(data, start, stop, 5)


PRIMES = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
MASK = (1 << 64) - 1
SELF_TEST_SEED = 0x9E3779B1

# Text vectors as published with many implementations; the others are those of xxHash's own self test.
TEXT_VECTORS = [
    (b"", 0xEF46DB3751D8E999),
    (b"a", 0xD24EC4F1A98C6E5B),
    (b"as", 0x1C330FB2D66BE179),
    (b"asd", 0x631C37CE72A97393),
    (b"asdf", 0x415872F599CEA71E),
    (b"abc", 0x44BC2CF5AD770999),
    (b"Call me Ishmael. Some years ago--never mind how long precisely-", 0x02A2E85470D6FD96),
]
SELF_TEST_VECTORS = [
    (0, 0, 0xEF46DB3751D8E999),
    (0, SELF_TEST_SEED, 0xAC75FDA2929B17EF),
    (1, 0, 0xE934A84ADB052768),
    (1, SELF_TEST_SEED, 0x5014607643A9B4C3),
    (4, 0, 0x9136A0DCA57457EE),
    (14, 0, 0x8282DCC4994E35C8),
    (14, SELF_TEST_SEED, 0xC3BD6BF63DEB6DF0),
    (222, 0, 0xB641AE8CB691C174),
    (222, SELF_TEST_SEED, 0x20CB8AB7AE10C14A),
]


def as_array(data: bytes) -> U8:
    return np.frombuffer(data, np.uint8)


def self_test_bytes(size: int) -> bytes:
    state, out = SELF_TEST_SEED, bytearray()
    for _ in range(size):
        out.append(state >> 56)
        state = state * 0x9E3779B185EBCA8D & MASK
    return bytes(out)


def specification(data: bytes, seed: int) -> int:
    """XXH64, step by step as its specification describes it."""
    p1, p2, p3, p4, p5 = PRIMES

    def left(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & MASK

    def step(lane: int, word: int) -> int:
        return left((lane + word * p2) & MASK, 31) * p1 & MASK

    rest, size = data, len(data)
    digest = (seed + p5) & MASK
    if size >= 32:
        lanes = [(seed + p1 + p2) & MASK, (seed + p2) & MASK, seed, (seed - p1) & MASK]
        while len(rest) >= 32:
            words = [int.from_bytes(rest[i : i + 8], "little") for i in range(0, 32, 8)]
            lanes = [step(lane, word) for lane, word in zip(lanes, words, strict=True)]
            rest = rest[32:]
        digest = sum(left(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & MASK
        for lane in lanes:
            digest = ((digest ^ step(0, lane)) * p1 + p4) & MASK
    digest = (digest + size) & MASK
    while len(rest) >= 8:
        digest = (left(digest ^ step(0, int.from_bytes(rest[:8], "little")), 27) * p1 + p4) & MASK
        rest = rest[8:]
    if len(rest) >= 4:
        digest = (left(digest ^ int.from_bytes(rest[:4], "little") * p1 & MASK, 23) * p2 + p3) & MASK
        rest = rest[4:]
    for byte in rest:
        digest = left(digest ^ byte * p5 & MASK, 11) * p1 & MASK
    digest = (digest ^ digest >> 33) * p2 & MASK
    digest = (digest ^ digest >> 29) * p3 & MASK
    return digest ^ digest >> 32


@pytest.mark.parametrize(("data", "expected"), TEXT_VECTORS)
def test_texts_hash_to_their_published_values(data: bytes, expected: int) -> None:
    assert int(xxh64(as_array(data), np.uint64(0))) == expected
    assert specification(data, 0) == expected


@pytest.mark.parametrize(("size", "seed", "expected"), SELF_TEST_VECTORS)
def test_the_self_test_of_xxhash_passes(size: int, seed: int, expected: int) -> None:
    assert int(xxh64(as_array(self_test_bytes(size)), np.uint64(seed))) == expected


@settings(deadline=None)
@given(data=st.binary(max_size=300), seed=st.integers(0, MASK), skip=st.integers(0, 9))
def test_any_length_seed_and_alignment_follows_the_specification(data: bytes, seed: int, skip: int) -> None:
    start = min(skip, len(data))
    assert int(xxh64(as_array(data)[start:], np.uint64(seed))) == specification(data[start:], seed)


def test_every_length_up_to_several_stripes_follows_the_specification() -> None:
    data = np.random.default_rng(1).integers(0, 256, 140, dtype=np.uint8)
    for size in range(data.size + 1):
        assert int(xxh64(data[:size], np.uint64(7))) == specification(data[:size].tobytes(), 7), size


def test_the_bytes_between_two_places_count_and_no_others() -> None:
    data = np.arange(100, dtype=np.uint8)
    assert int(_hash_of_middle(data, 3, 90)) == specification(data[3:90].tobytes(), 5)
