"""AdaptiveLookup: bytes to arrays, a call of the engine, arrays to bytes."""

from typing import Any

import grpc
import numpy as np

from rockbed.adaptive_messages import (
    AdaptiveRequest,
    adaptive_keys,
    adaptive_response,
    read_adaptive_request,
)
from rockbed.errors import LimitExceeded
from rockbed.server import adaptive
from rockbed.server.access import Role
from rockbed.server.limits import Limits
from rockbed.server.service_access import Access
from rockbed.server.service_errors import answered
from rockbed.server.service_requests import must_fit
from rockbed.server.serving import Serving
from rockbed.wire import floats_to_wire, must_be_known
from rockbed.wire_format import Parts, joined


class AdaptiveService:
    """A part of the Embedding service. Thread-safe."""

    def __init__(self, serving: Serving, limits: Limits, access: Access) -> None:
        self._serving = serving
        self._limits = limits
        self._access = access

    def methods(self) -> dict[str, Any]:
        """Handlers by the names of the methods."""
        return {
            "AdaptiveLookup": grpc.unary_unary_rpc_method_handler(self.AdaptiveLookup, read_adaptive_request, joined)
        }

    def AdaptiveLookup(self, request: AdaptiveRequest, context: grpc.ServicerContext) -> Parts:  # noqa: N802
        with answered(context):
            caller, engine = self._access.caller(context), self._serving.engine
            caller.must_reach([request.static_group, request.exact_group])
            if request.train:
                caller.must_be(Role.TRAIN, "look up with train=True")
            must_be_known(request.precision)
            must_fit(len(request.keys) // 8, self._limits)
            asked = adaptive_keys(request)
            shape = asked.keys.size, engine.group(asked.static, asked.static_generation).config.dim
            size = shape[0] * (4 * shape[1] + 1)
            if size > self._limits.message_bytes_max:
                raise LimitExceeded(
                    f"the answer for {shape[0]} keys of dim {shape[1]} would be {size} bytes, the server's "
                    f"message_bytes_max is {self._limits.message_bytes_max}: send fewer keys a request"
                )
            out = np.empty(shape, np.float32)
            mask, migrated = adaptive.lookup(engine, asked, out, train=bool(request.train))
            return adaptive_response(floats_to_wire(out, request.precision), mask, migrated)
