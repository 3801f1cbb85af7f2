"""What a server takes at once."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one request, or of a push in several messages."""

    message_bytes_max: int = 64 << 20  # of a request, and of an answer
    keys_max: int = 1 << 20  # of a request, all groups together
    push_bytes_max: int = 1 << 30  # of keys and gradients of a push in several messages; it is in memory as a whole
