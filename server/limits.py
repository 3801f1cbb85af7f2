"""What a server takes at once."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one request."""

    message_bytes_max: int = 64 << 20  # of a request, and of an answer
    keys_max: int = 1 << 20  # of a request, all groups together
