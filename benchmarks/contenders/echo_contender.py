"""A gRPC server that does nothing (benchmarks/echo.py), sent as many bytes as Rockbed's daemon and answering as many.

One message a call, waited for at once, as Rockbed's client does with batches of these sizes. The bytes are made once,
so the ratio to it says what Rockbed's client and server cost beside gRPC.
"""

import sys
from collections.abc import Sequence
from functools import lru_cache

import grpc

from benchmarks.contenders.base import Contender, Settings
from benchmarks.data import F32, Batch
from benchmarks.servers import Server
from rockbed.v1 import embedding_pb2 as pb


class Echo:
    def open(self, settings: Settings) -> None:
        self._dim = settings.dim
        log = settings.directory.with_name(f"{settings.directory.name}.log")
        self._server = Server([sys.executable, "-m", "benchmarks.echo"], log)
        target, _ = self._server.address()
        self._channel = grpc.insecure_channel(
            target.removeprefix("grpc://"),
            (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)),
        )
        self._method = lru_cache(self._channel.unary_unary)

    def _call(self, request: bytes, answer: int) -> None:
        self._method(f"/bytes/{answer}")(request, timeout=60)

    def lookup(self, batch: Batch) -> None:
        self._call(*lookup_bytes(len(batch.keys), self._dim))

    def apply(self, batch: Batch, grads: F32) -> None:
        self._call(*push_bytes((len(batch.keys),), self._dim))

    def train_step(self, batches: Sequence[Batch], grads: Sequence[F32]) -> None:
        self._call(*lookups_bytes(tuple(len(batch.keys) for batch in batches), self._dim))
        self._call(*push_bytes(tuple(len(batch.keys) for batch in batches), self._dim))

    def settle(self) -> None:
        return

    def facts(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._channel.close()
        self._server.stop()


@lru_cache
def lookup_bytes(keys: int, dim: int) -> tuple[bytes, int]:
    """A lookup's request, and the size of its answer."""
    request = pb.LookupRequest(keys=bytes(8 * keys), train=True, generation=1)
    answer = pb.LookupResponse(weights=bytes(4 * dim * keys))
    return request.SerializeToString(), answer.ByteSize()


@lru_cache
def lookups_bytes(keys: tuple[int, ...], dim: int) -> tuple[bytes, int]:
    """The request of lookups of so many keys each, in one call, and the size of its answer."""
    request = pb.LookupManyRequest(
        lookups=[pb.LookupRequest(group=i, keys=bytes(8 * n), train=True, generation=1) for i, n in enumerate(keys)]
    )
    answer = pb.LookupManyResponse(lookups=[pb.LookupResponse(weights=bytes(4 * dim * n)) for n in keys])
    return request.SerializeToString(), answer.ByteSize()


@lru_cache
def push_bytes(keys: tuple[int, ...], dim: int) -> tuple[bytes, int]:
    """A push's request, for so many keys of each group, and the size of its answer."""
    request = pb.ApplyGradientsRequest(
        groups=[
            pb.GroupGradients(group=i, keys=bytes(8 * n), gradients=bytes(4 * dim * n), generation=1)
            for i, n in enumerate(keys)
        ],
        client_id="auto-" + 32 * "0",
        request_number=1,
    )
    return request.SerializeToString(), pb.ApplyGradientsResponse(applied=True).ByteSize()


def make() -> Contender:
    return Echo()
