"""The agent and a bundle that was packed for a GPU: what it serves, and what it says of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import edge.engine_process
import edge.loading
import edge.preparing
from edge.config import AgentConfig
from edge.engine_child import Report
from edge.engine_process import AttemptError
from edge.manifest import EngineFacts, Variant
from edge.session import Session
from edge.target import Target
from tests.agents import make_config, open_agent, running_agent
from tests.bundles import affine_parts
from tests.fakes import DEADLINE_S, FakeNotifier, FakeSession

BODY = {
    "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]
}
FACTS = EngineFacts(
    device="rtx-4060", kind="desktop", arch="x86_64", runtime="10.3.0", sms=("8.9",),
    portable=False, sm_count=24,
)  # fmt: skip
ENGINE = Variant(
    id="engine", backend="trt", precision="fp32", files=("affine/engine",), engine=FACTS
)
RECIPE = Variant(id="recipe", backend="trt", precision="fp32", files=("affine/fp32.onnx",))
GRAPH = Variant(id="graph", backend="ort", precision="fp32", files=("affine/fp32.onnx",))
NO_GPU = Target(
    kind="cpu", arch="x86_64", name="no NVIDIA GPU", onnxruntime="1.23.2",
    cuda_problem="the CUDA driver is not there; install it",
)  # fmt: skip
CARD = Target(
    kind="desktop", arch="x86_64", name="NVIDIA GeForce RTX 4060", device="rtx-4060", sm="8.9",
    sm_count=24, cuda="12.4", tensorrt="10.3.0", onnxruntime="1.23.2",
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    """The configuration of an agent with a signed bundle of an engine, a recipe and a graph."""
    manifest, files = affine_parts()
    files["affine/engine"] = b"an engine"
    model = replace(manifest.models[0], variants=(ENGINE, RECIPE, GRAPH), preferences=())
    return make_config(tmp_path, (replace(manifest, models=(model,)), files))


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Target], None]:
    def on(target: Target) -> None:
        defaults = edge.loading.Loader.__init__.__kwdefaults__
        monkeypatch.setitem(defaults, "detect", lambda: target)

    return on


def metric(client: httpx.Client, name: str) -> str:
    lines = client.get("/metrics").text.splitlines()
    return next(line.split()[-1] for line in lines if line.startswith(name + " "))


def test_without_a_gpu_it_answers_on_the_cpu_and_is_not_ready_and_says_why(
    config: AgentConfig, on: Callable[[Target], None]
) -> None:
    on(NO_GPU)
    notifier = FakeNotifier()
    with (
        running_agent(config, notifier=notifier) as agent,
        httpx.Client(base_url=agent.url) as client,
    ):
        for url in ("/v2/health/ready", "/v2/models/affine/ready"):
            answer = client.get(url)
            assert answer.status_code == 503
            assert "was packed for a GPU and runs on the CPU" in answer.json()["error"]
        assert client.get("/v2/health/live").status_code == 200
        answer = client.post("/v2/models/affine/infer", json=BODY)
        assert answer.json()["outputs"][0]["data"] == [3, 5, 7, 9]
        report = client.get("/telemetry").json()
        assert metric(client, "edge_gpu_backend_active") == "0.0"
    model = report["models"][0]
    assert (report["ready"], model["means"], model["variant"]) == (False, "ort-cpu", "graph")
    assert "was packed for a GPU" in model["degradation"]
    assert [(r["variant"], r["code"]) for r in model["refused"]] == [
        ("engine", "driver-missing"), ("recipe", "driver-missing"),
    ]  # fmt: skip
    assert report["target"]["cuda_problem"] == NO_GPU.cuda_problem
    assert "on the CPU instead of a GPU" in notifier.messages[-2]


def test_the_configuration_may_accept_the_cpu(
    config: AgentConfig, on: Callable[[Target], None]
) -> None:
    on(NO_GPU)
    with (
        running_agent(replace(config, ready_on_cpu=True)) as agent,
        httpx.Client(base_url=agent.url) as client,
    ):
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/v2/models/affine/ready").status_code == 200
        assert "was packed for a GPU" in client.get("/telemetry").json()["models"][0]["degradation"]


def test_on_its_device_the_engine_is_served_and_reported(
    config: AgentConfig, on: Callable[[Target], None]
) -> None:
    on(CARD)
    with (
        running_agent(config, open_session=lambda *_: FakeSession()) as agent,
        httpx.Client(base_url=agent.url) as client,
    ):
        assert client.get("/v2/health/ready").status_code == 200
        assert metric(client, "edge_gpu_backend_active") == "1.0"
        model = client.get("/telemetry").json()["models"][0]
        assert client.get("/v2/models/affine").json()["platform"] == "tensorrt_plan"
    assert (model["means"], model["degradation"]) == ("engine", None)


def test_an_engine_that_crashes_its_child_is_refused_and_the_next_way_is_taken(
    config: AgentConfig, on: Callable[[Target], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(CARD)

    def attempt(*_: object, **__: object) -> Report:
        raise AttemptError("crashed", "the process that tried it was killed by SIGSEGV; damaged")

    def build(*_: object, **__: object) -> Report:
        raise AttemptError("build-failed", "TensorRT cannot build it; use another")

    monkeypatch.setattr(edge.preparing, "attempt", attempt)
    monkeypatch.setattr(edge.engine_process, "attempt", attempt)
    monkeypatch.setattr(edge.engine_process, "build", build)
    with running_agent(config) as agent:
        model = httpx.get(f"{agent.url}/telemetry").json()["models"][0]
    assert model["variant"] == "graph"
    assert [(r["variant"], r["means"], r["code"]) for r in model["refused"]] == [
        ("engine", "engine", "crashed"), ("recipe", "build", "build-failed"),
    ]  # fmt: skip


def test_while_an_engine_is_built_health_shows_the_step_and_systemd_is_asked_for_time(
    config: AgentConfig, on: Callable[[Target], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(replace(CARD, tensorrt="10.4.0"))
    go_on, told = threading.Event(), threading.Event()

    def build(*_: object, progress: Callable[[str, int, int], bool], **__: object) -> Report:
        progress("Timing kernels", 3, 7)
        told.set()
        assert go_on.wait(DEADLINE_S)
        raise AttemptError("build-failed", "cannot; use another")

    class Waiting(FakeNotifier):
        extended = threading.Event()

        def extend_start(self, seconds: float) -> None:
            super().extend_start(seconds)
            self.extended.set()

    notifier = Waiting()
    monkeypatch.setattr(edge.engine_process, "build", build)
    with running_agent(config, notifier=notifier, until_ready=False) as agent:
        assert told.wait(DEADLINE_S)
        answer = httpx.get(f"{agent.url}/v2/health/ready")
        assert answer.status_code == 503
        assert "building an engine: Timing kernels, step 3 of 7" in answer.json()["error"]
        assert notifier.extended.wait(DEADLINE_S)
        go_on.set()
        assert notifier.is_ready.wait(DEADLINE_S)
        assert httpx.get(f"{agent.url}/telemetry").json()["activity"] == ""
    assert "ready" not in notifier.messages[: notifier.messages.index("extend 120")]


def test_a_stop_ends_a_build(
    config: AgentConfig, on: Callable[[Target], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(replace(CARD, tensorrt="10.4.0"))
    begun = threading.Event()

    def build(*_: object, stop: threading.Event, **__: object) -> Report:
        begun.set()
        assert stop.wait(DEADLINE_S)
        raise AttemptError("timed-out", "stopped because the agent stops")

    monkeypatch.setattr(edge.engine_process, "build", build)
    with running_agent(config, notifier=FakeNotifier(), until_ready=False):
        assert begun.wait(DEADLINE_S)


def test_an_unsigned_bundle_serves_its_graph_and_never_its_engine(
    config: AgentConfig, on: Callable[[Target], None]
) -> None:
    on(CARD)
    (config.bundle / "manifest.sig").unlink()

    def never_trt(*_: object) -> Session:
        return FakeSession()

    unsigned = replace(config, allow_unsigned=True, build_on_device=False)
    with running_agent(unsigned, open_session=never_trt) as agent:
        model = httpx.get(f"{agent.url}/telemetry").json()["models"][0]
    assert {r["variant"]: r["code"] for r in model["refused"]} == {
        "engine": "not-trusted", "recipe": "build-disabled",
    }  # fmt: skip


def test_a_damaged_engine_of_another_device_does_not_keep_the_bundle_from_serving(
    config: AgentConfig, on: Callable[[Target], None]
) -> None:
    on(NO_GPU)
    engine = next(
        p for p in config.bundle.rglob("*") if p.is_file() and p.read_bytes() == b"an engine"
    )
    engine.write_bytes(b"damaged")
    agent = open_agent(config, notifier=FakeNotifier())
    agent.request_stop()
    agent.run()
