"""The trace that a call belongs to, for the server to go on with."""

import sys


def trace_headers() -> tuple[tuple[str, str], ...]:
    """`traceparent` and `tracestate` (W3C Trace Context) of the span that is active in this thread, or nothing.

    OpenTelemetry is not imported for it: where it has not been, no span can be active.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return tuple(headers.items())
