"""What a server takes at once, and keeps between two calls."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one request, or of a push in several messages."""

    message_bytes_max: int = 64 << 20  # of a request, and of an answer
    keys_max: int = 1 << 22  # of a request, all groups together
    push_bytes_max: int = 1 << 30  # of keys and gradients of a push in several messages; it is in memory as a whole
    kept_bytes_max: int = 256 << 20  # of batches that were looked up with keep, all clients together
    kept_s: float = 60.0  # seconds after which they are forgotten
    shared_bytes_max: int = 1 << 30  # of memory shared with clients on this machine; 0 = none
