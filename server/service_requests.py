"""What the services check of requests, whatever the method."""

from typing import Any

from rockbed.errors import InvalidConfig, LimitExceeded
from rockbed.requests import Request
from rockbed.server.access import Principal
from rockbed.server.limits import Limits

CLIENT_BYTES_MAX = 255


def must_fit(keys: int, limits: Limits) -> None:
    """Raise LimitExceeded where a request has more keys than the server takes."""
    if keys > limits.keys_max:
        raise LimitExceeded(f"{keys} keys in a request, the server's keys_max is {limits.keys_max}: split the batch")


def request_of(message: Any, caller: Principal) -> Request | None:
    """The client id and the request number of a push, as this caller's own. Raises InvalidConfig."""
    client, number = message.client_id, message.request_number
    if not client and not number:
        return None
    if not client or len(client.encode()) > CLIENT_BYTES_MAX or not 1 <= number < 2**63:
        raise InvalidConfig(
            f"client_id {client[:40]!r} with request_number {number}: give an id of 1 to {CLIENT_BYTES_MAX} bytes and "
            "a number from 1 to 2^63 - 1, or neither"
        )
    return Request(caller.own(client), number)
