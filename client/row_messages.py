"""A row report from its message."""

from typing import Any

import numpy as np

from rockbed.reports import RowReport
from rockbed.types import I64
from rockbed.wire import FLOAT32, floats_from_bytes, keys_from_bytes


def row_report(group: int, keys: I64, answer: Any) -> RowReport:
    """What the answer to GetRows for keys int64[n] says."""
    n = keys.size
    widths = {slot.name: slot.width for slot in answer.slots}
    return RowReport(
        group=group,
        keys=keys,
        status=np.frombuffer(answer.status, np.uint8).copy(),
        weights=floats_from_bytes(answer.weights, n, answer.dim, FLOAT32, "the weights from the server"),
        slots=floats_from_bytes(answer.slot_values, n, sum(widths.values()), FLOAT32, "the slots from the server"),
        slot_widths=widths,
        update_num=keys_from_bytes(answer.update_num),
        update_time_ms=keys_from_bytes(answer.update_time_ms),
        expires_at_ms=keys_from_bytes(answer.expires_at_ms),
        in_memory=np.frombuffer(answer.in_memory, np.uint8).astype(np.bool_),
        dirty=np.frombuffer(answer.dirty, np.uint8).astype(np.bool_),
        seen=keys_from_bytes(answer.seen),
        needed=answer.needed,
        removed_at_ms=keys_from_bytes(answer.removed_at_ms),
        removed_by=list(answer.removed_by),
        now_ms=answer.now_ms,
    )
