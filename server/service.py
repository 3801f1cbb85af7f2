"""The Embedding service: bytes to arrays, a call of the engine, arrays to bytes."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from rockbed.errors import InvalidConfig, LimitExceeded
from rockbed.messages import (
    lookup_many_response,
    lookup_response,
    push_response,
    read_lookup_many_request,
    read_lookup_request,
    read_push_request,
)
from rockbed.requests import Gradients
from rockbed.requests import Lookup as Asked
from rockbed.server.access import Principal, Role
from rockbed.server.limits import Limits
from rockbed.server.push import is_summed_in_memory
from rockbed.server.service_access import Access
from rockbed.server.service_adaptive import AdaptiveService
from rockbed.server.service_errors import answered
from rockbed.server.service_fused import FusedService
from rockbed.server.service_pushes import Gathering, PushParts
from rockbed.server.service_requests import must_fit, request_of
from rockbed.server.serving import Serving
from rockbed.types import I64
from rockbed.v1 import embedding_pb2 as pb
from rockbed.wire import floats_from_bytes, floats_to_wire, keys_from_bytes, must_be_known
from rockbed.wire_format import joined


class EmbeddingService:
    """Rows by key. Thread-safe, as the engine is.

    Messages that are mostly arrays are not protobuf's (`messages` says why), so it adds its methods to a server itself.
    """

    def __init__(self, serving: Serving, limits: Limits, access: Access) -> None:
        self._serving = serving
        self._limits = limits
        self._access = access
        self._gathering = Gathering(limits)
        self._fused = FusedService(serving, limits, access)
        self._adaptive = AdaptiveService(serving, limits, access)

    def add_to(self, server: grpc.Server) -> None:
        """Have a server answer the service's calls."""
        methods = {
            "Lookup": grpc.unary_unary_rpc_method_handler(self.Lookup, read_lookup_request, joined),
            "LookupStream": grpc.stream_stream_rpc_method_handler(self.LookupStream, read_lookup_request, joined),
            "LookupMany": grpc.unary_unary_rpc_method_handler(self.LookupMany, read_lookup_many_request, joined),
            "ApplyGradients": grpc.unary_unary_rpc_method_handler(self.ApplyGradients, read_push_request, joined),
            "ApplyGradientsStream": grpc.stream_stream_rpc_method_handler(
                self.ApplyGradientsStream, read_push_request, joined
            ),
            "Prefetch": grpc.unary_unary_rpc_method_handler(
                self.Prefetch, pb.PrefetchRequest.FromString, pb.PrefetchResponse.SerializeToString
            ),
            **self._fused.methods(),
            **self._adaptive.methods(),
        }
        name = pb.DESCRIPTOR.services_by_name["Embedding"].full_name
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))

    def Lookup(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            return self._lookup(request, self._access.caller(context))

    def LookupMany(self, requests: list[Any], context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            caller = self._access.caller(context)
            must_fit(sum(len(request.keys) // 8 for request in requests), self._limits)
            room = self._limits.message_bytes_max
            for request in requests:  # before rows are made for any of them
                room -= self._must_be_allowed(request, caller, room)
            return lookup_many_response(self._weights_of_many(requests))

    def LookupStream(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        with answered(context):
            for request in requests:
                yield self._lookup(request, self._access.caller(context))

    def ApplyGradients(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            must_fit(_keys_in(request), self._limits)
            if request.more:
                raise InvalidConfig("a push in several messages goes to ApplyGradientsStream")
            return self._apply(request, self._access.caller(context))

    def ApplyGradientsStream(  # noqa: N802
        self, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        with answered(context):
            parts = PushParts(self._gathering)
            for request in parts.watched(requests):
                must_fit(_keys_in(request), self._limits)
                push = parts.add(request)
                if push is not None:
                    yield self._apply(push, self._access.caller(context))

    def Prefetch(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            self._access.caller(context).must_reach([request.group])
            keys = self._keys(request.keys)
            in_memory, absent = self._serving.engine.prefetch(request.group, keys, request.generation)
            return pb.PrefetchResponse(in_memory=in_memory, absent=absent)

    # --- what they do ---

    def _lookup(self, request: Any, caller: Principal) -> Any:
        self._must_be_allowed(request, caller, self._limits.message_bytes_max)
        return lookup_response(self._weights(request))

    def _must_be_allowed(self, request: Any, caller: Principal, room: int) -> int:
        """Raise unless the caller may ask for it and its answer fits. Returns the bytes of the answer."""
        caller.must_reach([request.group])
        if request.train:
            caller.must_be(Role.TRAIN, "look up with train=True")
        must_be_known(request.precision)
        keys = len(request.keys) // 8
        must_fit(keys, self._limits)
        dim = self._serving.engine.group(request.group, request.generation).config.dim
        size = 4 * dim * keys
        if size > room:
            raise LimitExceeded(
                f"the answer for {keys} keys of dim {dim} would be {size} bytes, of the server's message_bytes_max of "
                f"{self._limits.message_bytes_max} there are {room}: send fewer keys a request"
            )
        return size

    def _weights(self, request: Any) -> Any:
        asked = self._asked(request)
        engine = self._serving.engine
        engine.lookup(asked.group, asked.keys, asked.out, train=bool(request.train), generation=asked.generation)
        return floats_to_wire(asked.out, request.precision)

    def _weights_of_many(self, requests: list[Any]) -> list[Any]:
        lookups = [self._asked(request) for request in requests]
        for train in {bool(request.train) for request in requests}:
            pairs = zip(lookups, requests, strict=True)
            self._serving.engine.lookup_many([each for each, by in pairs if bool(by.train) == train], train=train)
        return [floats_to_wire(each.out, request.precision) for each, request in zip(lookups, requests, strict=True)]

    def _asked(self, request: Any) -> Asked:
        keys = self._keys(request.keys)
        dim = self._serving.engine.group(request.group, request.generation).config.dim
        return Asked(request.group, keys, np.empty((keys.size, dim), np.float32), request.generation)

    def _apply(self, request: Any, caller: Principal) -> Any:
        caller.must_reach(share.group for share in request.groups)
        items = [self._share(share) for share in request.groups]
        applied = self._serving.engine.apply_gradients(items, request_of(request, caller))
        return push_response(applied)

    def _share(self, share: Any) -> Gradients:
        keys = keys_from_bytes(share.keys)
        group = self._serving.engine.group(share.group, share.generation)
        # what is summed may lie where the client could change it: of a gradient only the sum is used again
        lent = is_summed_in_memory(group)
        what = f"the gradients of group {share.group}"
        grads = floats_from_bytes(share.gradients, keys.size, group.config.dim, share.precision, what, lent=lent)
        step = share.global_step or None
        return Gradients(share.group, keys, grads, step, owned=not lent, generation=share.generation)

    def _keys(self, data: bytes | memoryview) -> I64:
        must_fit(len(data) // 8, self._limits)
        return keys_from_bytes(data)


def _keys_in(push: Any) -> int:
    return sum(len(share.keys) // 8 for share in push.groups)
