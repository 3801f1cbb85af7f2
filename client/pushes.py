"""A push cut into messages that a server takes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rockbed.requests import Gradients

_SHARE_BYTES = 64  # of a group's share of a message, beside its arrays


def messages(items: Sequence[Gradients], float_bytes: int, bytes_max: int, keys_max: int) -> Iterator[list[Gradients]]:
    """The shares of one message after another, each within both limits; at least one message."""
    message: list[Gradients] = []
    bytes_left, keys_left = bytes_max, keys_max
    for item in items:
        row_bytes = 8 + float_bytes * item.grads.shape[1]
        start = 0
        while start < item.keys.size or (start == 0 and item.keys.size == 0):
            rows = min(item.keys.size - start, keys_left, max(0, bytes_left - _SHARE_BYTES) // row_bytes)
            if rows == 0 and message and item.keys.size:
                yield message
                message, bytes_left, keys_left = [], bytes_max, keys_max
                continue
            part = slice(start, start + max(rows, 1))
            message.append(replace(item, keys=item.keys[part], grads=item.grads[part]))
            bytes_left -= _SHARE_BYTES + rows * row_bytes
            keys_left -= rows
            start = part.stop
    yield message
