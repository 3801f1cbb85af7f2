"""The messages that are mostly arrays, in protobuf's wire format but written and read by hand: proto/rockbed/v1.

protobuf copies an array into a message, again when the message becomes bytes, and the same at the other end; each copy
of some megabytes also waits for new pages. Here an array is copied once, into the bytes that are sent, and read where
it lies in those that came.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rockbed.requests import Gradients, Request
from rockbed.types import AnyArray

Buffer = bytes | memoryview

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIELDS_MAX = 1 << 17  # of a message: each group takes one of a push, and no more are read than there can be groups


@dataclass(slots=True)
class LookupRequest:
    """As in embedding.proto, and so are the others."""

    group: int = 0
    keys: Buffer = b""
    train: int = 0
    precision: int = 0


@dataclass(slots=True)
class LookupResponse:
    weights: Buffer = b""


@dataclass(slots=True)
class GroupGradients:
    group: int = 0
    keys: Buffer = b""
    gradients: Buffer = b""
    precision: int = 0
    global_step: int = 0


@dataclass(slots=True)
class ApplyGradientsRequest:
    groups: list[GroupGradients] = field(default_factory=list)
    client_id: str = ""
    request_number: int = 0
    more: int = 0
    size: int = 0  # of the message in bytes, all of which its arrays keep in memory


# field number and kind -> its name; what is not here is skipped, as protobuf skips it
_LOOKUP = {(1, _VARINT): "group", (2, _BYTES): "keys", (3, _VARINT): "train", (4, _VARINT): "precision"}
_MANY = {(1, _BYTES): "lookups"}
_WEIGHTS = {(1, _BYTES): "weights"}
_SHARE = {
    (1, _VARINT): "group",
    (2, _BYTES): "keys",
    (3, _BYTES): "gradients",
    (4, _VARINT): "precision",
    (5, _VARINT): "global_step",
}
_PUSH = {(1, _BYTES): "groups", (2, _BYTES): "client_id", (3, _VARINT): "request_number", (4, _VARINT): "more"}


def lookup_request(group: int, keys: Buffer | AnyArray, train: bool, precision: int) -> bytes:
    """A LookupRequest. keys: bytes as wire.py has them, or an array of them."""
    return b"".join((_number(1, group), *_bytes(2, keys), _number(3, train), _number(4, precision)))


def lookup_response(weights: Buffer | AnyArray) -> bytes:
    """A LookupResponse."""
    return b"".join(_bytes(1, weights))


def lookup_many_request(lookups: Sequence[tuple[int, Buffer | AnyArray]], train: bool, precision: int) -> bytes:
    """A LookupManyRequest. lookups: group and keys of each."""
    parts: list[Any] = []
    for group, keys in lookups:
        one = [_number(1, group), *_bytes(2, keys), _number(3, train), _number(4, precision)]
        parts += [_head(1, sum(map(len, one))), *one]
    return b"".join(parts)


def lookup_many_response(weights: Sequence[Buffer | AnyArray]) -> bytes:
    """A LookupManyResponse."""
    parts: list[Any] = []
    for each in weights:
        one = _bytes(1, each)
        parts += [_head(1, sum(map(len, one))), *one]
    return b"".join(parts)


def push_request(
    items: Sequence[Gradients],
    arrays: Sequence[tuple[Buffer | AnyArray, Buffer | AnyArray]],
    precision: int,
    by: Request,
    *,
    more: bool = False,
) -> bytes:
    """An ApplyGradientsRequest. arrays: keys and gradients of each item as they travel; more: not the last message."""
    parts: list[Any] = []
    for item, (keys, grads) in zip(items, arrays, strict=True):
        share = [
            _number(1, item.group),
            *_bytes(2, keys),
            *_bytes(3, grads),
            _number(4, precision),
            _number(5, item.step or 0),
        ]
        parts += [_head(1, sum(map(len, share))), *share]
    return b"".join((*parts, *_bytes(2, by.client.encode()), _number(3, by.number), _number(4, more)))


def read_lookup_request(data: bytes) -> LookupRequest:
    """Raises ValueError or IndexError for what is no message, and so do the others."""
    return _read(memoryview(data), _LOOKUP, LookupRequest())


def read_lookup_response(data: bytes) -> LookupResponse:
    return _read(memoryview(data), _WEIGHTS, LookupResponse())


def read_lookup_many_request(data: bytes) -> list[LookupRequest]:
    return [_read(value, _LOOKUP, LookupRequest()) for _, value in _fields(memoryview(data), _MANY)]


def read_lookup_many_response(data: bytes) -> list[LookupResponse]:
    return [_read(value, _WEIGHTS, LookupResponse()) for _, value in _fields(memoryview(data), _MANY)]


def read_push_request(data: bytes) -> ApplyGradientsRequest:
    request = ApplyGradientsRequest(size=len(data))
    for name, value in _fields(memoryview(data), _PUSH):
        if name == "groups":
            request.groups.append(_read(value, _SHARE, GroupGradients()))
        elif name == "client_id":
            request.client_id = str(value, "utf-8")
        else:
            setattr(request, name, value)
    return request


M = TypeVar("M")


def _read(data: memoryview, names: dict[tuple[int, int], str], message: M) -> M:
    for name, value in _fields(data, names):
        setattr(message, name, value)
    return message


def _fields(data: memoryview, names: dict[tuple[int, int], str]) -> Iterator[tuple[str, Any]]:
    at, end = 0, len(data)
    for _ in range(_FIELDS_MAX):
        if at == end:
            return
        key, at = _varint(data, at)
        kind = key & 7
        if not 0 < key >> 3 < 1 << 29:
            raise ValueError(f"a field of number {key >> 3}")
        value: int | memoryview = 0
        if kind == _VARINT:
            value, at = _varint(data, at)
        elif kind == _BYTES:
            size, start = _varint(data, at)
            if not 0 <= size <= end - start:
                raise ValueError("the message ends within a field")
            at = start + size
            value = data[start:at]
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
            if at > end:
                raise ValueError("the message ends within a field")
        else:
            raise ValueError(f"kind {kind} of a field")
        if name := names.get((key >> 3, kind)):
            yield name, value
    raise ValueError(f"a message of more than {_FIELDS_MAX} fields")


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


def _number(at: int, value: int) -> bytes:
    return _encoded(at << 3 | _VARINT) + _encoded(value) if value else b""


def _head(at: int, size: int) -> bytes:
    return _encoded(at << 3 | _BYTES) + _encoded(size)


def _bytes(at: int, value: Buffer | AnyArray) -> tuple[bytes, memoryview]:
    data = memoryview(value).cast("B") if len(value) else memoryview(b"")  # type: ignore[arg-type]
    return _head(at, data.nbytes), data
