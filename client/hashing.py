"""Strings, and numbers as strings, to 64 bits: the fingerprint that TensorFlow hashes features with.

FarmHash's Fingerprint64 (Geoff Pike, Google, 2014, https://github.com/google/farmhash) is fixed for ever: the same in
every process, on every machine, in every version. It is computed here for all strings of one length at a time, as
arrays, so that a client needs no compiler for it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rockbed.client.arrays import described
from rockbed.config import whole_problems
from rockbed.errors import InvalidConfig, WrongDtype, WrongShape
from rockbed.types import I64, U8, U64, AnyArray

BUCKETS_MAX = 2**63 - 1

_K0, _K1, _K2 = np.uint64(0xC3A5C85C97CB3127), np.uint64(0xB492B66FBE98F273), np.uint64(0x9AE16A3B2F90404F)
_SEED = np.uint64(81)
_Pair = tuple[U64, U64]


def fingerprint64(strings: Sequence[str | bytes] | AnyArray) -> U64:
    """FarmHash's Fingerprint64 of each string, of its UTF-8 where it is a str: uint64[n].

    strings: a list, or a numpy array with one axis of str, bytes or objects of these. Bytes of value 0 at the end of a
    fixed-width numpy string are none of it, as everywhere in numpy.
    Raises WrongDtype for anything else in it, WrongShape for another number of axes.
    """
    encoded = _encoded(strings)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    text = np.frombuffer(b"".join(encoded), np.uint8)
    starts = np.cumsum(lengths) - lengths
    out = np.empty(lengths.size, np.uint64)
    for length in np.unique(lengths):
        which = np.flatnonzero(lengths == length)
        out[which] = _hashed(text[starts[which, None] + np.arange(length)])
    return out


def hash_buckets(keys: I64 | U64 | Sequence[str | bytes] | AnyArray, buckets: int) -> I64:
    """The bucket of each key, int64[n] from 0 to buckets - 1: `fingerprint64` of the key as a string, modulo buckets.

    As TensorFlow's string_to_hash_bucket_fast, for numbers after its as_string (decimal digits).
    keys: whole numbers, int64[n] or uint64[n] say, or strings as `fingerprint64` takes them.
    Raises InvalidConfig (buckets), WrongDtype, WrongShape.
    """
    problems = whole_problems("the number of buckets", buckets, 1, BUCKETS_MAX)
    if problems:
        raise InvalidConfig(problems[0])
    found: I64 = (fingerprint64(_as_strings(keys)) % np.uint64(buckets)).astype(np.int64)
    return found


def _as_strings(keys: Any) -> Any:
    if not isinstance(keys, np.ndarray) or keys.dtype.kind not in "iu":
        return keys
    distinct, where = np.unique(keys, return_inverse=True)
    return distinct.astype("S20")[where.reshape(keys.shape)]


def _encoded(strings: Any) -> list[bytes]:
    if isinstance(strings, np.ndarray):
        if strings.ndim != 1:
            raise WrongShape(f"strings must have one axis, not {described(strings)}: use strings.reshape(-1)")
        strings = strings.tolist()
    if isinstance(strings, str | bytes) or not isinstance(strings, Sequence):
        raise WrongDtype(f"strings must be a list or a numpy array of str or bytes, not {described(strings)}")
    try:
        return [each if isinstance(each, bytes) else str.encode(each) for each in strings]
    except (TypeError, UnicodeEncodeError):
        wrong = next(each for each in strings if not isinstance(each, bytes) and not _encodes(each))
        raise WrongDtype(f"strings must hold str or bytes, not {wrong!r} of type {type(wrong).__name__}") from None


def _encodes(value: Any) -> bool:
    try:
        str.encode(value)
    except (TypeError, UnicodeEncodeError):
        return False
    return True


# --- Fingerprint64 of n strings of one length, uint8[n, length]; the parts have the names that FarmHash gives them ---


def _hashed(text: U8) -> U64:
    n, length = text.shape
    with np.errstate(over="ignore"):
        if length == 0:
            return np.full(n, _K2)
        if length <= 16:
            return _hash_to_16(text)
        if length <= 32:
            return _hash_17_to_32(text)
        return _hash_33_to_64(text) if length <= 64 else _hash_long(text)


def _fetch(text: U8, at: int) -> U64:
    found: U64 = np.ascontiguousarray(text[:, at : at + 8]).view("<u8")[:, 0]
    return found


def _fetch32(text: U8, at: int) -> U64:
    found: U64 = np.ascontiguousarray(text[:, at : at + 4]).view("<u4")[:, 0].astype(np.uint64)
    return found


def _rotate(value: U64, by: int) -> U64:
    rotated: U64 = (value >> np.uint64(by)) | (value << np.uint64(64 - by))
    return rotated


def _shift_mix(value: U64) -> U64:
    mixed: U64 = value ^ (value >> np.uint64(47))
    return mixed


def _hash_len_16(u: U64, v: U64, mul: Any) -> U64:
    a = _shift_mix((u ^ v) * mul)
    b: U64 = _shift_mix((v ^ a) * mul) * mul
    return b


def _mul(length: int) -> Any:
    return _K2 + np.uint64(2 * length)


def _hash_to_16(text: U8) -> U64:
    length = text.shape[1]
    if length >= 8:
        mul = _mul(length)
        a, b = _fetch(text, 0) + _K2, _fetch(text, length - 8)
        return _hash_len_16(_rotate(b, 37) * mul + a, (_rotate(a, 25) + b) * mul, mul)
    if length >= 4:
        low = np.uint64(length) + (_fetch32(text, 0) << np.uint64(3))
        return _hash_len_16(low, _fetch32(text, length - 4), _mul(length))
    first, middle, last = (text[:, at].astype(np.uint64) for at in (0, length >> 1, length - 1))
    y, z = first + (middle << np.uint64(8)), np.uint64(length) + (last << np.uint64(2))
    short: U64 = _shift_mix((y * _K2) ^ (z * _K0)) * _K2
    return short


def _hash_17_to_32(text: U8) -> U64:
    length = text.shape[1]
    mul = _mul(length)
    a, b = _fetch(text, 0) * _K1, _fetch(text, 8)
    c, d = _fetch(text, length - 8) * mul, _fetch(text, length - 16) * _K2
    return _hash_len_16(_rotate(a + b, 43) + _rotate(c, 30) + d, a + _rotate(b + _K2, 18) + c, mul)


def _hash_33_to_64(text: U8) -> U64:
    length = text.shape[1]
    mul = _mul(length)
    a, b = _fetch(text, 0) * _K2, _fetch(text, 8)
    c, d = _fetch(text, length - 8) * mul, _fetch(text, length - 16) * _K2
    y = _rotate(a + b, 43) + _rotate(c, 30) + d
    z = _hash_len_16(y, a + _rotate(b + _K2, 18) + c, mul)
    e, f = _fetch(text, 16) * mul, _fetch(text, 24)
    g, h = (y + _fetch(text, length - 32)) * mul, (z + _fetch(text, length - 24)) * mul
    return _hash_len_16(_rotate(e + f, 43) + _rotate(g, 30) + h, e + _rotate(f + a, 18) + g, mul)


def _weak_hash(text: U8, at: int, a: U64, b: U64) -> _Pair:
    w, x, y, z = (_fetch(text, at + 8 * i) for i in range(4))
    a = a + w
    b = _rotate(b + a + z, 21)
    c = a
    a = a + x + y
    return a + z, b + _rotate(a, 44) + c


_State = tuple[U64, U64, U64, _Pair, _Pair]


def _round(text: U8, at: int, mul: Any, state: _State, *, last: Callable[[U64], U64] = lambda value: value) -> _State:
    x, y, z, v, w = state
    x = _rotate(x + y + v[0] + _fetch(text, at + 8), 37) * mul
    y = _rotate(y + v[1] + _fetch(text, at + 48), 42) * mul
    x = x ^ last(w[1])
    y = y + last(v[0]) + _fetch(text, at + 40)
    z = _rotate(z + w[0], 33) * mul
    v = _weak_hash(text, at, v[1] * mul, x + w[0])
    w = _weak_hash(text, at + 32, z + w[1], y + _fetch(text, at + 16))
    return z, y, x, v, w


def _hash_long(text: U8) -> U64:
    n, length = text.shape
    none: U64 = np.zeros(n, np.uint64)
    y = none + (_SEED * _K1 + np.uint64(113))
    z = _shift_mix(y * _K2 + np.uint64(113)) * _K2
    state: _State = (none + _SEED * _K2 + _fetch(text, 0), y, z, (none, none), (none, none))
    for at in range(0, (length - 1) // 64 * 64, 64):
        state = _round(text, at, _K1, state)
    x, y, z, v, w = state
    mul = _K1 + ((z & np.uint64(0xFF)) << np.uint64(1))
    w = (w[0] + np.uint64((length - 1) & 63), w[1])
    v = (v[0] + w[0], v[1])
    w = (w[0] + v[0], w[1])
    x, y, z, v, w = _round(text, length - 64, mul, (x, y, z, v, w), last=lambda value: value * np.uint64(9))
    left = _hash_len_16(v[0], w[0], mul) + _shift_mix(y) * _K0 + z
    return _hash_len_16(left, _hash_len_16(v[1], w[1], mul) + x, mul)
