"""Fused batches over gRPC: bytes to bags, a call of the engine, arrays to bytes."""

from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

from rockbed.bags import Bags, check_bags
from rockbed.errors import DimMismatch, InvalidConfig, LimitExceeded, WrongShape
from rockbed.fused_messages import (
    BagsMessage,
    FusedApplyGradientsRequest,
    FusedLookupRequest,
    bags,
    fused_lookup_response,
    read_fused_lookup_request,
    read_fused_push_request,
)
from rockbed.messages import push_response
from rockbed.server import fused
from rockbed.server.access import Principal, Role
from rockbed.server.engine import Engine
from rockbed.server.kept_batches import apply_kept
from rockbed.server.limits import Limits
from rockbed.server.service_access import Access
from rockbed.server.service_errors import answered
from rockbed.server.service_requests import must_fit, request_of
from rockbed.server.serving import Serving
from rockbed.types import F32
from rockbed.wire import float_bytes, floats_from_bytes, floats_to_wire, must_be_known
from rockbed.wire_format import Buffer, Parts, joined

Shape = tuple[int, int]


class FusedService:
    """The Embedding service's methods for fused batches. Thread-safe."""

    def __init__(self, serving: Serving, limits: Limits, access: Access) -> None:
        self._serving = serving
        self._limits = limits
        self._access = access

    def methods(self) -> dict[str, Any]:
        """Handlers by the names of the methods."""
        unary = grpc.unary_unary_rpc_method_handler
        return {
            "FusedLookup": unary(self.FusedLookup, read_fused_lookup_request, joined),
            "FusedApplyGradients": unary(self.FusedApplyGradients, read_fused_push_request, joined),
        }

    def FusedLookup(self, request: FusedLookupRequest, context: grpc.ServicerContext) -> Parts:  # noqa: N802
        with answered(context):
            caller, engine = self._access.caller(context), self._serving.engine
            if request.train or request.keep:
                caller.must_be(Role.TRAIN, "look up with train=True" if request.train else "keep a batch for a push")
            must_be_known(request.precision)
            batch = self._batch(request.features, caller)
            shape, shapes = _shapes(engine, batch)
            self._must_fit_answer([shape, *shapes], float_bytes(request.precision))
            pooled, sequences = np.empty(shape, np.float32), [np.empty(each, np.float32) for each in shapes]
            plan = fused.lookup(engine, batch, pooled, sequences, train=bool(request.train))
            return fused_lookup_response(
                floats_to_wire(pooled, request.precision),
                [floats_to_wire(rows, request.precision) for rows in sequences],
                engine.kept.keep(plan, caller.name) if request.keep else None,
            )

    def FusedApplyGradients(  # noqa: N802
        self, request: FusedApplyGradientsRequest, context: grpc.ServicerContext
    ) -> Any:
        with answered(context):
            caller, engine = self._access.caller(context), self._serving.engine
            by = request_of(request, caller)

            def push(of: "Sequence[Bags] | fused.Plan") -> bool:
                batch = of.batch if isinstance(of, fused.Plan) else of
                caller.must_reach(each.group for each in batch)  # the token may have lost a kept one's since
                pooled, sequences, steps = _gradients(request, engine, batch)
                return fused.apply_gradients(engine, of, pooled, sequences, steps, by)

            if request.handle is None:
                applied = push(self._batch(request.features, caller))
            elif request.features:
                raise InvalidConfig("a push has features, or the handle of a batch that is kept: not both")
            else:
                applied = apply_kept(engine, bytes(request.handle), caller.name, by, push)
            return push_response(applied)

    def _batch(self, features: Sequence[BagsMessage], caller: Principal) -> list[Bags]:
        caller.must_reach(each.group for each in features)
        must_fit(sum(len(each.keys) // 8 for each in features), self._limits)
        batch = [bags(each) for each in features]
        check_bags(batch, contents=False)
        return batch

    def _must_fit_answer(self, shapes: Sequence[Shape], width: int) -> None:
        size = width * sum(rows * dim for rows, dim in shapes)
        if size > self._limits.message_bytes_max:
            raise LimitExceeded(
                f"the answer, float[{shapes[0][0]}, {shapes[0][1]}] and {len(shapes) - 1} sequences, would be {size} "
                f"bytes, the server's message_bytes_max is {self._limits.message_bytes_max}: send fewer samples"
            )


def _shapes(engine: Engine, batch: Sequence[Bags]) -> tuple[Shape, list[Shape]]:
    """Of what a batch gives: pooled, and each sequence. Raises UnknownGroup."""
    samples = batch[0].offsets.size - 1 if batch else 0
    width, sequences = 0, []
    for each in batch:
        dim = engine.group(each.group, each.generation).config.dim
        if each.combiner is None:
            sequences.append((each.keys.size, dim))
        else:
            width += dim
    return (samples, width), sequences


def _gradients(
    request: FusedApplyGradientsRequest, engine: Engine, batch: Sequence[Bags]
) -> tuple[F32, list[F32], dict[int, int]]:
    """Those of what was pooled, those of the sequences, and the global steps."""
    others = request.global_steps.keys() - {each.group for each in batch}
    if others:
        raise InvalidConfig(f"global_steps names group {min(others)}, which is not in the batch")
    shape, shapes = _shapes(engine, batch)
    if len(request.sequences) != len(shapes):
        raise WrongShape(
            f"gradients of {len(request.sequences)} sequences for a batch that has {len(shapes)} (features whose "
            "combiner is none): send one for each, in their order"
        )
    pooled = _floats(request.pooled, shape, request.precision, "the pooled gradients")
    sequences = [
        _floats(data, each, request.precision, f"the gradients of sequence {i}")
        for i, (data, each) in enumerate(zip(request.sequences, shapes, strict=True))
    ]
    return pooled, sequences, request.global_steps


def _floats(data: Buffer, shape: Shape, precision: int, what: str) -> F32:
    must_be_known(precision)
    size = float_bytes(precision) * shape[0] * shape[1]
    if len(data) != size:
        raise DimMismatch(
            f"{what} are {len(data)} bytes: send [{shape[0]}, {shape[1]}] floats of {float_bytes(precision)} bytes, "
            f"{size} bytes in all"
        )
    # of gradients that a client may change meanwhile only sums and copies are used again
    return floats_from_bytes(data, *shape, precision, what, lent=True)
