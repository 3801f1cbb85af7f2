"""Spans: what the server makes of a call, and how it finds the caller's."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from rockbed import Connection, GradientNotFinite, PyStorage, ServerError
from rockbed.client.tracing import trace_headers
from rockbed.server.daemon import Daemon
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.engine import Engine
from rockbed.server.service_tracing import Tracing, provider_from_environment
from tests.api.helpers import OpenStorage, embedding, engine_of, keys_of, ones
from tests.source_tree import ROOT
from tests.waiting import until


class Traced:
    """A client of a daemon, and the spans of both."""

    def __init__(self, storage: PyStorage, engine: Engine, provider: TracerProvider, spans: InMemorySpanExporter):
        self.storage = storage
        self.engine = engine
        self.tracer = provider.get_tracer("test")
        self._spans = spans

    def spans(self, method: str) -> list[ReadableSpan]:
        """Those of a method: the server's end a moment after the answer."""
        found: list[ReadableSpan] = []

        def there() -> bool:
            found[:] = [span for span in self._spans.get_finished_spans() if span.name.endswith("/" + method)]
            return bool(found)

        until(there)
        return found


@pytest.fixture
def traced(open_storage: OpenStorage) -> Iterator[Traced]:
    engine = engine_of(open_storage())
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    daemon = Daemon(engine, ServerConfig(listen="127.0.0.1:0"), observers=[Tracing(provider)])
    try:
        with PyStorage(daemon.target, connection=Connection(retry_s=0, client_id="trainer-1")) as storage:
            yield Traced(storage, engine, provider, spans)
    finally:
        daemon.stop(0)
        provider.shutdown()


def test_a_call_is_a_span_that_says_what_was_asked(traced: Traced) -> None:
    embedding(traced.storage, group=3).lookup(np.arange(10))
    (span,) = traced.spans("Lookup")
    assert span.name == "rockbed.v1.Embedding/Lookup"
    assert span.kind is SpanKind.SERVER
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "rockbed.v1.Embedding",
        "rpc.method": "Lookup",
        "rpc.grpc.status_code": 0,
        "rockbed.group": (3,),
        "rockbed.keys": 10,
        "rockbed.client": "trainer-1",
    }
    assert span.status.status_code is StatusCode.UNSET
    assert span.parent is None
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= span.end_time


def test_the_servers_span_is_a_child_of_the_callers(traced: Traced) -> None:
    rows = embedding(traced.storage)
    with traced.tracer.start_as_current_span("step") as step:
        rows.apply_gradients(keys_of(1, 2), ones(2))
    (span,) = traced.spans("ApplyGradients")
    assert span.parent is not None
    assert span.parent.span_id == step.get_span_context().span_id
    assert span.parent.is_remote
    assert span.context is not None
    assert span.context.trace_id == step.get_span_context().trace_id
    assert traced.spans("CreateGroup")[0].parent is None


def test_calls_with_several_answers_carry_the_callers_span_too(traced: Traced) -> None:
    with traced.tracer.start_as_current_span("cleaning") as step:
        traced.storage.shrink(max_age=1)
    (span,) = traced.spans("Shrink")
    assert span.parent is not None
    assert span.parent.span_id == step.get_span_context().span_id


def test_a_push_to_several_groups_names_them_all(traced: Traced) -> None:
    four, two = (embedding(traced.storage, group=group) for group in (4, 2))
    traced.storage.apply_gradients([(four, keys_of(1, 2), ones(2)), (two, keys_of(5), ones(1))])
    (span,) = traced.spans("ApplyGradients")
    assert span.attributes is not None
    assert span.attributes["rockbed.group"] == (2, 4)
    assert span.attributes["rockbed.keys"] == 3


def test_a_refused_request_names_its_error_and_is_no_fault_of_the_server(traced: Traced) -> None:
    rows = embedding(traced.storage)
    with pytest.raises(GradientNotFinite):
        rows.apply_gradients(keys_of(1), ones(1, value=np.nan))
    (span,) = traced.spans("ApplyGradients")
    assert span.attributes is not None
    assert (span.attributes["error.type"], span.attributes["rpc.grpc.status_code"]) == ("gradient_not_finite", 3)
    assert span.status.status_code is StatusCode.UNSET


def test_a_fault_of_the_server_is_an_error(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = embedding(traced.storage)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(traced.engine, "lookup", broken)
    with pytest.raises(ServerError):
        rows.lookup(keys_of(1))
    (span,) = traced.spans("Lookup")
    assert span.attributes is not None
    assert (span.attributes["error.type"], span.attributes["rpc.grpc.status_code"]) == ("server_error", 13)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "server_error")


def test_a_client_sends_nothing_without_an_active_span() -> None:
    assert trace_headers() == ()


def test_a_client_does_not_import_opentelemetry(tmp_path: Path) -> None:
    code = (
        "import sys, rockbed.client.transport as t; from rockbed import Connection;"
        "t.trace_headers(); print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"


@pytest.mark.parametrize(("given", "name"), [({}, "rockbed"), ({"OTEL_SERVICE_NAME": "rows-eu"}, "rows-eu")])
def test_the_environment_says_how_spans_are_sent(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], name: str
) -> None:
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    provider = provider_from_environment()
    try:
        assert provider.resource.attributes["service.name"] == name
    finally:
        provider.shutdown()


def test_traces_without_their_packages_say_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None; from rockbed.server.cli import main;"
        f"sys.argv = ['rockbed', 'serve', '--traces', '--data', {str(tmp_path / 'store')!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "--traces needs opentelemetry: pip install 'rockbed[tracing]'" in done.stderr
    assert not (tmp_path / "store").exists()
