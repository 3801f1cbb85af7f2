"""protobuf's wire format by hand: the fields of a message, written and read without a copy of what is in them."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from rockbed.types import AnyArray

Buffer = bytes | memoryview
Parts = Sequence[Buffer]
"""A message in pieces, in their order: each is copied once, to where the message is sent from."""
Names = dict[tuple[int, int], str]
"""Field number and kind -> name."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIELDS_MAX = 1 << 17  # of a message: each group takes one of a push, and no more are read than there can be groups
_SIZES = {FIXED64: 8, FIXED32: 4}

M = TypeVar("M")


def read_into(message: M, data: memoryview, names: Names) -> M:
    """Set the attributes of a message. Raises ValueError or IndexError for what is none."""
    for name, value in fields(data, names):
        setattr(message, name, value)
    return message


def fields(data: memoryview, names: Names) -> Iterator[tuple[str, Any]]:
    """Name and value of one field after another: an int for VARINT, else the bytes where they lie. What has no name is
    skipped, as protobuf skips it. Raises ValueError or IndexError for what is no message."""
    at, end = 0, len(data)
    for _ in range(_FIELDS_MAX):
        if at == end:
            return
        key, at = _varint(data, at)
        kind = key & 7
        if not 0 < key >> 3 < 1 << 29:
            raise ValueError(f"a field of number {key >> 3}")
        value: int | memoryview
        if kind == VARINT:
            value, at = _varint(data, at)
        elif kind in (BYTES, FIXED64, FIXED32):
            size, start = _varint(data, at) if kind == BYTES else (_SIZES[kind], at)
            if not 0 <= size <= end - start:
                raise ValueError("the message ends within a field")
            at = start + size
            value = data[start:at]
        else:
            raise ValueError(f"kind {kind} of a field")
        if name := names.get((key >> 3, kind)):
            yield name, value
    raise ValueError(f"a message of more than {_FIELDS_MAX} fields")


def number(at: int, value: int) -> bytes:
    """Field `at` as a varint, negative ones as 64 bits; nothing for 0, which is what a field that is missing is."""
    return given_number(at, value) if value else b""


def given_number(at: int, value: int) -> bytes:
    """As `number`, 0 too: for fields that may be missing."""
    return _encoded(at << 3 | VARINT) + _encoded(value & (1 << 64) - 1)


def fixed64(at: int, value: bytes) -> bytes:
    """Field `at` with 8 bytes."""
    return _encoded(at << 3 | FIXED64) + value


def head(at: int, size: int) -> bytes:
    """What precedes the bytes of field `at`."""
    return _encoded(at << 3 | BYTES) + _encoded(size)


def of_bytes(at: int, value: Buffer | AnyArray) -> tuple[bytes, memoryview]:
    """Field `at` with bytes, or a C-contiguous array as it lies in memory."""
    lent: Any = value  # numpy's stubs say that an array is a buffer from 2.5 on only
    data = memoryview(lent)
    return head(at, data.nbytes), data.cast("B") if data.nbytes else memoryview(b"")


def of_message(at: int, parts: Parts) -> list[Buffer]:
    """Field `at` with a message made of parts."""
    return [head(at, size_of(parts)), *parts]


def size_of(parts: Parts) -> int:
    """The bytes of a message."""
    return sum(map(len, parts))


def joined(message: bytes | Parts) -> bytes:
    """A message in one piece."""
    return message if isinstance(message, bytes) else b"".join(message)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            value &= (1 << 64) - 1
            return value if value < 1 << 63 else value - (1 << 64), at
        shift += 7
    raise ValueError("a number of more than 64 bits")


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
