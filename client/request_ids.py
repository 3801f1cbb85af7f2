"""Who asks, and the how-manieth time, as callers say it."""

from numbers import Integral
from typing import Any

from rockbed.errors import InvalidConfig
from rockbed.requests import CONNECTION, Request

RequestId = tuple[str, int]
"""A client's name and the number of its request, from 1."""


def checked_client(given: Any) -> str:
    """A client id. Raises InvalidConfig."""
    if not isinstance(given, str) or not 0 < len(given.encode()) <= 255:
        raise InvalidConfig(f"client id is {given!r}: give a str of 1..255 bytes")
    if given.startswith(CONNECTION):
        raise InvalidConfig(f"client id is {given!r}: those that begin with {CONNECTION!r} are connections' own")
    return given


def checked_request(given: RequestId | None) -> Request | None:
    """A client id and a request number, if there are any. Raises InvalidConfig."""
    if given is None:
        return None
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InvalidConfig(f"request is {given!r}: give (client id, number)")
    client, number = given
    if isinstance(number, bool) or not isinstance(number, Integral) or not 1 <= number < 2**63:
        raise InvalidConfig(f"request number {number!r} of client {client!r}: numbers are ints that go up from 1")
    return Request(checked_client(client), int(number))
