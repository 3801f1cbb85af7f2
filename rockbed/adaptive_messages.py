"""Lookups of adaptive variables as messages: AdaptiveLookup of embedding.proto, written and read by hand as those of
`messages`."""

from dataclasses import dataclass

import numpy as np

from rockbed.errors import WrongShape
from rockbed.requests import AdaptiveKeys
from rockbed.types import AnyArray, Bool
from rockbed.wire import keys_from_bytes, keys_to_wire
from rockbed.wire_format import BYTES, VARINT, Buffer, Parts, number, of_bytes, read_into


@dataclass(slots=True)
class AdaptiveRequest:
    """As AdaptiveLookupRequest in embedding.proto, and the other as AdaptiveLookupResponse."""

    static_group: int = 0
    exact_group: int = 0
    keys: Buffer = b""
    buckets: Buffer = b""
    mask: Buffer | None = None
    train: int = 0
    precision: int = 0
    static_generation: int = 0
    exact_generation: int = 0


@dataclass(slots=True)
class AdaptiveResponse:
    weights: Buffer = b""
    mask: Buffer = b""
    migrated: int = 0


_REQUEST = {
    (1, VARINT): "static_group",
    (2, VARINT): "exact_group",
    (3, BYTES): "keys",
    (4, BYTES): "buckets",
    (5, BYTES): "mask",
    (6, VARINT): "train",
    (7, VARINT): "precision",
    (8, VARINT): "static_generation",
    (9, VARINT): "exact_generation",
}
_RESPONSE = {(1, BYTES): "weights", (2, BYTES): "mask", (3, VARINT): "migrated"}


def adaptive_request(asked: AdaptiveKeys, train: bool, precision: int) -> Parts:
    """An AdaptiveLookupRequest."""
    mask = () if asked.mask is None else of_bytes(5, asked.mask.view(np.uint8))
    groups = number(1, asked.static), number(2, asked.exact)
    arrays = *of_bytes(3, keys_to_wire(asked.keys)), *of_bytes(4, keys_to_wire(asked.buckets)), *mask
    generations = number(8, asked.static_generation), number(9, asked.exact_generation)
    return [*groups, *arrays, number(6, train), number(7, precision), *generations]


def adaptive_response(weights: Buffer | AnyArray, mask: Bool, migrated: int) -> Parts:
    """An AdaptiveLookupResponse. weights: as they travel."""
    return [*of_bytes(1, weights), *of_bytes(2, mask.view(np.uint8)), number(3, migrated)]


def read_adaptive_request(data: bytes) -> AdaptiveRequest:
    """Raises ValueError or IndexError for what is no message, and so does the other."""
    return read_into(AdaptiveRequest(), memoryview(data), _REQUEST)


def read_adaptive_response(data: Buffer) -> AdaptiveResponse:
    return read_into(AdaptiveResponse(), memoryview(data), _RESPONSE)


def adaptive_keys(request: AdaptiveRequest) -> AdaptiveKeys:
    """What a request asks for. Raises WrongShape."""
    keys, buckets = keys_from_bytes(request.keys), keys_from_bytes(request.buckets)
    mask = None if request.mask is None else mask_from(request.mask, keys.size)
    generations = request.static_generation, request.exact_generation
    return AdaptiveKeys(request.static_group, request.exact_group, keys, buckets, mask, *generations)


def mask_from(data: Buffer, n: int) -> Bool:
    """bool[n]. Raises WrongShape."""
    if len(data) != n:
        raise WrongShape(f"a mask of {len(data)} bytes for {n} keys: send uint8[{n}], one for each key")
    mask: Bool = np.frombuffer(data, np.uint8) != 0
    return mask
