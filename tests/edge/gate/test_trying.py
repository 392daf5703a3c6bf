"""Trials against a fake agent that answers as told: each fault goes back, and says so."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.errors import NoAgentError
from edge.gate.baseline import Baseline, read_baseline, write_baseline
from edge.gate.gate import Gate, Judge
from edge.gate.questions import Answers
from edge.gate.report import GateReport
from edge.http_client import AgentClient
from edge.slots.state import SlotsState
from edge.slots.store import Store
from tests.edge.gate.test_hostile_agents import LIMITS, FakeAgent, Time, agent, said
from tests.edge.slots.slot_bundles import Packed, packed, stage

__all__ = ["agent"]  # the fixture

PROMPT_LIMITS = replace(LIMITS, rounds=5)
MODEL = {"name": "affine", "variant": "int8", "means": "ort-cpu", "ready": True}


class Scene:
    """A store with a committed bundle, a staged one, and an agent that serves what it should."""

    def __init__(self, folder: Path, agent: FakeAgent) -> None:
        self.store, self.agent, self.time = Store.open(folder / "slots"), agent, Time()
        self.bundles = [packed(folder / version, version) for version in ("1", "2")]
        self.requests: dict[str, int] = {}
        self.asked_s = 0.0  # that answers took so far
        self.old, self.new = self.bundles
        with self.store.changing("test"):
            stage(self.store, self.old)
            self.store.begin_trial()
            self.store.commit(self.old.id)
            stage(self.store, self.new)
        agent.says = lambda: self.telemetry()
        agent.answers = lambda: (200, golden_answer(self.served))

    @property
    def served(self) -> Packed:
        served = self.store.state.served
        return next(b for b in self.bundles if served is not None and served.id == b.id)

    @property
    def is_on_trial(self) -> bool:
        return self.served is self.new

    def stopwatch(self) -> float:
        """The time as answers are timed by: it stands still but for what a test adds."""
        return self.asked_s

    def telemetry(self, **changes: Any) -> dict[str, Any]:
        models = [{**MODEL, "requests": self.requests}]
        facts = {"uptime_s": 1.0 + self.time.now, "models": models, **changes}
        return said(self.served, **facts)

    def judge(self) -> GateReport:
        judge = Judge(url=self.agent.url, limits=PROMPT_LIMITS, clock=self.time.clock,
                      sleep=self.time.sleep, stopwatch=self.stopwatch)  # fmt: skip
        with self.store.changing("test"):
            return Gate(self.store, judge).try_staged()


def golden_answer(bundle: Packed, **changes: Any) -> bytes:
    """What a faithful agent answers to the golden case, as JSON.

    changes: of each output; "each" is what every value is instead.
    """
    (model,) = bundle.parsed.models
    outputs = []
    for tensor in model.golden.cases[0].outputs:
        content = bundle.blobs[bundle.parsed.artifact(tensor.artifact).sha256]
        numbers = memoryview(content).cast("f").tolist()
        output = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if "each" in changes:
            numbers = [changes["each"]] * len(numbers)
        outputs.append({**output, "data": numbers, **changes})
    return json.dumps({"outputs": outputs}).encode()


@pytest.fixture
def scene(tmp_path: Path, agent: FakeAgent) -> Scene:
    return Scene(tmp_path, agent)


def assert_old_is_back(scene: Scene, report: GateReport, failed: set[str]) -> None:
    assert (report.verdict, report.serves) == ("rolled-back", scene.old.id), report
    assert {check.name for check in report.checks if not check.passed} == failed
    assert scene.served is scene.old
    assert scene.store.state.refusal(scene.new.id) is not None


def test_a_faithful_bundle_is_held_against_the_one_before_and_kept(scene: Scene) -> None:
    report = scene.judge()
    assert (report.verdict, report.serves) == ("committed", scene.new.id), report
    (latency,) = (check for check in report.checks if "latency" in check.name)
    assert "before" in latency.limit


@pytest.mark.parametrize(("slow_s", "asked"), [(0.2, 10), (0.0155, 10), (0.0145, 5)])
def test_a_slower_bundle_is_measured_twice_and_goes_back(
    scene: Scene, agent: FakeAgent, slow_s: float, asked: int
) -> None:
    """10 ms before, 15 ms are allowed."""
    answered = []

    def slow() -> tuple[int, bytes]:
        scene.asked_s += slow_s if scene.is_on_trial else 0.010
        answered.append(scene.is_on_trial)
        return 200, golden_answer(scene.served)

    agent.answers = slow
    report = scene.judge()
    assert answered.count(True) == asked
    if asked == 5:
        assert report.passed
    else:
        assert_old_is_back(scene, report, {"affine p95 latency"})


def test_a_bundle_that_was_slow_once_is_kept(scene: Scene, agent: FakeAgent) -> None:
    answered = []

    def warming() -> tuple[int, bytes]:
        answered.append(scene.is_on_trial)
        scene.asked_s += 1.0 if answered.count(True) in range(1, 6) else 0.010
        return 200, golden_answer(scene.served)

    agent.answers = warming
    assert scene.judge().passed


@pytest.mark.parametrize("when", ["it is measured", "the trial begins"])
def test_a_rollback_by_hand_before_the_trial_is_told_as_such(
    scene: Scene, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def roll_back() -> None:
        Store.seen(scene.store.root).roll_back("changed my mind")

    if when == "it is measured":

        def answer() -> tuple[int, bytes]:
            if scene.store.state.candidate is not None:
                roll_back()
            return 200, golden_answer(scene.served)

        agent.answers = answer
    else:
        begin_trial = scene.store.begin_trial

        def begin_and_end() -> SlotsState:
            begin_trial()
            roll_back()
            return scene.store.state

        monkeypatch.setattr(scene.store, "begin_trial", begin_and_end)
    report = scene.judge()
    assert (report.verdict, report.serves) == ("cancelled", scene.old.id)
    assert report.reason == "the trial was ended by a rollback: changed my mind"


def test_damage_in_the_bundle_in_service_keeps_no_good_one_out(scene: Scene) -> None:
    (model,) = scene.old.parsed.models
    golden = scene.old.parsed.artifact(model.golden.cases[0].outputs[0].artifact).sha256
    shared = {artifact.sha256 for artifact in scene.new.parsed.artifacts}
    assert golden not in shared
    blob = scene.store.root / "blobs/sha256" / golden
    blob.chmod(0o644)
    blob.write_bytes(bytes(len(blob.read_bytes())))
    report = scene.judge()
    assert report.passed
    (latency,) = (check for check in report.checks if "latency" in check.name)
    assert "before" not in latency.limit


def test_a_burst_of_errors_goes_back(scene: Scene, agent: FakeAgent) -> None:
    def failing() -> dict[str, Any]:
        if scene.is_on_trial:
            scene.requests = {"ok": 100, "inference": scene.requests.get("inference", 0) + 3}
        return scene.telemetry()

    agent.says = failing
    assert_old_is_back(scene, scene.judge(), {"no error burst"})


def test_memory_that_grows_in_the_probation_goes_back(
    scene: Scene,
    agent: FakeAgent,
) -> None:
    def growing() -> dict[str, Any]:
        held = (1 << 30) + (int(scene.time.now) << 28 if scene.is_on_trial else 0)
        return scene.telemetry(machine={"rss_bytes": held, "gpus": []})

    agent.says = growing
    assert_old_is_back(scene, scene.judge(), {"peak memory"})


@pytest.mark.parametrize(("busy", "verdict"), [(False, "rolled-back"), (True, "committed")])
def test_onnx_runtime_that_leaves_its_gpu_idle_while_it_is_asked_goes_back(
    scene: Scene, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, busy: bool, verdict: str
) -> None:
    """A device that tells no memory by process, as a Jetson: its load decides, seen in time."""
    monkeypatch.setattr("edge.gate.gate.PAUSE_S", 0.25)
    asked: list[float] = []

    def answer() -> tuple[int, bytes]:
        asked.append(scene.time.now)
        return 200, golden_answer(scene.served)

    def tell() -> dict[str, Any]:
        # What is read once a second misses what was asked before.
        is_seen = busy and scene.is_on_trial and len(set(asked)) > 1
        gpus = [{"utilization_percent": 7.5 if is_seen else 0.0}]
        models = [{**MODEL, "means": "ort-cuda", "requests": {}}]
        return scene.telemetry(models=models, machine={"rss_bytes": 1, "gpus": gpus})

    agent.says, agent.answers = tell, answer
    report = scene.judge()
    (gpu,) = (check for check in report.checks if check.name == "affine GPU")
    assert (report.verdict, gpu.passed) == (verdict, busy)
    assert gpu.measured == f"{'a GPU at 7.5' if busy else 'GPUs at 0'} % while it was asked"


@pytest.mark.parametrize(
    "changes",
    [
        {"datatype": "BYTES", "each": "one"},
        {"each": 1e30},
        {"data": []},
        {"data": None},
        {"shape": [-2, -4]},
        {"shape": [1 << 62, 4]},
        {"name": "z"},
        {"datatype": "FP99"},
    ],
)
def test_an_answer_that_is_no_answer_goes_back(
    scene: Scene,
    agent: FakeAgent,
    changes: dict[str, Any],
) -> None:
    def wrong() -> tuple[int, bytes]:
        return 200, golden_answer(scene.served, **(changes if scene.is_on_trial else {}))

    agent.answers = wrong
    report = scene.judge()
    assert (report.verdict, report.serves) == ("rolled-back", scene.old.id), report
    assert "golden answers" in report.reason


@pytest.mark.parametrize("status_and_body", [(500, b""), (200, b""), (200, b"{}"), (200, b"[" * 9)])
def test_a_body_that_is_no_answer_goes_back(
    scene: Scene,
    agent: FakeAgent,
    status_and_body: tuple[int, bytes],
) -> None:
    good = agent.answers
    agent.answers = lambda: status_and_body if scene.is_on_trial else good()
    assert_old_is_back(scene, scene.judge(), {"affine golden answers"})


def test_a_model_that_did_not_answer_before_is_no_measure_and_spoils_no_other(
    scene: Scene,
    agent: FakeAgent,
) -> None:
    good = agent.answers
    agent.answers = lambda: good() if scene.is_on_trial else (500, b"")
    report = scene.judge()
    assert report.verdict == "committed", report
    baseline = read_baseline(scene.store.root, scene.new.id)
    assert baseline is not None
    assert (baseline.answers, baseline.memory_bytes) == ((), 1 << 20)


def test_a_baseline_that_was_cut_or_is_of_another_trial_is_none(tmp_path: Path) -> None:
    one = Answers(model="m", asked=1, p95_ms=3.0)
    write_baseline(tmp_path, Baseline(bundle="a", trial="t", answers=(one,), memory_bytes=None))
    whole = read_baseline(tmp_path, "t")
    assert whole is not None
    assert math.isclose(whole.answers[0].p95_ms, 3.0)
    assert read_baseline(tmp_path, "u") is None
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert read_baseline(tmp_path, "t") is None


@pytest.fixture
def endless() -> Iterator[Callable[[bytes], str]]:
    """Start a server that sends a head, and then a byte now and then; returns its URL."""
    over, threads = threading.Event(), []
    listener = socket.create_server(("127.0.0.1", 0))

    def drip(head: bytes) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(head)
            try:
                while not over.wait(0.02):
                    connection.sendall(b"a")
            except OSError:
                return

    def start(head: bytes) -> str:
        threads.append(threading.Thread(target=drip, args=(head,)))
        threads[0].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    over.set()
    for thread in threads:
        thread.join()
    listener.close()


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
    ],
)
def test_an_answer_that_never_ends_is_left_by_the_clock(
    endless: Callable[[bytes], str], head: bytes
) -> None:
    # Bytes come faster than the 10 s of silence allow, so that only the other limit can end it.
    with (
        closing(AgentClient(endless(head), timeout_s=10.0, whole_s=0.3)) as client,
        pytest.raises(NoAgentError, match=r"took longer than 0\.3 s"),
    ):
        client.send("GET", "/telemetry")


def test_an_agent_that_hangs_fails_within_its_time(tmp_path: Path, agent: FakeAgent) -> None:
    scene = Scene(tmp_path, agent)
    agent.says = lambda: None if scene.is_on_trial else scene.telemetry()
    limits = replace(LIMITS, ask_s=0.05, ready_s=3.0)
    judge = Judge(url=agent.url, limits=limits, clock=scene.time.clock, sleep=scene.time.sleep)
    with scene.store.changing("test"):
        report = Gate(scene.store, judge).try_staged()
    assert_old_is_back(scene, report, {"ready"})
    assert scene.time.now <= 2 * limits.ready_s
