"""Messages in memory that a client and a server on one machine share: SharedMessage of embedding.proto."""

from dataclasses import dataclass

from rockbed.wire_format import BYTES, VARINT, Buffer, Parts, number, of_bytes, of_message, read_into

SERVICE = "rockbed.v1.SharedEmbedding"
OF_SERVICE = "rockbed.v1.Embedding"
"""Whose messages they are."""
METHODS = ("Lookup", "LookupMany", "AdaptiveLookup", "FusedLookup", "ApplyGradients", "FusedApplyGradients")
"""Of both."""
NAME = "rockbed"
"""How the name of such a memory, a memfd, begins."""
SECRET_BYTES = 16
"""What it begins with."""
HEAD = 64
"""Bytes at its beginning that are no message's."""


@dataclass(slots=True)
class SharedMessage:
    """As in embedding.proto."""

    memory: Buffer = b""
    at: int = 0
    size: int = 0
    room_at: int = 0
    room: int = 0
    message: Buffer = b""


_FIELDS = {
    **{(1, BYTES): "memory", (2, VARINT): "at", (3, VARINT): "size"},
    **{(4, VARINT): "room_at", (5, VARINT): "room", (6, BYTES): "message"},
}


def shared_message(place: SharedMessage) -> bytes:
    """What travels in place of a message."""
    numbers = number(2, place.at), number(3, place.size), number(4, place.room_at), number(5, place.room)
    return b"".join([*of_bytes(1, place.memory), *numbers])


def sent_message(message: Parts) -> Parts:
    """An answer for which there was no room."""
    return of_message(6, message)


def read_shared_message(data: bytes) -> SharedMessage:
    """Raises ValueError or IndexError for what is none."""
    return read_into(SharedMessage(), memoryview(data), _FIELDS)
