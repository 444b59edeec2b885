"""Records spans with OpenTelemetry. Only ``coord.spans`` imports this module, and only where tracing is on.

The provider is the program's own. If it has set none, and ``OTEL_TRACES_EXPORTER`` names an exporter (``otlp``,
``console``) that is installed, one is made that exports in batches; the exporter reads its own variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from types import MappingProxyType

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from coord.errors import ConfigError
from coord.spans import Attributes, EndedSpan, Kind

_PROPAGATOR = TraceContextTextMapPropagator()
_KINDS = MappingProxyType(
    {
        "server": SpanKind.SERVER,
        "producer": SpanKind.PRODUCER,
        "consumer": SpanKind.CONSUMER,
        "internal": SpanKind.INTERNAL,
    }
)
_NS = 1_000_000  # nanoseconds of a millisecond


def make_recorder() -> OtelRecorder:
    """Return the recorder of this process.

    Raises:
        ConfigError: the exporter in ``OTEL_TRACES_EXPORTER`` is not installed.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "none")
    if exporter != "none" and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(_provider(exporter))
    return OtelRecorder()


def _provider(exporter: str) -> TracerProvider:
    found = {point.name: point for point in entry_points(group="opentelemetry_traces_exporter")}
    if exporter not in found:
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER={exporter}: there is no such exporter here; installed are "
            f"{', '.join(sorted(found)) or 'none'}. For otlp install opentelemetry-exporter-otlp-proto-http"
        )
    resource = Resource.create({} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "coord"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(found[exporter].load()()))
    return provider


class OtelSpan:
    """An open span."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        """Its place in the trace."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span))
        return carrier.get("traceparent")

    def fail(self, message: str) -> None:
        """Set its status to an error."""
        self._span.set_status(Status(StatusCode.ERROR, message))

    def describe(self, name: str | None = None, **attributes: str | int) -> None:
        """Change its name, and add attributes."""
        if name is not None:
            self._span.update_name(name)
        self._span.set_attributes(attributes)


class OtelRecorder:
    """Records spans.

    Args:
        provider: of the tracer; None: the one that the program has at that moment.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._provider = provider

    @contextmanager
    def span(self, name: str, traceparent: str | None, kind: Kind, attributes: Attributes) -> Iterator[OtelSpan]:
        """Record a span while a block runs."""
        tracer = trace.get_tracer("coord", tracer_provider=self._provider)
        with tracer.start_as_current_span(
            name, context=_context(traceparent), kind=_KINDS[kind], attributes=dict(attributes)
        ) as span:
            yield OtelSpan(span)

    def record(self, span: EndedSpan, traceparent: str) -> None:
        """Record a span that has ended."""
        made = trace.get_tracer("coord", tracer_provider=self._provider).start_span(
            span.name,
            context=_context(traceparent),
            attributes=dict(span.attributes),
            start_time=span.begin * _NS,
        )
        if span.error is not None:
            made.set_status(Status(StatusCode.ERROR, span.error))
        made.end(end_time=max(span.begin, span.end) * _NS)


def _context(traceparent: str | None) -> Context | None:
    return None if traceparent is None else _PROPAGATOR.extract({"traceparent": traceparent}, Context())
