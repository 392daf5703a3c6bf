"""Traces of requests, as a collector receives them: OTLP over HTTP, decoded as protobuf."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from edge import traces
from edge.errors import BackendUnavailableError, ConfigError, InferenceError
from edge.http_request import HttpRequest
from edge.traces import Stage, Traced, Traces
from tests.agents import make_config, running_agent, unused_port
from tests.edge.chat.bundles import NAME, chat_parts, fake_opener
from tests.edge.test_agent import BODY
from tests.fakes import DEADLINE_S, FakeSession

service_pb2 = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
trace_pb2 = pytest.importorskip("opentelemetry.proto.trace.v1.trace_pb2")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

INFER = "/v2/models/affine/infer"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["read", "queue", "compute", "write"]


class Collector:
    """Receives OTLP over HTTP; status: what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.requests: queue.Queue[Any] = queue.Queue()
        self.paths: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/x-protobuf"
                collector.paths.add(self.path)
                if collector.status == 200:
                    collector.requests.put(service_pb2.ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                answer = service_pb2.ExportTraceServiceResponse().SerializeToString()
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self, count: int) -> list[Any]:
        """Wait for so many spans."""
        found: list[Any] = []
        while len(found) < count:
            request = self.requests.get(timeout=DEADLINE_S)
            found += [
                span
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]
        return found


@pytest.fixture
def collector(monkeypatch) -> Iterator[Collector]:
    monkeypatch.setattr(traces, "DELAY_MS", 20.0)
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,), name="collector")
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@contextlib.contextmanager
def asking(tmp_path, endpoint, parts=None, **options) -> Iterator[httpx.Client]:
    config = make_config(tmp_path, parts, otlp_endpoint=endpoint)
    with (
        running_agent(config, **options) as agent,
        httpx.Client(base_url=agent.url, timeout=DEADLINE_S) as client,
    ):
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_answer_is_a_span_with_its_stages_one_after_the_other(tmp_path, collector, stream):
    body = {"model": NAME, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    with asking(tmp_path, collector.url, chat_parts(), open_decoder=fake_opener()) as client:
        path = "/v1/chat/completions"
        answer = client.post(path, json={**body, "stream": stream}, headers=headers)
        assert answer.status_code == 200
        spans = {span.name: span for span in collector.spans(5)}
    whole = spans.pop("POST chat")
    assert whole.parent_span_id.hex() == PARENT
    assert attributes(whole)["edge.model.name"] == NAME
    stages = [spans[name] for name in ("read", "queue", "prefill", "decode")]
    assert len(spans) == 4
    assert {span.parent_span_id for span in stages} == {whole.span_id}
    times = [whole.start_time_unix_nano]
    for span in stages:
        assert span.start_time_unix_nano == times[-1]
        times.append(span.end_time_unix_nano)
    assert times == sorted(times)
    assert times[-1] <= whole.end_time_unix_nano


def test_a_chat_answer_that_fails_is_a_span_with_its_error(tmp_path, collector):
    fails, steps = threading.Event(), itertools.count()

    def before_step() -> None:
        if fails.is_set() and next(steps) == 2:
            raise InferenceError("the device is gone")

    body = {"model": NAME, "messages": [{"role": "user", "content": "hello"}]}
    options = {"open_decoder": fake_opener(before_step=before_step)}
    with asking(tmp_path, collector.url, chat_parts(), **options) as client:
        fails.set()
        status = client.post("/v1/chat/completions", json=body).status_code
        spans = {span.name: span for span in collector.spans(5)}
    assert set(spans) == {"POST chat", "read", "queue", "prefill", "decode"}
    found = attributes(spans["POST chat"])
    assert (found["error.type"], found["http.response.status_code"]) == ("inference", status)
    assert status == 500


def test_a_request_is_a_span_with_its_four_stages_below_that_of_the_client(tmp_path, collector):
    with asking(tmp_path, collector.url) as client:
        before_ns = time.time_ns()
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
        assert client.post(INFER, json=BODY, headers=headers).status_code == 200
        after_ns = time.time_ns()
        spans = {span.name: span for span in collector.spans(5)}
    assert collector.paths == {"/v1/traces"}
    assert set(spans) == {"POST infer", *STAGES}
    whole = spans["POST infer"]
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert whole.parent_span_id.hex() == PARENT
    assert whole.trace_state == "vendor=1"
    assert whole.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert attributes(whole) == {
        "http.request.method": "POST",
        "url.path": INFER,
        "http.response.status_code": 200,
        "edge.model.name": "affine",
        "edge.model.version": "1",
    }
    assert before_ns <= whole.start_time_unix_nano <= whole.end_time_unix_nano <= after_ns
    stages = [spans[name] for name in STAGES]
    assert {stage.parent_span_id for stage in stages} == {whole.span_id}
    times = [t for s in stages for t in (s.start_time_unix_nano, s.end_time_unix_nano)]
    assert times == sorted(times)
    assert times[0] == whole.start_time_unix_nano
    assert times[-1] == whole.end_time_unix_nano


def test_a_request_without_a_context_begins_a_trace_of_its_own(tmp_path, collector):
    with asking(tmp_path, collector.url) as client:
        client.post(INFER, json=BODY, headers={"traceparent": "00-zz-zz-01, 00-a-b-00"})
        client.post(INFER, json=BODY)
        spans = [span for span in collector.spans(10) if span.name == "POST infer"]
    assert [span.parent_span_id for span in spans] == [b"", b""]
    assert len({span.trace_id for span in spans}) == 2


def test_a_trace_that_the_client_does_not_sample_is_not_sent(tmp_path, collector):
    with asking(tmp_path, collector.url) as client:
        client.post(INFER, json=BODY, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        client.post(INFER, json=BODY, headers={"traceparent": f"00-{'1' * 32}-{PARENT}-01"})
        spans = collector.spans(5)
    assert {span.trace_id.hex() for span in spans} == {"1" * 32}
    assert collector.requests.empty()


def test_a_request_that_fails_is_a_span_with_the_code_of_the_error(tmp_path, collector):
    def fail() -> None:
        raise InferenceError("the card is gone")

    session = FakeSession(before_run=fail)
    config = make_config(tmp_path, otlp_endpoint=collector.url)
    armed = threading.Event()
    session._before_run = lambda: fail() if armed.is_set() else None
    with running_agent(config, open_session=lambda *_: session) as agent:
        armed.set()
        bad = {"inputs": [{**BODY["inputs"][0], "shape": [9, 9]}]}
        with httpx.Client(base_url=agent.url) as client:
            assert client.post(INFER, json=bad).status_code == 400
            assert client.post(INFER, json=BODY).status_code == 500
            spans = collector.spans(2)
    refused, failed = sorted(spans, key=lambda span: span.start_time_unix_nano)
    assert attributes(refused)["error.type"] == "input"
    assert refused.status.code == trace_pb2.Status.STATUS_CODE_UNSET  # the client's mistake
    assert attributes(failed)["error.type"] == "inference"
    assert failed.status.code == trace_pb2.Status.STATUS_CODE_ERROR


def test_nothing_of_what_was_sent_or_answered_is_in_a_span(tmp_path, collector):
    with asking(tmp_path, collector.url) as client:
        client.post(f"{INFER}?secret=7", json=BODY, headers={"authorization": "Bearer hush"})
        text = b"".join(span.SerializeToString() for span in collector.spans(5))
    assert b"hush" not in text
    assert b"secret" not in text


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_collector_that_is_away_is_logged_once_and_keeps_no_request_waiting(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(traces, "DELAY_MS", 1.0)
    monkeypatch.setattr(traces, "_CLOSE_S", 0.1)
    monkeypatch.setattr(traces, "TIMEOUT_S", 0.1)
    with asking(tmp_path, f"http://127.0.0.1:{unused_port()}") as client:
        for _ in range(200):
            assert client.post(INFER, json=BODY).status_code == 200
        assert client.get("/v2/health/ready").status_code == 200
    said = [text for text in warnings(caplog) if "trace" in text]
    assert said == ["traces cannot be sent and are lost; is the collector there?"]


def test_a_collector_that_comes_back_is_logged_once_and_gets_traces_again(
    tmp_path, collector, caplog, monkeypatch
):
    monkeypatch.setattr(traces, "TIMEOUT_S", 0.1)
    collector.status = 400
    with caplog.at_level(logging.INFO), asking(tmp_path, collector.url) as client:
        client.post(INFER, json=BODY)
        deadline = time.monotonic() + DEADLINE_S
        while "traces cannot be sent" not in caplog.text and time.monotonic() < deadline:
            client.post(INFER, json=BODY)
        collector.status = 200
        client.post(INFER, json=BODY)
        collector.spans(1)
    lines = [r.getMessage() for r in caplog.records if r.name == "edge.traces"]
    assert [line.split(";")[0] for line in lines[1:]] == [
        "traces cannot be sent and are lost",
        "traces can be sent again",
    ]


TRACED = Traced(
    name="infer",
    model="m",
    version="1",
    status=200,
    error=None,
    start=1.0,
    end=2.0,
    stages=(Stage(name="read", start=1.0, end=1.5),),
)
REQUEST = HttpRequest(method="POST", path="/x")


def test_spans_that_nobody_takes_fill_a_queue_of_fixed_size(collector, monkeypatch):
    monkeypatch.setattr(traces, "QUEUE_SPANS", 64)
    monkeypatch.setattr(traces, "BATCH_SPANS", 64)
    monkeypatch.setattr(traces, "DELAY_MS", 1e6)
    made = Traces.open(collector.url)
    lock = made._library._processor._batch_processor._export_lock
    with lock:  # as long as the collector takes its time
        for _ in range(500):
            made.record(REQUEST, TRACED)
        assert len(made._library._processor._batch_processor._queue) == 64
    made.close()
    assert len(collector.spans(64)) == 64


def test_a_trace_that_cannot_be_made_is_logged_once_and_raises_nothing(collector, caplog):
    made = Traces.open(collector.url)
    for _ in range(3):
        made.record(REQUEST, replace(TRACED, start=float("nan")))
    made.close()
    assert [text[:16] for text in warnings(caplog)] == ["a trace is lost:"]


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("http://[::1]:4318/otlp", "http://[::1]:4318/otlp/v1/traces"),
        ("http://c/v1/traces", "http://c/v1/traces"),
    ],
)
def test_the_path_of_the_protocol_is_added_to_an_endpoint(endpoint, url):
    assert traces._url(endpoint) == url


@pytest.mark.parametrize(
    "endpoint",
    ["127.0.0.1:4318", "file:///etc/passwd", "http://", "http://u:p@c", "http://c:x", "http://c?a"],
)
def test_what_is_no_url_of_a_collector_is_refused_at_the_start(endpoint):
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        Traces.open(endpoint)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'edge-kit\[otel\]'"):
        Traces.open("http://c")


def test_the_library_is_not_imported_while_no_endpoint_is_set():
    code = "import sys, edge.agent; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
