"""What a journal entry says, as bytes. All numbers little-endian; every array begins at a multiple of 8 bytes.

PUSH      request, u32 sections, u32 0, then a section for each group
DELETE    request, u32 group, u32 reason length, u64 n, keys i64[n], reason utf-8
GROUP     request, the group's config as JSON: created, or changed from here on
PUT       request, u32 group, u32 width, u64 n, keys i64[n], update counts i64[n], update times i64[n] (ms), rows f32[n,
          width], weights then slots: stored as they are
DROP      request, u32 group, u32 0: the group and all of its rows are gone
BAG_PUSH  as PUSH, but a section may be of bags
COPY      as PUT: rows of the exact part of an adaptive variable, which begin as copies of static ones
request   u64 number, u32 length of the client id, u32 0, client id utf-8; length 0 = none
section   u32 group, u32 dim, u32 sequential, u32 form = 0, u64 n, i64 step (-1 = each row's own), keys i64[n],
          fresh u8[n] (1: the row starts from its initial value), gradients f32[n, dim]
of bags   u32 group, u32 dim, u32 0, u32 form = 1, u64 n, i64 step, keys i64[n], fresh u8[n], then u64 positions, u32
          bags, u32 weighted, numbers i32[positions], sizes u32[bags], weights f32[positions] if weighted, gradients
          f32[bags, dim]: position p, in the bag that the sizes say, sends weights[p] * gradients[bag] to the row of
          keys[numbers[p]], to none where that is -1; a row's gradients are summed in the order of the positions
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from rockbed.requests import Request
from rockbed.types import F32, I32, I64, U8, U32, AnyArray, Bool


class Kind(IntEnum):
    """Kinds of entries; a number is never reused."""

    PUSH = 1
    DELETE = 2
    GROUP = 3
    PUT = 4
    DROP = 5
    BAG_PUSH = 6
    COPY = 7


@dataclass(slots=True)
class Section:
    """One group's share of a push. keys: int64[n]; grads: float32[n, dim]; fresh: uint8[n], or with zeros behind as far
    as a whole number of words."""

    group: int
    keys: I64
    fresh: U8
    grads: F32
    sequential: bool = False
    step: int = -1


@dataclass(slots=True)
class BagSection:
    """One group's share of a push of pooled rows, smaller than their summed gradients.

    keys: int64[n], distinct; fresh: as of Section; inverse: int32[positions], the number of a position's key, or -1;
    sizes: uint32[bags], how many positions each has; weights: float32[positions], or empty = 1 each; grads:
    float32[bags, dim].
    """

    group: int
    keys: I64
    fresh: U8
    inverse: I32
    sizes: U32
    weights: F32
    grads: F32
    step: int = -1


@dataclass(frozen=True, slots=True)
class Put:
    """Rows stored as they are. keys: int64[n], distinct; update_num, update_time (ms): int64[n]; data: float32[n,
    width], weights then slots."""

    group: int
    keys: I64
    update_num: I64
    update_time: I64
    data: F32

    def part(self, wanted: Bool) -> "Put":
        """The rows at which `wanted` is true. bool[n]."""
        values = self.keys[wanted], self.update_num[wanted], self.update_time[wanted], self.data[wanted]
        return Put(self.group, *values)


_REQUEST = struct.Struct("<QII")
_SECTION = struct.Struct("<IIIIQq")
_BAGS = struct.Struct("<QII")
_DELETE = struct.Struct("<IIQ")
_PUT = struct.Struct("<IIQ")
_DROP = struct.Struct("<II")
_COUNT = struct.Struct("<II")


def _padded(text: bytes) -> bytes:
    return text + b"\0" * (-len(text) % 8)


def _words(array: AnyArray) -> AnyArray:
    # only an odd number of values is copied, to round it up
    short = -array.nbytes % 8
    return np.concatenate([array.reshape(-1).view(np.uint8), np.zeros(short, np.uint8)]) if short else array


def _request_parts(request: Request | None) -> list[Any]:
    if request is None:
        return [_REQUEST.pack(0, 0, 0)]
    client = request.client.encode()
    return [_REQUEST.pack(request.number, len(client), 0), _padded(client)]


def push_kind(sections: Sequence[Section | BagSection]) -> Kind:
    """The kind of the entry that holds them."""
    return Kind.BAG_PUSH if any(isinstance(each, BagSection) for each in sections) else Kind.PUSH


def push_parts(request: Request | None, sections: Sequence[Section | BagSection]) -> list[Any]:
    """The payload of a PUSH or BAG_PUSH as buffers to be written one after another; arrays are not copied."""
    parts = [*_request_parts(request), _COUNT.pack(len(sections), 0)]
    for s in sections:
        of_bags = isinstance(s, BagSection)
        sequential = not isinstance(s, BagSection) and s.sequential
        parts.append(_SECTION.pack(s.group, s.grads.shape[1], sequential, of_bags, s.keys.size, s.step))
        parts.append(s.keys)
        parts.append(_words(s.fresh))
        if isinstance(s, BagSection):
            parts.append(_BAGS.pack(s.inverse.size, s.sizes.size, s.weights.size > 0))
            parts += [_words(array) for array in (s.inverse, s.sizes, s.weights) if array.size]
        parts.append(_words(s.grads))
    return parts


def delete_parts(group: int, keys: I64, reason: str) -> list[Any]:
    """The payload of a DELETE. keys: int64[n]."""
    text = reason.encode()
    return [*_request_parts(None), _DELETE.pack(group, len(text), keys.shape[0]), keys, _padded(text)]


def group_parts(config_json: bytes) -> list[Any]:
    """The payload of a GROUP."""
    return [*_request_parts(None), _padded(config_json)]


def put_parts(put: Put) -> list[Any]:
    """The payload of a PUT or COPY."""
    n, width = put.data.shape
    head = [*_request_parts(None), _PUT.pack(put.group, width, n)]
    return [*head, put.keys, put.update_num, put.update_time, _words(put.data)]


def drop_parts(group: int) -> list[Any]:
    """The payload of a DROP."""
    return [*_request_parts(None), _DROP.pack(group, 0)]


class _Reader:
    def __init__(self, payload: memoryview) -> None:
        self._payload = payload
        self._at = 0

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        values = form.unpack_from(self._payload, self._at)
        self._at += form.size
        return values

    def take(self, size: int) -> memoryview:
        part = self._payload[self._at : self._at + size]
        self._at += size + -size % 8
        return part

    def array(self, dtype: Any, count: int) -> Any:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)

    def rest(self) -> memoryview:
        return self._payload[self._at :]

    def request(self) -> Request | None:
        number, length, _ = self.unpack(_REQUEST)
        return Request(bytes(self.take(length)).decode(), number) if length else None


def read_push(payload: memoryview) -> tuple[Request | None, list[Section | BagSection]]:
    """The reverse of `push_parts`; the arrays are read-only views of the payload."""
    reader = _Reader(payload)
    request = reader.request()
    sections: list[Section | BagSection] = []
    for _ in range(reader.unpack(_COUNT)[0]):
        group, dim, sequential, of_bags, n, step = reader.unpack(_SECTION)
        keys = reader.array(np.int64, n)
        fresh = reader.array(np.uint8, n)
        if of_bags:
            sections.append(BagSection(group, keys, fresh, *_bags(reader, dim), step))
        else:
            grads = reader.array(np.float32, n * dim).reshape(n, dim)
            sections.append(Section(group, keys, fresh, grads, bool(sequential), step))
    return request, sections


def _bags(reader: _Reader, dim: int) -> tuple[I32, U32, F32, F32]:
    positions, bags, weighted = reader.unpack(_BAGS)
    numbers, sizes = reader.array(np.int32, positions), reader.array(np.uint32, bags)
    weights = reader.array(np.float32, positions if weighted else 0)
    return numbers, sizes, weights, reader.array(np.float32, bags * dim).reshape(bags, dim)


def read_delete(payload: memoryview) -> tuple[int, I64, str]:
    """(group, keys, reason): the reverse of `delete_parts`."""
    reader = _Reader(payload)
    reader.request()
    group, length, n = reader.unpack(_DELETE)
    keys = reader.array(np.int64, n)
    return group, keys, bytes(reader.take(length)).decode()


def read_put(payload: memoryview) -> Put:
    """The reverse of `put_parts`; the arrays are read-only views of the payload."""
    reader = _Reader(payload)
    reader.request()
    group, width, n = reader.unpack(_PUT)
    keys, update_num, update_time = (reader.array(np.int64, n) for _ in range(3))
    return Put(group, keys, update_num, update_time, reader.array(np.float32, n * width).reshape(n, width))


def read_drop(payload: memoryview) -> int:
    """The group: the reverse of `drop_parts`."""
    reader = _Reader(payload)
    reader.request()
    group: int = reader.unpack(_DROP)[0]
    return group


def read_group(payload: memoryview) -> bytes:
    """The reverse of `group_parts`: JSON, perhaps followed by zero bytes."""
    reader = _Reader(payload)
    reader.request()
    return bytes(reader.rest()).rstrip(b"\0")
