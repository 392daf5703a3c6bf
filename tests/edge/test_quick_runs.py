"""Runs in the caller's thread where they are quick, and work that a session does in pauses."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.errors import NotReadyError
from edge.manifest import Batching
from edge.oip_client import infer_request
from edge.worker import QUICK_RUN_S, Worker
from tests.agents import make_config, running_agent
from tests.fakes import (
    DEADLINE_S,
    FakeClock,
    FakeSession,
    Gate,
    affine_plan,
    affine_worker,
    starting_workers,
)
from tests.models import affine

X = np.ones((1, 4), np.float32)


class AnyThread(FakeSession):
    """A session that may be run from any thread."""

    runs_anywhere = True


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    with starting_workers() as start:
        yield start


def taught(start: Callable[..., Worker], session: FakeSession, run_s: float) -> Worker:
    """Return a worker that has seen one run, of run_s on its clock."""
    clock = FakeClock()
    session._before_run = lambda: clock.advance(run_s)
    worker = start(session, clock=clock, plan=affine_plan(batching=Batching()))
    worker.infer({"x": X}, deadline=None)
    session.threads.clear()
    return worker


def test_a_quick_run_happens_in_the_callers_thread(start: Callable[..., Worker]) -> None:
    session = AnyThread()
    worker = taught(start, session, QUICK_RUN_S / 2)
    assert worker.is_quick
    answer = worker.submit({"x": X}, deadline=None, wake=False)
    worker.run_here()
    np.testing.assert_array_equal(answer.result(0).outputs["y"], affine(X)["y"])
    assert session.threads == {threading.get_ident()}


def test_quick_requests_that_came_together_run_as_one(start: Callable[..., Worker]) -> None:
    session = AnyThread()
    worker = taught(start, session, QUICK_RUN_S / 4)
    answers = [worker.submit({"x": X * n}, deadline=None, wake=False) for n in range(3)]
    worker.run_here()
    assert session.runs == 2  # with the one that taught
    for number, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.result(0).outputs["y"], affine(X * number)["y"])
        assert answer.result(0).batch_rows == 3


def test_what_is_not_quick_is_left_to_the_workers_thread(start: Callable[..., Worker]) -> None:
    session = AnyThread()
    worker = taught(start, session, 2 * QUICK_RUN_S)
    assert not worker.is_quick
    answer = worker.submit({"x": X}, deadline=None, wake=False)
    worker.run_here()
    answer.result(DEADLINE_S)
    assert threading.get_ident() not in session.threads


def test_too_many_quick_requests_at_once_are_left_to_the_workers_thread(
    start: Callable[..., Worker],
) -> None:
    session = AnyThread()
    worker = taught(start, session, 0.9 * QUICK_RUN_S)
    assert worker.is_quick
    answers = [worker.submit({"x": X}, deadline=None, wake=False) for _ in range(2)]
    worker.run_here()
    for answer in answers:
        answer.result(DEADLINE_S)
    assert threading.get_ident() not in session.threads


def test_before_the_first_run_nothing_is_known_to_be_quick(start: Callable[..., Worker]) -> None:
    assert not start(AnyThread()).is_quick


def test_a_session_that_belongs_to_its_thread_is_left_to_it(start: Callable[..., Worker]) -> None:
    session = FakeSession()
    worker = taught(start, session, 0.0)
    assert not worker.is_quick
    answer = worker.submit({"x": X}, deadline=None, wake=False)
    worker.run_here()
    answer.result(DEADLINE_S)
    assert threading.get_ident() not in session.threads


def test_no_second_run_begins_beside_one_of_the_workers_thread(
    start: Callable[..., Worker],
) -> None:
    session = AnyThread()
    worker = taught(start, session, 0.0)
    gate = session._before_run = Gate()
    running = worker.submit({"x": X}, deadline=None)
    gate.wait_entered()
    waiting = worker.submit({"x": X}, deadline=None, wake=False)
    worker.run_here()  # would wait for the gate for ever
    assert not waiting.done()
    gate.open()
    running.result(DEADLINE_S)
    waiting.result(DEADLINE_S)
    assert threading.get_ident() not in session.threads


def test_a_failed_quick_run_is_the_error_of_its_request_alone(start: Callable[..., Worker]) -> None:
    session = AnyThread()
    worker = taught(start, session, 0.0)

    def fail() -> None:
        raise RuntimeError("no such luck")

    session._before_run = fail
    failed = worker.submit({"x": X}, deadline=None, wake=False)
    worker.run_here()
    assert "no such luck" in str(failed.exception(0))
    session._before_run = None
    answer = worker.submit({"x": X}, deadline=None, wake=False)
    worker.run_here()
    answer.result(0)


def test_a_stopped_worker_has_nothing_to_run_here() -> None:
    session = AnyThread()
    worker = affine_worker(lambda: session)
    worker.start()
    worker.infer({"x": X}, deadline=None)
    assert worker.stop(DEADLINE_S)
    with pytest.raises(NotReadyError):
        worker.submit({"x": X}, deadline=None, wake=False)
    worker.run_here()
    assert session.runs == 1


def test_the_agents_event_loop_runs_a_quick_model_itself(tmp_path: Path) -> None:
    session = AnyThread()
    config = make_config(tmp_path, batching=False)
    with running_agent(config, open_session=lambda device: session) as agent:
        loop_thread = next(t.ident for t in threading.enumerate() if t.name == "agent-main")
        connection = http.client.HTTPConnection(
            agent.url.removeprefix("http://"), timeout=DEADLINE_S
        )
        request = infer_request("affine", {"x": X})
        for _ in range(50):
            connection.request("POST", request.path, request.body, request.headers)
            assert connection.getresponse().read()
        connection.close()
        assert loop_thread in session.threads


class Unprepared(FakeSession):
    """A session that has something to prepare after every run."""

    def __init__(self, before_prepare: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.is_prepared = True
        self.prepared_in: list[int] = []
        self._before_prepare = before_prepare

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:  # type: ignore[override]
        self.is_prepared = False
        return super().run(feeds)

    def prepare(self) -> None:
        self.is_prepared = True
        self.prepared_in.append(threading.get_ident())
        self._before_prepare()


def test_a_session_prepares_in_a_pause_in_the_thread_that_runs_it(
    start: Callable[..., Worker],
) -> None:
    session = Unprepared()
    worker = start(session)
    worker.infer({"x": X}, deadline=None)
    assert worker.settle(DEADLINE_S)
    assert session.is_prepared
    assert set(session.prepared_in) == session.threads


def test_what_cannot_be_prepared_is_served_all_the_same(
    start: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("no graph today")

    worker = start(Unprepared(fail))
    for _ in range(2):
        worker.infer({"x": X}, deadline=None)
        assert worker.settle(DEADLINE_S)
    assert "no graph today" in caplog.text
