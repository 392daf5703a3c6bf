"""`edge-agent capture` and `edge-agent replay` from end to end, against real agents."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edge.agent import Agent
from edge.capture import commands
from edge.capture.capture_file import VERSION, Exchange, Head, frame_bytes, read_capture
from edge.capture.replay import replay
from edge.cli import cli
from edge.config import AgentConfig
from edge.errors import CaptureError, EdgeError, NoAgentError, StorageError, UsageError
from edge.oip import JSON_LENGTH_HEADER
from tests.agents import make_config, running_agent
from tests.bundles import affine_parts
from tests.edge.capture.test_capture_file import exchange
from tests.edge.capture.test_recorder import recorder_of
from tests.fakes import DEADLINE_S, wait_until
from tests.models import affine, affine_model

INFER = "/v2/models/affine/infer"
REQUESTS = 6


def changed_config(tmp_path: Path, *, scale: float) -> AgentConfig:
    """An agent with the same model of another scale, near enough for its self-test."""
    graph = affine_model(scale=scale).SerializeToString()
    (tmp_path / "other").mkdir()
    return make_config(tmp_path / "other", affine_parts({"int8": graph, "fp32": graph}))


def send_traffic(url: str) -> None:
    """Send JSON and binary requests, and one that is refused."""
    with httpx.Client(base_url=url, timeout=DEADLINE_S) as client:
        for number in range(REQUESTS - 1):
            x = np.array([[number, 1, 2, 3]], np.float32)
            tensor: dict[str, Any] = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
            if number % 2:
                tensor["data"] = x.ravel().tolist()
                response = client.post(INFER, json={"inputs": [tensor]})
                assert response.json()["outputs"][0]["data"] == affine(x)["y"].ravel().tolist()
                continue
            tensor["parameters"] = {"binary_data_size": x.nbytes}
            asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
            head = json.dumps(asked).encode()
            response = client.post(
                INFER, content=head + x.tobytes(), headers={JSON_LENGTH_HEADER: str(len(head))}
            )
            assert affine(x)["y"].tobytes() in response.content
        assert client.post(INFER, content=b"{}").status_code == 400


def run(*arguments: object) -> int:
    status: int | None = cli.main([str(a) for a in arguments], standalone_mode=False)
    return status or 0


def record(agent: Agent, file: Path, *options: object) -> None:
    """Run the command until the traffic is over."""

    def traffic() -> None:
        wait_until(lambda: recorder_of(agent)._recording is not None)
        try:
            send_traffic(agent.url)
        finally:
            httpx.delete(f"{agent.url}/capture", timeout=DEADLINE_S)

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(traffic)
        run("capture", file, "--url", agent.url, *options)
        sent.result(DEADLINE_S)


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "POLL_S", 0.005)


def write_file(path: Path, *exchanges: Exchange) -> Path:
    head = Head(version=VERSION, created="2026-01-01T00:00:00+00:00", agent="1", share=1, redact=())
    path.write_bytes(b"".join(map(frame_bytes, (head, *exchanges))))
    return path


def test_the_same_agent_gives_the_same_answers_and_another_model_is_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "requests.capture"
    with running_agent(make_config(tmp_path, allow_capture=True)) as agent:
        record(agent, file)
        assert f"{file}: {REQUESTS} requests" in capsys.readouterr().out
        assert file.stat().st_mode & 0o777 == 0o600
        assert run("replay", file, "--url", agent.url, "--speed", 0) == 0
        table = capsys.readouterr().out
        assert "same: 5 of 6 compared" in table
        assert max(map(len, table.splitlines())) <= 80
        with running_agent(changed_config(tmp_path, scale=2.05)) as changed:
            both = ("--url", agent.url, "--against", changed.url, "--json")
            for way in (("--url", changed.url, "--json"), both):
                assert run("replay", file, *way) == 1
                report = json.loads(capsys.readouterr().out)
                assert report["is_same"] is False
                assert report["differing"] == [1, 2, 3, 4, 5]
                worst = {row["output"]: row["worst"] for row in report["outputs"]}
                x = np.array([[4, 1, 2, 3]], np.float32)  # the largest of them, and so its error
                y = affine(x)["y"]
                expected = np.linalg.norm(0.05 * x) / np.linalg.norm(y)
                assert worst["affine y"] == pytest.approx(expected, rel=1e-5)
                assert report["statuses"] == {}
            assert run("replay", file, "--url", changed.url, "--tolerance", 0.05) == 0
        assert run("replay", file, "--url", changed.url, "--speed", 0) == 1  # it is gone
        assert "no answer, 6: no answer from" in capsys.readouterr().out


def test_redacted_requests_can_be_replayed_and_compared_between_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "requests.capture"
    with running_agent(make_config(tmp_path, allow_capture=True)) as agent:
        record(agent, file, "--redact", "x")
        content = file.read_bytes()
        assert np.array([2, 1, 2, 3], np.float32).tobytes() not in content
        assert affine(np.array([[2, 1, 2, 3]], np.float32))["y"].tobytes() not in content
        assert b"[1.0,1.0,2.0,3.0]" not in content.replace(b" ", b"")
        assert "1 not redactable" in capsys.readouterr().out
        assert run("replay", file, "--url", agent.url, "--speed", 0) == 0
        assert "redacted, only the status compared: 5" in capsys.readouterr().out
        run("replay", file, "--url", agent.url, "--against", agent.url, "--speed", 0)
        assert "same: 5 of 5 compared" in capsys.readouterr().out


def test_a_status_that_became_an_error_is_a_difference_and_one_that_healed_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    ).encode()
    worse = write_file(tmp_path / "worse", exchange(body=b"{}", headers={}))
    healed = write_file(tmp_path / "healed", exchange(body=good, headers={}, status=429))
    with running_agent(make_config(tmp_path)) as agent:
        assert run("replay", worse, "--url", agent.url) == 1
        assert "status 200 -> 400: 1" in capsys.readouterr().out
        assert run("replay", healed, "--url", agent.url) == 0
        captured = capsys.readouterr()
        assert "status 429 -> 200: 1" in captured.out
        assert "the recording was cut off" in captured.err


def test_at_a_pace_a_request_leaves_when_it_is_due_and_waiting_counts(tmp_path: Path) -> None:
    exchanges = [exchange(offset_s=7 + 0.1 * number, body=b"{}") for number in (2, 0, 1)]
    with running_agent(make_config(tmp_path)) as agent:
        begun = time.monotonic()
        sent = replay(exchanges, agent.url, speed=2.0, connections=1, timeout_s=DEADLINE_S)
        assert time.monotonic() - begun >= 0.1  # the last is due 100 ms after the first
        assert [one.answer.status for one in sent if one.answer is not None] == [400] * 3
        # All are due at once on one connection: each waits for those before it.
        burst = [exchange(body=b"{}")] * 5
        waited = replay(burst, agent.url, speed=1.0, connections=1, timeout_s=DEADLINE_S)
        latencies = [one.latency_s for one in waited]
        assert latencies == sorted(latencies)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v2/repository/models/affine/unload"), ("DELETE", INFER), ("POST", "//evil/x")],
)
def test_a_file_cannot_make_it_send_anything_but_inference(method: str, path: str) -> None:
    made = exchange(method=method, path=path)
    with pytest.raises(CaptureError, match=r"request 1 is .* no inference"):
        replay([made], "http://127.0.0.1:9", speed=0, connections=1, timeout_s=1)


def test_a_header_that_would_be_two_is_not_sent() -> None:
    made = exchange(headers={"Content-Type": "a\r\nX-Evil: 1"})
    (sent,) = replay([made], "http://127.0.0.1:9", speed=0, connections=1, timeout_s=1)
    assert sent.answer is None


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["replay", "{dir}/none"], StorageError, "no such file"),
        (["replay", "{dir}/empty"], CaptureError, "holds no requests"),
        (["replay", "{dir}/noise"], CaptureError, "no capture of version"),
        (["replay", "{dir}/one", "--url", "ftp://x"], UsageError, "no address of an agent"),
        (["capture", "{dir}/one"], StorageError, "exists already"),
        (["capture", "{dir}/new", "--url", "http://127.0.0.1:9"], NoAgentError, "refused"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error_and_leaves_no_file(
    tmp_path: Path, arguments: list[str], kind: type[EdgeError], message: str
) -> None:
    write_file(tmp_path / "empty")
    write_file(tmp_path / "one", exchange())
    (tmp_path / "noise").write_bytes(b"noise")
    with pytest.raises(kind, match=message):
        run(*(text.format(dir=tmp_path) for text in arguments))
    assert not (tmp_path / "new").exists()


def test_an_agent_that_may_not_record_says_so_and_no_file_is_made(tmp_path: Path) -> None:
    with (
        running_agent(make_config(tmp_path)) as agent,
        pytest.raises(CaptureError, match=r"answered 403: .*allow_capture"),
    ):
        run("capture", tmp_path / "new", "--url", agent.url)
    assert not (tmp_path / "new").exists()


def test_an_interrupt_ends_the_recording_and_keeps_what_was_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "requests.capture"
    with running_agent(make_config(tmp_path, allow_capture=True)) as agent:

        def interrupt() -> None:
            wait_until(lambda: recorder_of(agent)._recording is not None)
            send_traffic(agent.url)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        run("capture", file, "--url", agent.url)
        thread.join(DEADLINE_S)
    assert "ended by stopped" in capsys.readouterr().out
    with file.open("rb") as reader:
        capture = read_capture(reader)
    assert (len(capture.exchanges), capture.problem) == (REQUESTS, None)
