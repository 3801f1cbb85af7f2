"""GetRows and PutRows: arrays to bytes and back."""

from typing import Any

import numpy as np

from rockbed.errors import LimitExceeded
from rockbed.reports import RowReport
from rockbed.requests import PutRows
from rockbed.server.group import Group
from rockbed.server.limits import Limits
from rockbed.types import F32, I64
from rockbed.v1 import admin_pb2 as pb
from rockbed.wire import FLOAT32, floats_from_bytes, floats_to_bytes, keys_from_bytes, keys_to_bytes

_ROW_BYTES = 80  # of a row in an answer, beside its weights and slots


def must_fit_answer(group: Group, keys: int, limits: Limits) -> None:
    """Raise LimitExceeded where the answer to GetRows would be larger than a message may be."""
    size = keys * (4 * group.table.width + _ROW_BYTES)
    if size > limits.message_bytes_max:
        raise LimitExceeded(
            f"what is known of {keys} keys would be {size} bytes, the server's message_bytes_max is "
            f"{limits.message_bytes_max}: ask for fewer keys at a time"
        )


def rows_message(report: RowReport) -> Any:
    """The answer to GetRows."""
    return pb.GetRowsResponse(
        status=report.status.tobytes(),
        dim=report.weights.shape[1],
        weights=floats_to_bytes(report.weights, FLOAT32),
        slots=[pb.GetRowsResponse.Slot(name=name, width=width) for name, width in report.slot_widths.items()],
        slot_values=floats_to_bytes(report.slots, FLOAT32),
        update_num=keys_to_bytes(report.update_num),
        update_time_ms=keys_to_bytes(report.update_time_ms),
        expires_at_ms=keys_to_bytes(report.expires_at_ms),
        in_memory=report.in_memory.astype(np.uint8).tobytes(),
        dirty=report.dirty.astype(np.uint8).tobytes(),
        seen=keys_to_bytes(report.seen),
        needed=report.needed,
        removed_at_ms=keys_to_bytes(report.removed_at_ms),
        removed_by=report.removed_by,
        now_ms=report.now_ms,
    )


def sent_rows(group: Group, message: Any) -> PutRows:
    """The rows of a PutRowsRequest. Raises WrongShape, DimMismatch."""
    keys = keys_from_bytes(message.keys)
    dim, what = group.config.dim, f"of rows of group {group.number}"
    weights = floats_from_bytes(message.weights, keys.size, dim, FLOAT32, f"the weights {what}")
    slots: F32 | None = None
    if message.HasField("slots"):
        state = group.table.width - dim
        slots = floats_from_bytes(message.slots, keys.size, state, FLOAT32, f"the slots {what}")
    return PutRows(keys, weights, slots, _numbers(message, "update_num"), _numbers(message, "update_time_ms"))


def _numbers(message: Any, name: str) -> I64 | None:
    return keys_from_bytes(getattr(message, name)) if message.HasField(name) else None
