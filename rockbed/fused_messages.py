"""Fused batches as messages: what embedding.proto says of Bags, FusedLookup and FusedApplyGradients, written and read
by hand as those of `messages`."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rockbed.bags import COMBINERS, Bags
from rockbed.errors import InvalidConfig, WrongShape
from rockbed.requests import Request
from rockbed.types import AnyArray
from rockbed.wire import keys_from_bytes, keys_to_wire
from rockbed.wire_format import (
    BYTES,
    FIXED64,
    VARINT,
    Buffer,
    Parts,
    fields,
    fixed64,
    given_number,
    number,
    of_bytes,
    of_message,
    read_into,
)

_COMBINERS = (None, *COMBINERS)  # by their numbers in the proto file


@dataclass(slots=True)
class BagsMessage:
    """As in embedding.proto, and so are the others. `bags` makes Bags of it."""

    name: str = ""
    group: int = 0
    keys: Buffer = b""
    lengths: Buffer = b""
    weights: Buffer = b""
    combiner: int = 0
    max_norm: Buffer | None = None
    default_key: int | None = None
    negative: int = 0
    generation: int = 0


@dataclass(slots=True)
class FusedLookupRequest:
    features: list[BagsMessage] = field(default_factory=list)
    train: int = 0
    precision: int = 0
    keep: int = 0


@dataclass(slots=True)
class FusedLookupResponse:
    pooled: Buffer = b""
    sequences: list[Buffer] = field(default_factory=list)
    handle: Buffer = b""


@dataclass(slots=True)
class FusedApplyGradientsRequest:
    features: list[BagsMessage] = field(default_factory=list)
    handle: Buffer | None = None
    pooled: Buffer = b""
    sequences: list[Buffer] = field(default_factory=list)
    precision: int = 0
    global_steps: dict[int, int] = field(default_factory=dict)
    client_id: str = ""
    request_number: int = 0


_BAGS = {
    (1, BYTES): "name",
    (2, VARINT): "group",
    (3, BYTES): "keys",
    (4, BYTES): "lengths",
    (5, BYTES): "weights",
    (6, VARINT): "combiner",
    (7, FIXED64): "max_norm",
    (8, VARINT): "default_key",
    (9, VARINT): "negative",
    (10, VARINT): "generation",
}
_LOOKUP = {(1, BYTES): "features", (2, VARINT): "train", (3, VARINT): "precision", (4, VARINT): "keep"}
_ANSWER = {(1, BYTES): "pooled", (2, BYTES): "sequences", (3, BYTES): "handle"}
_PUSH = {
    (1, BYTES): "features",
    (2, BYTES): "handle",
    (3, BYTES): "pooled",
    (4, BYTES): "sequences",
    (5, VARINT): "precision",
    (6, BYTES): "global_steps",
    (7, BYTES): "client_id",
    (8, VARINT): "request_number",
}
_STEP = {(1, VARINT): "group", (2, VARINT): "step"}


def fused_lookup_request(batch: Sequence[Bags], train: bool, precision: int, keep: bool) -> Parts:
    """A FusedLookupRequest."""
    return [*_features(batch), number(2, train), number(3, precision), number(4, keep)]


def fused_lookup_response(
    pooled: Buffer | AnyArray, sequences: Sequence[Buffer | AnyArray], handle: bytes | None
) -> Parts:
    """A FusedLookupResponse. pooled, sequences: as they travel."""
    return [*of_bytes(1, pooled), *_several(2, sequences), *of_bytes(3, handle or b"")]


def fused_push_request(
    of: Sequence[Bags] | bytes,
    pooled: Buffer | AnyArray,
    sequences: Sequence[Buffer | AnyArray],
    precision: int,
    steps: Mapping[int, int],
    by: Request,
) -> Parts:
    """A FusedApplyGradientsRequest. of: the batch, or its handle; pooled, sequences: the gradients as they travel."""
    parts: list[Buffer] = [*of_bytes(2, of)] if isinstance(of, bytes) else _features(of)
    parts += [*of_bytes(3, pooled), *_several(4, sequences), number(5, precision)]
    for group, step in steps.items():
        parts += of_message(6, [given_number(1, group), given_number(2, step)])
    return [*parts, *of_bytes(7, by.client.encode()), number(8, by.number)]


def read_fused_lookup_request(data: bytes) -> FusedLookupRequest:
    """Raises ValueError or IndexError for what is no message, and so do the others."""
    request = FusedLookupRequest()
    for name, value in fields(memoryview(data), _LOOKUP):
        if name == "features":
            request.features.append(_read_bags(value))
        else:
            setattr(request, name, value)
    return request


def read_fused_lookup_response(data: Buffer) -> FusedLookupResponse:
    answer = FusedLookupResponse()
    for name, value in fields(memoryview(data), _ANSWER):
        if name == "sequences":
            answer.sequences.append(value)
        else:
            setattr(answer, name, value)
    return answer


def read_fused_push_request(data: bytes) -> FusedApplyGradientsRequest:
    request = FusedApplyGradientsRequest()
    for name, value in fields(memoryview(data), _PUSH):
        if name == "features":
            request.features.append(_read_bags(value))
        elif name == "sequences":
            request.sequences.append(value)
        elif name == "global_steps":
            entry = dict(fields(value, _STEP))
            request.global_steps[entry.get("group", 0)] = entry.get("step", 0)
        elif name == "client_id":
            request.client_id = str(value, "utf-8")
        else:
            setattr(request, name, value)
    return request


def bags(message: BagsMessage) -> Bags:
    """What a message says; `bags.check_bags` says whether that can be. Raises WrongShape, InvalidConfig."""
    what = f"feature {message.name!r}: "
    if not 0 <= message.combiner < len(_COMBINERS):
        raise InvalidConfig(what + f"combiner {message.combiner} is unknown: 0 is none, 1 sum, 2 mean, 3 sqrtn")
    if len(message.lengths) % 4 or len(message.weights) % 4:
        raise WrongShape(
            what + f"{len(message.lengths)} bytes of lengths, {len(message.weights)} of weights: send uint32[B] and "
            "float32[n], 4 bytes each, little-endian"
        )
    keys = keys_from_bytes(message.keys)
    if len(message.lengths):
        lengths = np.frombuffer(message.lengths, "<u4")
        offsets = np.zeros(lengths.size + 1, np.int64)
        np.cumsum(lengths, dtype=np.int64, out=offsets[1:])
    else:
        offsets = np.arange(keys.size + 1)
    return Bags(
        name=message.name,
        group=message.group,
        keys=keys,
        offsets=offsets,
        weights=np.frombuffer(message.weights, "<f4").astype(np.float32) if len(message.weights) else None,
        combiner=_COMBINERS[message.combiner],
        max_norm=None if message.max_norm is None else struct.unpack("<d", message.max_norm)[0],
        default_key=message.default_key,
        negative=bool(message.negative),
        generation=message.generation,
    )


def _read_bags(data: memoryview) -> BagsMessage:
    message = read_into(BagsMessage(), data, _BAGS)
    message.name = str(message.name or b"", "utf-8")  # type: ignore[arg-type]
    return message


def _features(batch: Sequence[Bags]) -> list[Buffer]:
    parts: list[Buffer] = []
    for each in batch:
        one: list[Buffer] = [
            *of_bytes(1, each.name.encode()),
            number(2, each.group),
            *of_bytes(3, keys_to_wire(each.keys)),
        ]
        lengths = np.diff(each.offsets)
        if (lengths != 1).any():
            one += of_bytes(4, lengths.astype("<u4"))
        if each.weights is not None:
            one += of_bytes(5, each.weights.astype("<f4", copy=False))
        one.append(number(6, _COMBINERS.index(each.combiner)))
        if each.max_norm is not None:
            one.append(fixed64(7, struct.pack("<d", each.max_norm)))
        if each.default_key is not None:
            one.append(given_number(8, each.default_key))
        parts += of_message(1, [*one, number(9, each.negative), number(10, each.generation)])
    return parts


def _several(at: int, arrays: Sequence[Buffer | AnyArray]) -> list[Buffer]:
    return [part for array in arrays for part in of_bytes(at, array)]
