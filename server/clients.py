"""Which request numbers of which clients have been applied: what makes a repeated push harmless."""

import threading
from typing import Any

from rockbed.errors import RequestTooOld
from rockbed.requests import CONNECTION, Request

WINDOW = 1024  # request numbers behind a client's newest that are still told apart
CONNECTION_KEPT_MS = 7 * 86_400_000  # after its last push; it may try one again for retry_s of the client, far less


class Clients:
    """Per client, every number up to `floor`, and single ones above it. Thread-safe.

    Numbers begin at 1 and may arrive out of order, but at most `window` behind the newest.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._floor: dict[str, int] = {}
        self._above: dict[str, set[int]] = {}
        self._latest_ms: dict[str, int] = {}  # of connections
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

    def record(self, request: Request, now_ms: int) -> None:
        """Remember a request as applied."""
        with self._lock:
            if request.client.startswith(CONNECTION):
                self._latest_ms[request.client] = now_ms
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

    def snapshot(self, now_ms: int) -> dict[str, Any]:
        """What the catalog holds. Connections that have ended long ago are forgotten."""
        with self._lock:
            for client in [c for c, latest in self._latest_ms.items() if now_ms - latest > CONNECTION_KEPT_MS]:
                del self._latest_ms[client], self._floor[client], self._above[client]
            return {client: self._entry(client) for client in self._floor}

    def _entry(self, client: str) -> dict[str, Any]:
        entry = {"floor": self._floor[client], "above": sorted(self._above.get(client, ()))}
        return {**entry, "latest_ms": self._latest_ms[client]} if client in self._latest_ms else entry

    def load(self, stored: dict[str, Any]) -> None:
        """The reverse of `snapshot`."""
        with self._lock:
            self._floor = {client: int(entry["floor"]) for client, entry in stored.items()}
            self._above = {client: set(entry["above"]) for client, entry in stored.items()}
            self._latest_ms = {c: int(entry["latest_ms"]) for c, entry in stored.items() if "latest_ms" in entry}
