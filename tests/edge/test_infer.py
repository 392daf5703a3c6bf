"""Inference through the agent's own server: nothing is held for a request but the request."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from edge.config import AgentConfig
from edge.manifest import Batching
from tests.agents import make_config, running_agent
from tests.bundles import affine_parts
from tests.fakes import DEADLINE_S, FakeSession, Gate, wait_until
from tests.models import affine

INFER = "/v2/models/affine/infer"


def body_of(number: float) -> bytes:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [number, 0, 1, 2]}
    return json.dumps({"inputs": [tensor]}).encode()


def expected(number: float) -> list[float]:
    rows: list[float] = affine(np.array([[number, 0, 1, 2]], np.float32))["y"].ravel().tolist()
    return rows


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    """An agent whose bundle says that requests may run together."""
    manifest, files = affine_parts()
    model = replace(manifest.models[0], batching=Batching())
    return make_config(tmp_path, (replace(manifest, models=(model,)), files), queue_size=512)


def test_four_hundred_clients_wait_without_a_thread_and_get_their_own_answers(
    config: AgentConfig,
) -> None:
    gate = Gate(holds=False)
    session = FakeSession(before_run=gate)
    with running_agent(config, open_session=lambda *_: session) as agent:
        worker = agent.serving.served["affine"].worker
        threads = threading.active_count()
        gate.hold()
        host, port = agent.url.removeprefix("http://").split(":")
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "
        clients = []
        for number in range(400):
            body = body_of(number)
            client = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
            client.sendall(head.encode() + f"{len(body)}\r\n\r\n".encode() + body)
            clients.append(client)
        wait_until(lambda: worker.queue_depth >= 392)  # eight run
        assert threading.active_count() == threads
        gate.open()
        for number, client in enumerate(clients):
            answer = b""
            with client:
                while chunk := client.recv(65536):
                    answer += chunk
            got = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert got["outputs"][0]["data"] == expected(number)
        stats = agent.serving.served["affine"].statistics
        assert stats.inference_count == 400
        assert stats.execution_count < 100  # they ran together


def test_a_client_that_goes_away_takes_its_request_with_it(config: AgentConfig) -> None:
    gate = Gate(holds=False)
    session = FakeSession(before_run=gate)
    config = replace(config, batching=False)
    with (
        running_agent(config, open_session=lambda *_: session) as agent,
        ThreadPoolExecutor(2) as pool,
    ):
        served = agent.serving.served["affine"]
        gate.hold()
        first = pool.submit(httpx.post, agent.url + INFER, content=body_of(1), timeout=DEADLINE_S)
        gate.wait_entered()
        host, port = agent.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            body = body_of(2)
            head = f"POST {INFER} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            wait_until(lambda: served.worker.queue_depth == 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0] + [0] * 4))
        wait_until(lambda: served.statistics.failures() == {"cancelled": 1})
        runs = session.runs
        gate.open()
        assert first.result(DEADLINE_S).json()["outputs"][0]["data"] == expected(1)
        third = httpx.post(agent.url + INFER, content=body_of(3), timeout=DEADLINE_S)
        assert third.json()["outputs"][0]["data"] == expected(3)
        assert session.runs == runs + 1  # nobody ran what nobody waited for


def test_a_waiting_request_is_answered_at_its_deadline(config: AgentConfig) -> None:
    gate = Gate(holds=False)
    session = FakeSession(before_run=gate)
    config = replace(config, batching=False)
    with (
        running_agent(config, open_session=lambda *_: session) as agent,
        ThreadPoolExecutor(1) as pool,
    ):
        gate.hold()
        first = pool.submit(httpx.post, agent.url + INFER, content=body_of(1), timeout=DEADLINE_S)
        gate.wait_entered()
        late = httpx.post(
            agent.url + INFER,
            content=body_of(2),
            headers={"Edge-Timeout-Ms": "30"},
            timeout=DEADLINE_S,
        )
        assert (late.status_code, "time limit" in late.json()["error"]) == (504, True)
        gate.open()
        assert first.result(DEADLINE_S).status_code == 200


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_large_requests_are_read_and_answered_outside_the_event_loop(
    config: AgentConfig, encoding: str
) -> None:
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    with running_agent(config) as agent:
        client = triton.InferenceServerClient(agent.url.removeprefix("http://"))
        tensor = triton.InferInput("x", [8, 4], "FP32")
        tensor.set_data_from_numpy(rows)
        result = client.infer(
            "affine",
            [tensor],
            request_id="r" * 100_000,
            request_compression_algorithm=None if encoding == "identity" else encoding,
        )
        np.testing.assert_allclose(result.as_numpy("y"), affine(rows)["y"])
        assert result.get_response()["id"] == "r" * 100_000
        client.close()


def test_what_breaks_in_parsing_is_a_500_and_the_next_request_is_served(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_agent(config) as agent:
        with monkeypatch.context() as broken:
            broken.setattr("edge.oip.parse_infer", lambda *_, **__: 1 / 0)
            answer = httpx.post(agent.url + INFER, content=body_of(1))
            assert answer.status_code == 500
            assert "ZeroDivision" not in answer.text
        answer = httpx.post(agent.url + INFER, content=body_of(1))
        assert answer.json()["outputs"][0]["data"] == expected(1)
