"""The journal's checksum: a 64-bit digest of a run of 8-byte words that may arrive in several arrays.

XXH64's round (Collet, "XXH64 algorithm", the accumulator step), over four lanes that take the words in turn; the
count of words is mixed in at the end. How the words are cut into arrays does not matter, so nothing is copied to be
hashed. It detects damage (any change within one word always, others but for one in 2^64); it is no defence against
forgery.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from rockbed.addresses import address_of, words_at
from rockbed.kernels import inlined, kernel, mix64
from rockbed.types import I64, U64

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)


@inlined
def _round(lane: Any, word: Any) -> Any:
    x = lane + word * _P2
    return ((x << np.uint64(31)) | (x >> np.uint64(33))) * _P1


@kernel
def _absorb(lanes: U64, parts: I64) -> None:
    # parts: int64[n, 2], the address of each and its words. lanes[4] counts the words so far
    for p in range(parts.shape[0]):
        _absorb_words(lanes, words_at(parts[p, 0], parts[p, 1]))


@kernel
def _absorb_words(lanes: U64, words: U64) -> None:
    n = words.shape[0]
    i = 0
    while i < n and lanes[4] % np.uint64(4):
        at = lanes[4] % np.uint64(4)
        lanes[at] = _round(lanes[at], words[i])
        lanes[4] += np.uint64(1)
        i += 1
    a, b, c, d = lanes[0], lanes[1], lanes[2], lanes[3]
    start = i
    while i + 4 <= n:
        a = _round(a, words[i])
        b = _round(b, words[i + 1])
        c = _round(c, words[i + 2])
        d = _round(d, words[i + 3])
        i += 4
    lanes[0], lanes[1], lanes[2], lanes[3] = a, b, c, d
    lanes[4] += np.uint64(i - start)
    while i < n:
        at = lanes[4] % np.uint64(4)
        lanes[at] = _round(lanes[at], words[i])
        lanes[4] += np.uint64(1)
        i += 1


@kernel
def _finish(lanes: U64) -> Any:
    digest = np.uint64(0)
    for i in range(5):
        digest = mix64(digest ^ mix64(lanes[i] + np.uint64(i)))
    return digest


def digest(parts: Iterable[Any]) -> int:
    """The digest of buffers laid end to end. Each is C-contiguous and a whole number of 8-byte words long."""
    lanes = np.array([_P1, _P2, _P1 ^ _P2, _P1 + (_P2 >> np.uint64(1)), 0], np.uint64)
    arrays = [part if isinstance(part, np.ndarray) else np.frombuffer(part, np.uint64) for part in parts if len(part)]
    if arrays:
        _absorb(lanes, np.array([(address_of(array), array.nbytes // 8) for array in arrays]))
    return int(_finish(lanes))
