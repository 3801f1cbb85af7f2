"""The messages that are mostly arrays, in protobuf's wire format but written and read by hand: proto/rockbed/v1.

protobuf copies an array into a message, again when the message becomes bytes, and the same at the other end; each copy
of some megabytes also waits for new pages. Here an array is copied once, into the bytes that are sent, and read where
it lies in those that came.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rockbed.requests import Gradients, Lookup, Request
from rockbed.types import AnyArray
from rockbed.wire import keys_to_wire
from rockbed.wire_format import BYTES, VARINT, Buffer, Parts, fields, number, of_bytes, of_message, read_into


@dataclass(slots=True)
class LookupRequest:
    """As in embedding.proto, and so are the others."""

    group: int = 0
    keys: Buffer = b""
    train: int = 0
    precision: int = 0
    generation: int = 0


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
    generation: int = 0


@dataclass(slots=True)
class ApplyGradientsRequest:
    groups: list[GroupGradients] = field(default_factory=list)
    client_id: str = ""
    request_number: int = 0
    more: int = 0
    size: int = 0  # of the message in bytes, all of which its arrays keep in memory


# field number and kind -> its name; what is not here is skipped, as protobuf skips it
_LOOKUP = {
    (1, VARINT): "group",
    (2, BYTES): "keys",
    (3, VARINT): "train",
    (4, VARINT): "precision",
    (5, VARINT): "generation",
}
_MANY = {(1, BYTES): "lookups"}
_WEIGHTS = {(1, BYTES): "weights"}
_SHARE = {
    (1, VARINT): "group",
    (2, BYTES): "keys",
    (3, BYTES): "gradients",
    (4, VARINT): "precision",
    (5, VARINT): "global_step",
    (6, VARINT): "generation",
}
_PUSH = {(1, BYTES): "groups", (2, BYTES): "client_id", (3, VARINT): "request_number", (4, VARINT): "more"}


def lookup_request(asked: Lookup, train: bool, precision: int) -> Parts:
    """A LookupRequest."""
    keys = of_bytes(2, keys_to_wire(asked.keys))
    return [number(1, asked.group), *keys, number(3, train), number(4, precision), number(5, asked.generation)]


def lookup_response(weights: Buffer | AnyArray) -> Parts:
    """A LookupResponse."""
    return of_bytes(1, weights)


def lookup_many_request(lookups: Sequence[Lookup], train: bool, precision: int) -> Parts:
    """A LookupManyRequest."""
    parts: list[Buffer] = []
    for each in lookups:
        parts += of_message(1, lookup_request(each, train, precision))
    return parts


def lookup_many_response(weights: Sequence[Buffer | AnyArray]) -> Parts:
    """A LookupManyResponse."""
    parts: list[Buffer] = []
    for each in weights:
        one = of_bytes(1, each)
        parts += of_message(1, one)
    return parts


def push_request(
    items: Sequence[Gradients],
    arrays: Sequence[tuple[Buffer | AnyArray, Buffer | AnyArray]],
    precision: int,
    by: Request,
    *,
    more: bool = False,
) -> Parts:
    """An ApplyGradientsRequest. arrays: keys and gradients of each item as they travel; more: not the last message."""
    parts: list[Buffer] = []
    for item, (keys, grads) in zip(items, arrays, strict=True):
        share: list[Buffer] = [
            number(1, item.group),
            *of_bytes(2, keys),
            *of_bytes(3, grads),
            number(4, precision),
            number(5, item.step or 0),
            number(6, item.generation),
        ]
        parts += of_message(1, share)
    return [*parts, *of_bytes(2, by.client.encode()), number(3, by.number), number(4, more)]


def push_response(applied: bool) -> Parts:
    """An ApplyGradientsResponse."""
    return [number(1, applied)]


def read_lookup_request(data: bytes) -> LookupRequest:
    """Raises ValueError or IndexError for what is no message, and so do the others."""
    return read_into(LookupRequest(), memoryview(data), _LOOKUP)


def read_lookup_response(data: Buffer) -> LookupResponse:
    return read_into(LookupResponse(), memoryview(data), _WEIGHTS)


def read_lookup_many_request(data: bytes) -> list[LookupRequest]:
    return [read_into(LookupRequest(), value, _LOOKUP) for _, value in fields(memoryview(data), _MANY)]


def read_lookup_many_response(data: Buffer) -> list[LookupResponse]:
    return [read_into(LookupResponse(), value, _WEIGHTS) for _, value in fields(memoryview(data), _MANY)]


def read_push_request(data: bytes) -> ApplyGradientsRequest:
    request = ApplyGradientsRequest(size=len(data))
    for name, value in fields(memoryview(data), _PUSH):
        if name == "groups":
            request.groups.append(read_into(GroupGradients(), value, _SHARE))
        elif name == "client_id":
            request.client_id = str(value, "utf-8")
        else:
            setattr(request, name, value)
    return request
