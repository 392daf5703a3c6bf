"""An agent that serves a packed bundle and is asked over HTTP."""

from __future__ import annotations

import urllib.request
from contextlib import closing

import msgspec
import numpy as np
import pytest

from edge.capture.capture_file import Exchange
from edge.capture.replay import replay
from edge.drift.reference import reference_path
from edge.gate.limits import Limits
from edge.gate.questions import ask_bundle
from edge.http_client import AgentClient
from edge.oip_client import infer_request
from tests.agents import make_config, running_agent
from tests.bundles import affine_parts
from tests.edge.drift.populations import reference_of, summary_of
from tests.fakes import wait_until
from tests.models import affine

RNG = np.random.default_rng(11)


def parts_with(content: bytes):
    manifest, files = affine_parts()
    return manifest, {**files, reference_path("affine"): content}


def content_of_reference() -> bytes:
    from edge.drift.reference import bytes_from_reference

    x = RNG.normal(size=(500, 4)).astype(np.float32)
    summary = summary_of(affine_parts()[0].models[0], {"x": x}, affine(x))
    return bytes_from_reference(reference_of(summary, np.arange(500)))


def ask(url: str, rows: np.ndarray, **headers: str) -> None:
    for row in rows:
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": row.tolist()}
        body = msgspec.json.encode({"inputs": [tensor]})
        request = urllib.request.Request(f"{url}/v2/models/affine/infer", body, headers)
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200


def drift_of(url: str) -> dict | None:
    with urllib.request.urlopen(f"{url}/telemetry") as answer:
        return msgspec.json.decode(answer.read())["models"][0]["drift"]


def test_an_agent_tells_of_drift_and_of_its_end(tmp_path):
    config = make_config(tmp_path, parts_with(content_of_reference()), drift_window=50)
    with running_agent(config) as agent:
        assert drift_of(agent.url)["state"] == "collecting"
        for shift, state, windows in ((0.0, "steady", 1), (3.0, "drifted", 2), (0.0, "steady", 3)):
            ask(agent.url, RNG.normal(size=(50, 4)) + shift)
            wait_until(lambda n=windows: drift_of(agent.url)["windows"] == n)
            assert drift_of(agent.url)["state"] == state
            assert [(name, report.state) for name, report in agent.serving.drifts()] == [
                ("affine", state)
            ]
            with urllib.request.urlopen(f"{agent.url}/metrics") as answer:
                text = answer.read().decode()
            assert f'edge_drift_active{{model="affine"}} {float(state == "drifted")}' in text
        assert agent.serving.is_ready


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 50])
def test_an_agent_serves_a_bundle_without_a_reference_or_with_a_broken_one(tmp_path, content):
    parts = affine_parts() if content is None else parts_with(content)
    with running_agent(make_config(tmp_path, parts)) as agent:
        ask(agent.url, np.zeros((1, 4)))
        assert drift_of(agent.url) is None
        assert agent.serving.is_ready


def test_what_only_tries_a_model_is_no_drift(tmp_path):
    config = make_config(tmp_path, parts_with(content_of_reference()), drift_window=50)
    with running_agent(config) as agent, closing(AgentClient(agent.url)) as client:
        asked = infer_request("affine", {"x": np.zeros((1, 4), np.float32)})
        exchange = Exchange(
            offset_s=0.0, method="POST", path=asked.path, headers=asked.headers, body=asked.body,
            status=200, answer_headers={}, answer=b"", latency_s=0.0,
        )  # fmt: skip
        replay([exchange] * 60, agent.url, speed=0, connections=1, timeout_s=10)
        manifest = agent.serving.bundle.manifest
        root, limits = agent.serving.bundle.root, Limits(rounds=60)
        (answers,) = ask_bundle(client, root, manifest, {"affine": "fp32"}, limits)
        assert answers.is_right
        ask(agent.url, RNG.normal(size=(50, 4)))
        wait_until(lambda: drift_of(agent.url)["windows"] == 1)
        assert drift_of(agent.url)["state"] == "steady"
        assert drift_of(agent.url)["rows"] == 0
