"""Spans of requests, sent to an OpenTelemetry collector where the configuration names one.

A span for the request, a child of the client's where it sent a `traceparent` (W3C Trace Context),
and one for each of its stages. They are made when the answer is known, and sent by a thread of the
library's; what does not fit into its queue is lost, and no request ever waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edge import __version__
from edge.errors import BackendUnavailableError, ConfigError
from edge.http_request import HttpRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

QUEUE_SPANS = 4096
BATCH_SPANS = 512
DELAY_MS = 1000.0
TIMEOUT_S = 5.0
_CLOSE_S = 2.0
_PATH = "/v1/traces"  # of OTLP over HTTP
_CONTEXT = (b"traceparent", b"tracestate")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a request; seconds on the clock of the traces."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A request that has its answer. error: the code, None for a good answer."""

    name: str
    model: str
    version: str
    status: int
    error: str | None
    start: float
    end: float
    stages: tuple[Stage, ...]


class Traces:
    """Makes spans of requests; make it with `open`. May be used from any thread."""

    def __init__(
        self,
        library: _Library,
        *,
        clock: Callable[[], float],
        wall_clock_ns: Callable[[], int],
    ) -> None:
        self._library = library
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns
        self._is_failing = False

    @classmethod
    def open(
        cls,
        endpoint: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> Traces:
        """Begin to send to a collector, such as http://127.0.0.1:4318; no connection is made yet.

        Raises ConfigError for what is no such URL, BackendUnavailableError without the library.
        """
        url = _url(endpoint)
        library = _Library(url)
        logger.info("traces go to %s", url)
        return cls(library, clock=clock, wall_clock_ns=wall_clock_ns)

    def record(self, request: HttpRequest, traced: Traced) -> None:
        """Make the spans of a request; a failure is logged once."""
        offset_ns = self._wall_clock_ns() - round(1e9 * self._clock())
        try:
            self._library.record(request, traced, offset_ns)
        except Exception as error:  # noqa: BLE001 - supervised: no request fails for its trace
            if not self._is_failing:
                logger.warning("a trace is lost: %s", error)
            self._is_failing = True

    def close(self) -> None:
        """Send what waits, and stop; a collector that is away gets two seconds for all of it."""
        self._library.close()


class _Library:
    """What is used of opentelemetry-sdk; constructing it starts a thread."""

    def __init__(self, url: str) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise BackendUnavailableError(
                f"otlp_endpoint is set, but OpenTelemetry cannot be imported: {error}; pip install "
                "'edge-kit[otel]', or unset otlp_endpoint"
            ) from error
        self._api = trace
        self._propagator = TraceContextTextMapPropagator()
        resource = Resource.create({"service.name": "edge-agent", "service.version": __version__})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter(endpoint=url, timeout=TIMEOUT_S)
        self._processor = BatchSpanProcessor(
            _exporter_logged_once(self._exporter),
            max_queue_size=QUEUE_SPANS,
            max_export_batch_size=BATCH_SPANS,
            schedule_delay_millis=DELAY_MS,
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("edge", __version__)
        # It logs each batch that fails, and each span that found its queue full.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def record(self, request: HttpRequest, traced: Traced, offset_ns: int) -> None:
        carrier = {key.decode(): request.header(key) for key in _CONTEXT if key in request.headers}
        span = self._tracer.start_span(
            f"{request.method} {traced.name}",
            context=self._propagator.extract(carrier),
            kind=self._api.SpanKind.SERVER,
            attributes={
                "http.request.method": request.method,
                "url.path": request.path,
                "http.response.status_code": traced.status,
                "edge.model.name": traced.model,
                "edge.model.version": traced.version,
            },
            start_time=offset_ns + round(1e9 * traced.start),
        )
        if not span.is_recording():  # the client's trace is not sampled
            return
        if traced.error is not None:
            span.set_attribute("error.type", traced.error)
            if traced.status >= 500:
                span.set_status(self._api.StatusCode.ERROR)
        within = self._api.set_span_in_context(span)
        for stage in traced.stages:
            start_ns = offset_ns + round(1e9 * stage.start)
            child = self._tracer.start_span(stage.name, context=within, start_time=start_ns)
            child.end(offset_ns + round(1e9 * stage.end))
        span.end(offset_ns + round(1e9 * traced.end))

    def close(self) -> None:
        # The library would go on for 30 s; an exporter that is shut down fails at once.
        timer = threading.Timer(_CLOSE_S, self._exporter.shutdown)
        timer.start()
        self._processor.shutdown()  # type: ignore[no-untyped-call] # the library leaves it untyped
        timer.cancel()
        timer.join()


def _exporter_logged_once(exporter: SpanExporter) -> SpanExporter:
    """Return an exporter that says when sending begins to fail, and when it works again."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Logged(SpanExporter):
        is_failing = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export(spans)
            fails = result is not SpanExportResult.SUCCESS
            if fails and not self.is_failing:
                logger.warning("traces cannot be sent and are lost; is the collector there?")
            elif self.is_failing and not fails:
                logger.info("traces can be sent again")
            self.is_failing = fails
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return Logged()


def _url(endpoint: str) -> str:
    parts: Any = None
    try:
        parts = urlsplit(endpoint)
        is_good = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or 1)
    except ValueError:
        is_good = False
    if not is_good or parts.query or parts.fragment or parts.username:
        raise ConfigError(
            f"otlp_endpoint: {endpoint!r} is not the URL of a collector, such as "
            "http://127.0.0.1:4318"
        )
    path = parts.path.rstrip("/")
    return endpoint if path.endswith(_PATH) else f"{parts.scheme}://{parts.netloc}{path}{_PATH}"
