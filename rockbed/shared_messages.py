"""Messages in memory that a client and a server on one machine share: SharedMessage of embedding.proto."""

from dataclasses import dataclass

from rockbed.wire_format import BYTES, VARINT, Buffer, fields, number, of_bytes, of_message, read_into

METHODS = ("Lookup", "LookupMany", "AdaptiveLookup", "FusedLookup", "ApplyGradients", "FusedApplyGradients")
"""Those whose messages may lie there."""
NAME = "rockbed"
"""How the name of such a memory, a memfd, begins."""
SECRET_BYTES = 16
"""What it begins with."""
HEAD = 64
"""Bytes at its beginning that are no message's."""

_FIELD = 1000
_BEGIN = b"\xc2\x3e"  # field 1000, bytes


@dataclass(slots=True)
class SharedMessage:
    """As in embedding.proto."""

    memory: Buffer = b""
    at: int = 0
    size: int = 0
    room_at: int = 0
    room: int = 0


_PLACE = {(1, BYTES): "memory", (2, VARINT): "at", (3, VARINT): "size", (4, VARINT): "room_at", (5, VARINT): "room"}
_WHOLE = {(_FIELD, BYTES): "shared"}


def shared_message(place: SharedMessage) -> bytes:
    """What travels in place of the message."""
    numbers = number(2, place.at), number(3, place.size), number(4, place.room_at), number(5, place.room)
    return b"".join(of_message(_FIELD, [*of_bytes(1, place.memory), *numbers]))


def lies_elsewhere(data: bytes) -> bool:
    """Whether what has travelled is the place of a message, not a message."""
    return data.startswith(_BEGIN)


def read_shared_message(data: bytes) -> SharedMessage:
    """Raises ValueError, IndexError or KeyError for what is none."""
    return read_into(SharedMessage(), dict(fields(memoryview(data), _WHOLE))["shared"], _PLACE)
