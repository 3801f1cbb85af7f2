"""Pushes that come in several messages."""

from typing import Any

from rockbed.errors import InvalidConfig, LimitExceeded
from rockbed.messages import ApplyGradientsRequest, GroupGradients
from rockbed.server.limits import Limits


class PushParts:
    """Gathers the messages of one push after another on a stream."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parts: list[Any] = []
        self._bytes = 0

    def add(self, part: Any) -> Any:
        """The whole push once its last message has come, None before. Raises LimitExceeded, InvalidConfig."""
        self._bytes += sum(len(share.keys) + len(share.gradients) for share in part.groups)
        if self._bytes > self._limits.push_bytes_max:
            raise LimitExceeded(
                f"a push of more than {self._bytes} bytes, the server's push_bytes_max is "
                f"{self._limits.push_bytes_max}: send smaller batches"
            )
        self._parts.append(part)
        if part.more:
            return None
        parts, self._parts, self._bytes = self._parts, [], 0
        return part if len(parts) == 1 else _joined(parts)


def _joined(parts: list[Any]) -> ApplyGradientsRequest:
    shares: dict[int, list[Any]] = {}
    for part in parts:
        for share in part.groups:
            shares.setdefault(share.group, []).append(share)
    whole = ApplyGradientsRequest(client_id=parts[-1].client_id, request_number=parts[-1].request_number)
    for group, own in shares.items():
        if len({(share.precision, share.global_step) for share in own}) > 1:
            raise InvalidConfig(f"the parts of group {group} in one push differ in precision or global_step")
        keys, gradients = b"".join(share.keys for share in own), b"".join(share.gradients for share in own)
        whole.groups.append(GroupGradients(group, keys, gradients, own[0].precision, own[0].global_step))
    return whole
