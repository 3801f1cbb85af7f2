"""Pushes that come in several messages."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any

from rockbed.errors import InvalidConfig, LimitExceeded, Overloaded, WrongShape
from rockbed.messages import ApplyGradientsRequest, GroupGradients
from rockbed.server.limits import Limits


class Gathering:
    """Bytes of all pushes that are coming in, within push_bytes_max together. Thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self.limit_bytes = limits.push_bytes_max
        self._bytes = 0
        self._lock = threading.Lock()

    def change(self, size: int) -> None:
        """Take so many bytes, or give them back. Raises Overloaded where others have them."""
        with self._lock:
            if size > 0 and self._bytes + size > self.limit_bytes:
                raise Overloaded(
                    f"pushes of {self._bytes} bytes in several messages are coming in, push_bytes_max is "
                    f"{self.limit_bytes}: try again later"
                )
            self._bytes += size


class PushParts:
    """Gathers the messages of one push after another on a stream."""

    def __init__(self, gathering: Gathering) -> None:
        self._gathering = gathering
        self._parts: list[Any] = []
        self._bytes = 0

    def watched(self, requests: Iterable[Any]) -> Iterator[Any]:
        """The requests; what was gathered is let go of at their end, however they end."""
        try:
            yield from requests
        finally:
            self._take()

    def add(self, part: Any) -> Any:
        """The whole push once its last message has come, None before.

        Raises LimitExceeded, Overloaded, InvalidConfig, WrongShape.
        """
        if not part.more and not self._parts:
            return part
        limit = self._gathering.limit_bytes
        if self._bytes + part.size > limit:
            raise LimitExceeded(f"a push of more than {limit} bytes, the server's push_bytes_max: send smaller batches")
        groups = [share.group for share in part.groups]
        if len(set(groups)) < len(groups):
            raise WrongShape(f"a group may stand in a message once, the groups sent are {groups[:20]}")
        self._gathering.change(part.size)
        self._bytes += part.size
        self._parts.append(part)
        return None if part.more else _joined(self._take())

    def _take(self) -> list[Any]:
        parts, self._parts = self._parts, []
        self._gathering.change(-self._bytes)
        self._bytes = 0
        return parts


def _joined(parts: list[Any]) -> ApplyGradientsRequest:
    shares: dict[int, list[Any]] = {}
    for part in parts:
        for share in part.groups:
            shares.setdefault(share.group, []).append(share)
    whole = ApplyGradientsRequest(client_id=parts[-1].client_id, request_number=parts[-1].request_number)
    for group, own in shares.items():
        if len({(share.precision, share.global_step, share.generation) for share in own}) > 1:
            raise InvalidConfig(
                f"the parts of group {group} in one push differ in precision, global_step or generation"
            )
        keys, gradients = b"".join(share.keys for share in own), b"".join(share.gradients for share in own)
        first = own[0]
        settings = first.precision, first.global_step, first.generation
        whole.groups.append(GroupGradients(group, keys, gradients, *settings))
    return whole
