"""Which request numbers of which clients have been applied: what makes a repeated push harmless."""

import threading
from typing import Any

from rockbed.errors import RequestTooOld
from rockbed.requests import Request

WINDOW = 1024  # request numbers behind a client's newest that are still told apart


class Clients:
    """Per client, every number up to `floor`, and single ones above it. Thread-safe.

    Numbers begin at 1 and may arrive out of order, but at most `window` behind the newest.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._floor: dict[str, int] = {}
        self._above: dict[str, set[int]] = {}
        self._lock = threading.Lock()

    def applied(self, request: Request) -> bool:
        """Whether the request has been applied. Raises RequestTooOld where that can no longer be told."""
        with self._lock:
            floor = self._floor.get(request.client, 0)
            above = self._above.get(request.client, set())
            if request.number in above:
                return True
            newest = max(above, default=floor)
            if request.number <= newest - self._window:
                raise RequestTooOld(
                    f"request {request.number} of client {request.client!r} is more than {self._window} behind its "
                    f"newest, {newest}: whether it was applied is no longer known. Number requests upwards, without "
                    "large gaps in flight"
                )
            return request.number <= floor

    def record(self, request: Request) -> None:
        """Remember a request as applied."""
        with self._lock:
            above = self._above.setdefault(request.client, set())
            above.add(request.number)
            floor = self._floor.get(request.client, 0)
            # a number may be left out for ever: it is given up once it is a window behind
            floor = max(floor, max(above) - self._window)
            while floor + 1 in above:
                floor += 1
            self._floor[request.client] = floor
            self._above[request.client] = {number for number in above if number > floor}

    def last(self, client: str) -> int:
        """The newest number applied for a client; 0 where there is none."""
        with self._lock:
            return max(self._above.get(client, set()), default=self._floor.get(client, 0))

    def snapshot(self) -> dict[str, Any]:
        """What the catalog holds."""
        with self._lock:
            return {c: {"floor": floor, "above": sorted(self._above.get(c, ()))} for c, floor in self._floor.items()}

    def load(self, stored: dict[str, Any]) -> None:
        """The reverse of `snapshot`."""
        with self._lock:
            self._floor = {client: int(entry["floor"]) for client, entry in stored.items()}
            self._above = {client: set(entry["above"]) for client, entry in stored.items()}
