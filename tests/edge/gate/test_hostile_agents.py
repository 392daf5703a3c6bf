"""The gate against agents that hang, talk nonsense, restart, or never become ready."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edge.gate.gate import Gate, Judge
from edge.gate.limits import Limits
from edge.gate.report import GateReport
from edge.slots.state import SlotBundle
from edge.slots.store import Store
from tests.edge.slots.slot_bundles import Packed, packed, stage

LIMITS = Limits(ready_s=5.0, build_s=20.0, back_s=3.0, probation_s=4.0, rounds=1)


class FakeAgent:
    """Answers GET /telemetry with what `says` returns: JSON, bytes as they are, or a hang.

    Inference is answered with what `answers` returns: status and body.
    """

    def __init__(self) -> None:
        self.says: Callable[[], Any] = dict
        self.answers: Callable[[], tuple[int, bytes]] = lambda: (500, b"")
        self.over = threading.Event()
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                said = agent.says()
                if said is None:
                    agent.over.wait(30.0)
                    return
                body = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, body = agent.answers()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def agent() -> Iterator[FakeAgent]:
    made = FakeAgent()
    yield made
    made.close()


class Time:
    """A clock that the gate's own waiting moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def trial(tmp_path: Path) -> tuple[Store, Packed]:
    store, bundle = Store.open(tmp_path / "slots"), packed(tmp_path / "one", "1")
    with store.changing("test"):
        stage(store, bundle)
    return store, bundle


def judged(store: Store, agent: FakeAgent, time: Time) -> GateReport:
    judge = Judge(url=agent.url, limits=LIMITS, clock=time.clock, sleep=time.sleep,
                  log=lambda: ("the last line",))  # fmt: skip
    with store.changing("test"):
        return Gate(store, judge).try_staged()


def said(of: Packed, **changes: Any) -> dict[str, Any]:
    return {
        "uptime_s": 1.0,
        "phase": "serving",
        "ready": True,
        "activity": "",
        "condition": None,
        "bundle": {"name": "b", "version": "1", "manifest_sha256": of.id},
        "models": [],
        "machine": {"rss_bytes": 1 << 20, "gpus": []},
        **changes,
    }


def assert_gone_back(store: Store, report: GateReport, bundle: Packed) -> None:
    assert (report.verdict, report.passed) == ("rolled-back", False)
    assert report.notes == ("the last line",)
    state = store.state
    assert state.candidate is None
    assert state.refusal(bundle.id) is not None
    (kept,) = (store.root / "reports").iterdir()
    assert json.loads(kept.read_bytes())["report"]["reason"] == report.reason


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"not json",
        b"[" * 100_000,
        b"\xff\xfe",
        {"ready": True},
        {"uptime_s": "x"},
        b'{"uptime_s": 1e999}',
        b"{}" + b" " * (1 << 20),
    ],
)
def test_an_agent_that_talks_nonsense_fails_in_time(
    trial: tuple[Store, Packed], agent: FakeAgent, nonsense: Any
) -> None:
    store, bundle = trial
    agent.says, time = lambda: nonsense, Time()
    report = judged(store, agent, time)
    assert_gone_back(store, report, bundle)
    assert "cannot be read" in report.reason
    assert time.now <= LIMITS.ready_s + 2


def test_an_agent_that_goes_on_serving_another_bundle_fails_in_time(
    trial: tuple[Store, Packed], agent: FakeAgent
) -> None:
    store, bundle = trial
    other = {"name": "old", "version": "0", "manifest_sha256": "1" * 64}
    agent.says = lambda: said(bundle, bundle=other)
    report = judged(store, agent, Time())
    assert_gone_back(store, report, bundle)
    assert "still serves old 0" in report.reason


def test_an_agent_that_serves_and_is_not_ready_fails_at_once(
    trial: tuple[Store, Packed], agent: FakeAgent
) -> None:
    store, bundle = trial
    agent.says, time = lambda: said(bundle, ready=False, condition="runs on the CPU"), Time()
    report = judged(store, agent, time)
    assert_gone_back(store, report, bundle)
    assert report.reason == "ready: runs on the CPU"
    assert time.now == 0.0


def test_an_engine_that_is_built_has_its_own_time_but_not_for_ever(
    trial: tuple[Store, Packed], agent: FakeAgent
) -> None:
    store, bundle = trial
    building = said(bundle, phase="starting", ready=False, activity="building an engine, 40 %")
    agent.says, time = lambda: building, Time()
    report = judged(store, agent, time)
    assert_gone_back(store, report, bundle)
    assert LIMITS.ready_s + LIMITS.build_s <= time.now <= LIMITS.ready_s + LIMITS.build_s + 2


def test_an_agent_that_restarts_in_its_probation_fails(
    trial: tuple[Store, Packed], agent: FakeAgent
) -> None:
    store, bundle = trial
    uptimes = iter([50.0, 51.0, 0.5, 1.5, 2.5, *range(100)])
    agent.says = lambda: said(bundle, uptime_s=next(uptimes))
    report = judged(store, agent, Time())
    assert_gone_back(store, report, bundle)
    assert "the agent was restarted" in report.reason


def test_a_trial_that_the_starts_ended_is_told_as_such(
    trial: tuple[Store, Packed], agent: FakeAgent
) -> None:
    store, _ = trial
    looks = []

    def crash() -> bytes:
        looks.append(Store.seen(store.root).count_start())
        return b"crashing"

    agent.says = crash
    report = judged(store, agent, Time())
    assert (report.verdict, report.serves) == ("cancelled", None)
    assert "started 3 times" in report.reason
    assert len(looks) <= 6


@pytest.mark.parametrize(("comes", "verdict"), [(True, "committed"), (False, "rolled-back")])
def test_memory_that_a_gpu_shows_a_moment_later_is_waited_for(
    trial: tuple[Store, Packed], agent: FakeAgent, comes: bool, verdict: str
) -> None:
    store, bundle = trial
    looks: list[None] = []
    engine = {"name": "other", "variant": "v", "means": "engine", "ready": True}

    def says() -> dict[str, Any]:
        looks.append(None)
        held = 1 << 20 if comes and len(looks) > 3 else 0
        machine = {"rss_bytes": 1 << 20, "gpus": [{"own_memory_bytes": held}]}
        return said(bundle, models=[engine], machine=machine)

    agent.says = says
    report = judged(store, agent, Time())
    assert report.verdict == verdict
    assert {check.name: check.passed for check in report.checks}["other GPU"] is comes


def test_an_agent_without_fault_is_committed(trial: tuple[Store, Packed], agent: FakeAgent) -> None:
    store, bundle = trial
    agent.says, time = lambda: said(bundle), Time()
    report = judged(store, agent, time)
    assert (report.verdict, report.serves) == ("committed", bundle.id)
    served = store.state.served
    assert isinstance(served, SlotBundle)
    assert served.id == bundle.id
    assert time.now >= LIMITS.probation_s
