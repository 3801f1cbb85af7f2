"""An error of the engine as a gRPC status: the nearest standard code, and its own in the trailing metadata."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from rockbed.errors import (
    DeviceOutOfMemory,
    DeviceUnavailable,
    FormatTooNew,
    GroupConflict,
    MissingPackage,
    Overloaded,
    PermissionDenied,
    ReadOnlyStorage,
    RequestTooOld,
    RockbedError,
    ServerError,
    ServerUnavailable,
    StorageClosed,
    StorageCorrupt,
    StorageFailed,
    StorageFull,
    StoreExists,
    StoreNotFound,
    StorePermission,
    Unauthenticated,
    UnknownGroup,
    UnknownHandle,
    UnknownMemory,
)
from rockbed.wire import CODE_KEY, PUSHBACK_KEY

_log = logging.getLogger("rockbed.server")
_PUSHBACK_MS = 50  # how long an overloaded server asks to be left alone
_MESSAGE_MAX = 2_000  # characters; gRPC sends it as a header, and headers may take 8 KB in all

_STATUS: tuple[tuple[type[RockbedError], grpc.StatusCode], ...] = (
    (UnknownGroup, grpc.StatusCode.NOT_FOUND),
    (UnknownHandle, grpc.StatusCode.NOT_FOUND),
    (UnknownMemory, grpc.StatusCode.NOT_FOUND),
    (StoreNotFound, grpc.StatusCode.NOT_FOUND),
    (StoreExists, grpc.StatusCode.ALREADY_EXISTS),
    (GroupConflict, grpc.StatusCode.FAILED_PRECONDITION),
    (MissingPackage, grpc.StatusCode.FAILED_PRECONDITION),
    (DeviceUnavailable, grpc.StatusCode.FAILED_PRECONDITION),
    (DeviceOutOfMemory, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ReadOnlyStorage, grpc.StatusCode.FAILED_PRECONDITION),
    (RequestTooOld, grpc.StatusCode.OUT_OF_RANGE),
    (StorageFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StorageCorrupt, grpc.StatusCode.DATA_LOSS),
    (FormatTooNew, grpc.StatusCode.FAILED_PRECONDITION),
    (StorageFailed, grpc.StatusCode.INTERNAL),
    (StorePermission, grpc.StatusCode.INTERNAL),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ServerUnavailable, grpc.StatusCode.UNAVAILABLE),
    (ServerError, grpc.StatusCode.INTERNAL),
)


def status_of(error: RockbedError) -> grpc.StatusCode:
    """The standard code nearest to an error; INVALID_ARGUMENT for what the caller sent."""
    return next((status for cls, status in _STATUS if isinstance(error, cls)), grpc.StatusCode.INVALID_ARGUMENT)


@contextmanager
def answered(context: grpc.ServicerContext) -> Iterator[None]:
    """End the call with the status of whatever the block raises."""
    try:
        yield
    except StorageClosed:
        _abort(context, ServerUnavailable("the server is shutting down, or restoring a checkpoint: try again"))
    except RockbedError as error:
        _abort(context, error)
    except Exception as error:
        if context.is_active():
            _log.exception("a call failed")
        _abort(context, ServerError(f"the server failed ({type(error).__name__}); its log has the details"))


def refusing(
    error: RockbedError, pool: ThreadPoolExecutor, note: Callable[[grpc.ServicerContext], None] | None = None
) -> grpc.RpcMethodHandler:
    """A handler that answers whatever call with an error. pool: where it does; the others may all be busy. note: is
    called with each call that is refused so."""

    def refuse(_: object, context: grpc.ServicerContext) -> None:
        if note is not None:
            note(context)
        _abort(context, error)

    refuse.experimental_thread_pool = pool  # type: ignore[attr-defined]  # gRPC's own name for it
    # whatever the method is: only a handler of streams is called before a request has come, which may be never
    return grpc.stream_stream_rpc_method_handler(refuse)


def _abort(context: grpc.ServicerContext, error: RockbedError) -> None:
    trailers = [(CODE_KEY, error.code)]
    if isinstance(error, Overloaded):
        trailers.append((PUSHBACK_KEY, str(_PUSHBACK_MS)))
    context.set_trailing_metadata(tuple(trailers))
    context.abort(status_of(error), str(error)[:_MESSAGE_MAX])
