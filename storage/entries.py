"""What a journal entry says, as bytes. All numbers little-endian; every array begins at a multiple of 8 bytes.

PUSH      request, u32 sections, u32 0, then a section for each group
DELETE    request, u32 group, u32 reason length, u64 n, keys i64[n], reason utf-8
GROUP     request, the group's config as JSON: created, or changed from here on
PUT       request, u32 group, u32 width, u64 n, keys i64[n], update counts i64[n], update times i64[n] (ms), rows f32[n,
          width], weights then slots: stored as they are
DROP      request, u32 group, u32 0: the group and all of its rows are gone
request   u64 number, u32 length of the client id, u32 0, client id utf-8; length 0 = none
section   u32 group, u32 dim, u32 sequential, u32 0, u64 n, i64 step (-1 = each row's own), keys i64[n],
          fresh u8[n] (1: the row starts from its initial value), gradients f32[n, dim]
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from rockbed.requests import Request
from rockbed.types import F32, I64, U8, AnyArray, Bool


class Kind(IntEnum):
    """Kinds of entries; a number is never reused."""

    PUSH = 1
    DELETE = 2
    GROUP = 3
    PUT = 4
    DROP = 5


@dataclass(frozen=True, slots=True)
class Section:
    """One group's share of a push. keys: int64[n]; fresh: uint8[n]; grads: float32[n, dim]."""

    group: int
    keys: I64
    fresh: U8
    grads: F32
    sequential: bool = False
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


def push_parts(request: Request | None, sections: Sequence[Section]) -> list[Any]:
    """The payload of a PUSH as buffers to be written one after another; arrays are not copied."""
    parts = [*_request_parts(request), _COUNT.pack(len(sections), 0)]
    for s in sections:
        n, dim = s.grads.shape
        parts.append(_SECTION.pack(s.group, dim, s.sequential, 0, n, s.step))
        parts.append(s.keys)
        parts.append(_words(s.fresh))
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
    """The payload of a PUT."""
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


def read_push(payload: memoryview) -> tuple[Request | None, list[Section]]:
    """The reverse of `push_parts`; the arrays are read-only views of the payload."""
    reader = _Reader(payload)
    request = reader.request()
    sections = []
    for _ in range(reader.unpack(_COUNT)[0]):
        group, dim, sequential, _, n, step = reader.unpack(_SECTION)
        keys = reader.array(np.int64, n)
        fresh = reader.array(np.uint8, n)
        grads = reader.array(np.float32, n * dim).reshape(n, dim)
        sections.append(Section(group, keys, fresh, grads, bool(sequential), step))
    return request, sections


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
