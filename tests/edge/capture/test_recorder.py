"""Recording over HTTP, on a real agent."""

from __future__ import annotations

import io
import json
import socket
import threading
from pathlib import Path

import httpx
import pytest

from edge.agent import Agent
from edge.capture import recorder
from edge.capture.capture_file import Capture, frame_bytes, read_capture
from edge.capture.recorder import Recorder
from edge.capture.redaction import redacted
from edge.http_handler import Cancel, Handler, Reply
from edge.http_request import HttpRequest
from edge.http_stream import HttpStream
from tests.agents import make_config, running_agent
from tests.fakes import DEADLINE_S, FakeSession, Gate, wait_until

INFER = "/v2/models/affine/infer"


def tensor(first: float) -> dict[str, object]:
    return {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [first, 2, 3, 4]}


def ask(client: httpx.Client, first: float, **headers: str) -> httpx.Response:
    return client.post(INFER, json={"inputs": [tensor(first)]}, headers=headers)


def connect(agent: Agent) -> httpx.Client:
    return httpx.Client(base_url=agent.url, timeout=DEADLINE_S)


def begin(client: httpx.Client, **wish: object) -> bytes:
    response = client.post("/capture", content=json.dumps(wish))
    assert (response.status_code, response.headers["Edge-Capture-State"]) == (200, "recording")
    return response.content


def end(client: httpx.Client, begun: bytes) -> Capture:
    assert client.delete("/capture").status_code == 200
    content = begun
    while True:
        response = client.get("/capture")
        content += response.content
        if response.headers["Edge-Capture-State"] == "over":
            return read_capture(io.BytesIO(content))


def recorder_of(agent: Agent) -> Recorder:
    found = agent._server._handler
    assert isinstance(found, Recorder)
    return found


def test_an_agent_records_nothing_unless_it_is_allowed(tmp_path: Path) -> None:
    with running_agent(make_config(tmp_path)) as agent, connect(agent) as client:
        for method in ("POST", "GET", "DELETE"):
            response = client.request(method, "/capture")
            assert response.status_code == 403
            assert "allow_capture" in response.json()["error"]
        assert ask(client, 1).json()["outputs"][0]["data"] == [3, 5, 7, 9]
        assert recorder_of(agent)._recording is None
        assert "capture" not in {thread.name.partition("-")[0] for thread in threading.enumerate()}


def test_requests_are_recorded_with_their_answers_and_nothing_secret(tmp_path: Path) -> None:
    with (
        running_agent(make_config(tmp_path, allow_capture=True)) as agent,
        connect(agent) as client,
    ):
        ask(client, 0)
        begun = begin(client)
        first = ask(client, 1, Authorization="Bearer hush", Cookie="a=hush")
        client.get("/v2/health/ready")
        client.post("/v2/repository/index")
        bad = client.post(INFER, content=b"{}")
        capture = end(client, begun)
        ask(client, 5)
    one, two = capture.exchanges
    assert json.loads(one.body) == {"inputs": [tensor(1)]}
    assert (one.path, one.status, one.answer) == (INFER, 200, first.content)
    assert one.headers == {"Content-Type": "application/json"}
    assert (two.body, two.status, two.answer) == (b"{}", 400, bad.content)
    assert 0 <= one.offset_s <= one.offset_s + one.latency_s <= two.offset_s
    assert b"hush" not in frame_bytes(one)
    assert capture.end is not None
    assert (capture.end.reason, capture.problem) == ("stopped", None)


def test_named_inputs_leave_nothing_in_the_file(tmp_path: Path) -> None:
    with (
        running_agent(make_config(tmp_path, allow_capture=True)) as agent,
        connect(agent) as client,
    ):
        begun = begin(client, redact=["x"])
        assert ask(client, 987654.0).status_code == 200
        assert client.post(INFER, content=b"987654").status_code == 400
        capture = end(client, begun)
    (one,) = capture.exchanges
    assert json.loads(one.body)["inputs"][0]["data"] == [0, 0, 0, 0]
    assert (one.status, one.answer, one.is_redacted) == (200, b"", True)
    assert capture.end is not None
    assert capture.end.unredactable == 1
    assert capture.head.redact == ("x",)
    assert b"987654" not in b"".join(map(frame_bytes, capture.exchanges))


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ('{"redact": ["y"]}', "no model has an input 'y' to redact, only x"),
        ('{"share": 2}', "share"),
        ('{"seconds": 1e9}', "seconds"),
        ('{"max_bytes": 0}', "max_bytes"),
        ('{"sahre": 1}', "sahre"),
        ("[" * 100_000, "no wish"),
        ("\xff", "no wish"),
    ],
)
def test_a_bad_wish_is_a_400_and_nothing_is_recorded(
    tmp_path: Path, wish: str, reason: str
) -> None:
    with (
        running_agent(make_config(tmp_path, allow_capture=True)) as agent,
        connect(agent) as client,
    ):
        response = client.post("/capture", content=wish.encode("latin-1"))
        assert response.status_code == 400
        assert reason in response.json()["error"]
        assert client.get("/capture").status_code == 404
        assert client.delete("/capture").status_code == 404
        put = client.put("/capture")
        assert (put.status_code, put.headers["Allow"]) == (405, "DELETE, GET, POST")


def test_one_recording_at_a_time(tmp_path: Path) -> None:
    with (
        running_agent(make_config(tmp_path, allow_capture=True)) as agent,
        connect(agent) as client,
    ):
        begun = begin(client)
        assert client.post("/capture").status_code == 409
        assert end(client, begun).exchanges == ()
        assert end(client, begin(client)).exchanges == ()


def test_a_recording_that_nobody_fetches_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder, "ABANDONED_S", 0.01)
    with (
        running_agent(make_config(tmp_path, allow_capture=True)) as agent,
        connect(agent) as client,
    ):
        begin(client)
        wait_until(lambda: recorder_of(agent)._recording is None)
        assert client.get("/capture").status_code == 404
    assert "recording given up" in caplog.text


def test_what_comes_between_two_fetches_comes_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "MAX_POLL_BYTES", 1)  # one request per fetch
    with (
        running_agent(make_config(tmp_path, allow_capture=True)) as agent,
        connect(agent) as client,
    ):
        content = begin(client)
        for number in range(3):
            ask(client, number)
        content += client.get("/capture").content
        for number in range(3, 6):
            ask(client, number)
        capture = end(client, content)
    firsts = [json.loads(one.body)["inputs"][0]["data"][0] for one in capture.exchanges]
    assert firsts == [0, 1, 2, 3, 4, 5]


def test_redaction_that_takes_long_makes_no_request_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    def slow(*arguments: object, **options: object) -> object:
        gate()
        return redacted(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(recorder, "redacted", slow)
    with (
        running_agent(make_config(tmp_path, allow_capture=True)) as agent,
        connect(agent) as client,
    ):
        begun = begin(client)
        ask(client, 1)
        fetched: list[bytes] = []
        fetch = threading.Thread(
            target=lambda: fetched.append(httpx.get(f"{agent.url}/capture", timeout=60).content)
        )
        fetch.start()
        gate.wait_entered()
        try:
            assert ask(client, 2).status_code == 200
        finally:
            gate.open()
        fetch.join(DEADLINE_S)
        capture = end(client, begun + fetched[0])
    assert len(capture.exchanges) == 2


def test_a_client_that_vanishes_is_not_recorded_and_its_request_is_cancelled(
    tmp_path: Path,
) -> None:
    gate = Gate(holds=False)
    session = FakeSession(before_run=gate)
    config = make_config(tmp_path, allow_capture=True)
    with (
        running_agent(config, open_session=lambda *_: session) as agent,
        connect(agent) as client,
    ):
        begun = begin(client)
        gate.hold()
        served = agent.serving.served["affine"]
        body = json.dumps({"inputs": [tensor(1)]}).encode()
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as vanishing:
            head = f"POST {INFER} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
            vanishing.sendall(head.encode() + body)
            gate.wait_entered()
            vanishing.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1] + [0] * 7))
        wait_until(lambda: served.statistics.failures() == {"cancelled": 1})
        gate.open()
        assert end(client, begun).exchanges == ()


class Streaming:
    """A Handler that streams what it can and leaves the rest to the agent's own."""

    def __init__(self, own: Handler) -> None:
        self.own = own
        self.admit = own.admit
        self.close = own.close

    def __call__(self, request: HttpRequest, reply: Reply) -> Cancel | None:
        if b"stream" not in request.body:
            return self.own(request, reply)
        stream = HttpStream(headers={"Content-Type": "text/event-stream"})
        reply(stream)
        stream.send(b"data: secret\n\n")
        stream.end()
        return None


def test_a_stream_passes_whole_and_is_counted_not_recorded(tmp_path: Path) -> None:
    with (
        running_agent(make_config(tmp_path, allow_capture=True)) as agent,
        connect(agent) as client,
    ):
        recorder_of(agent)._handler = Streaming(recorder_of(agent)._handler)
        begun = begin(client)
        for _ in range(3):
            assert client.post(INFER, content=b"stream").content == b"data: secret\n\n"
        assert ask(client, 1).status_code == 200
        capture = end(client, begun)
    assert len(capture.exchanges) == 1
    assert capture.end is not None
    assert (capture.end.streamed, capture.end.dropped) == (3, 0)
