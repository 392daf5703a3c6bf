"""An agent with default settings under more clients than it takes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
import numpy as np

from edge.config import AgentConfig
from tests.agents import make_config, running_agent
from tests.fakes import DEADLINE_S, FakeSession, Gate
from tests.models import affine

REFUSED = 30
TAKEN = AgentConfig().queue_size + 1  # one runs, the others wait


def ask(url: str, number: int) -> httpx.Response:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [number, 0, 1, 2]}
    return httpx.post(
        f"{url}/v2/models/affine/infer", json={"inputs": [tensor]}, timeout=DEADLINE_S
    )


def test_too_many_requests_are_refused_at_once_and_the_agent_stays_observable(
    tmp_path: Path,
) -> None:
    gate = Gate(holds=False)
    session = FakeSession(before_run=gate)
    with (
        running_agent(make_config(tmp_path), open_session=lambda *_: session) as agent,
        ThreadPoolExecutor(TAKEN + REFUSED) as clients,
    ):
        gate.hold()
        asked: dict[Future[httpx.Response], int] = {
            clients.submit(ask, agent.url, number): number for number in range(TAKEN + REFUSED)
        }
        answers = as_completed(asked, timeout=DEADLINE_S)
        try:
            # As long as the model is blocked, only refusals can be answered.
            refused = [next(answers).result() for _ in range(REFUSED)]
            assert {response.status_code for response in refused} == {429}
            assert all(int(response.headers["Retry-After"]) >= 1 for response in refused)
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/affine", "/telemetry"):
                assert httpx.get(agent.url + path, timeout=DEADLINE_S).status_code == 200
            metrics = httpx.get(f"{agent.url}/metrics", timeout=DEADLINE_S).text
            refusals = 'edge_inference_requests_total{model="affine",outcome="queue-full"}'
            assert f"{refusals} {REFUSED}.0" in metrics
        finally:
            gate.open()
        for future in answers:
            answer = future.result()
            expected = affine(np.array([[asked[future], 0, 1, 2]], np.float32))["y"]
            assert answer.status_code == 200
            assert answer.json()["outputs"][0]["data"] == expected.ravel().tolist()
