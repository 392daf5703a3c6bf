import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from edge.errors import (
    DeadlineError,
    InferenceError,
    InputError,
    ModelError,
    NotReadyError,
    QueueFullError,
)
from edge.inbox import Answer
from edge.manifest import Batching
from edge.spec import Feeds
from edge.worker import Worker
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


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    with starting_workers() as start:
        yield start


def submit(
    pool: ThreadPoolExecutor, worker: Worker, deadline: float | None = None
) -> Future[Answer]:
    """Submit one request from another thread and return when it is in the inbox or beyond."""
    return pool.submit(worker.infer, {"x": X}, deadline=deadline)


def wait_for_depth(worker: Worker, depth: int) -> None:
    pause = threading.Event()
    for _ in range(int(DEADLINE_S * 1000)):
        if worker.queue_depth == depth:
            return
        pause.wait(0.001)
    raise AssertionError(f"queue depth is {worker.queue_depth}, not {depth}")


def test_an_answer_holds_the_outputs_and_its_times(start: Callable[..., Worker]) -> None:
    clock = FakeClock()
    worker = start(FakeSession(before_run=lambda: clock.advance(0.25)), clock=clock)
    answer = worker.infer({"x": X}, deadline=None)
    np.testing.assert_array_equal(answer.outputs["y"], affine(X)["y"])
    assert (answer.queue_s, answer.compute_s) == (0.0, 0.25)


def test_one_thread_owns_the_session_from_open_to_close(pool: ThreadPoolExecutor) -> None:
    opened_in: list[int] = []
    session = FakeSession()

    def open_session() -> FakeSession:
        opened_in.append(threading.get_ident())
        return session

    worker = affine_worker(open_session, queue_size=64)
    worker.start()
    for future in [submit(pool, worker) for _ in range(16)]:
        future.result(DEADLINE_S)
    assert worker.stop(DEADLINE_S)
    assert session.is_closed
    assert session.threads == set(opened_in)


def test_what_opening_raises_reaches_the_caller_of_start() -> None:
    def open_session() -> FakeSession:
        raise ModelError("no such graph")

    worker = affine_worker(open_session)
    with pytest.raises(ModelError, match="no such graph"):
        worker.start()
    assert not worker.is_ready
    assert worker.stop(DEADLINE_S)


def test_a_full_inbox_refuses_at_once(
    start: Callable[..., Worker], pool: ThreadPoolExecutor
) -> None:
    gate = Gate()
    worker = start(FakeSession(before_run=gate), queue_size=2)
    running = submit(pool, worker)
    gate.wait_entered()
    waiting = [submit(pool, worker), submit(pool, worker)]
    wait_for_depth(worker, 2)
    with pytest.raises(QueueFullError, match="2 requests waiting"):
        worker.infer({"x": X}, deadline=None)
    gate.open()
    for future in (running, *waiting):
        future.result(DEADLINE_S)


def test_a_request_that_waited_too_long_is_dropped_before_compute(
    start: Callable[..., Worker], pool: ThreadPoolExecutor
) -> None:
    clock, gate = FakeClock(), Gate()
    session = FakeSession(before_run=gate)
    worker = start(session, clock=clock)
    first = submit(pool, worker)
    gate.wait_entered()
    late = submit(pool, worker, deadline=clock.now + DEADLINE_S)
    wait_for_depth(worker, 1)
    clock.advance(DEADLINE_S + 1)
    gate.open()
    first.result(DEADLINE_S)
    with pytest.raises(DeadlineError, match="time limit"):
        late.result(DEADLINE_S)
    assert session.runs == 1


def test_a_caller_does_not_wait_past_its_deadline_for_a_running_request(
    start: Callable[..., Worker], pool: ThreadPoolExecutor
) -> None:
    gate = Gate()
    session = FakeSession(before_run=gate)
    worker = start(session)
    first = submit(pool, worker)
    gate.wait_entered()
    with pytest.raises(DeadlineError):
        worker.infer({"x": X}, deadline=0.0)
    gate.open()
    first.result(DEADLINE_S)
    assert worker.infer({"x": X}, deadline=None).outputs
    assert session.runs == 2  # the one that nobody waited for was not run


@pytest.mark.parametrize("error", [InferenceError("device lost"), ZeroDivisionError("oops")])
def test_a_failing_run_fails_only_its_request(
    start: Callable[..., Worker], error: Exception
) -> None:
    problems = [error]

    def fail_once() -> None:
        if problems:
            raise problems.pop()

    worker = start(FakeSession(before_run=fail_once))
    with pytest.raises(InferenceError, match=str(error)):
        worker.infer({"x": X}, deadline=None)
    assert worker.is_ready
    assert worker.infer({"x": X}, deadline=None).outputs


def test_three_failures_in_a_row_make_it_unready_and_a_success_ready_again(
    start: Callable[..., Worker],
) -> None:
    broken = True

    def fail() -> None:
        if broken:
            raise InferenceError("device lost")

    worker = start(FakeSession(before_run=fail))
    ready = []
    for _ in range(3):
        with pytest.raises(InferenceError):
            worker.infer({"x": X}, deadline=None)
        ready.append(worker.is_ready)
    assert ready == [True, True, False]
    broken = False
    worker.infer({"x": X}, deadline=None)
    assert worker.is_ready


def test_bad_feeds_are_not_failures_of_the_model(start: Callable[..., Worker]) -> None:
    worker = start(FakeSession())
    for _ in range(5):
        with pytest.raises(InputError):
            worker.infer({"x": X.astype(np.float64)}, deadline=None)
    assert worker.is_ready
    assert worker.consecutive_failures == 0


def test_a_run_longer_than_the_stall_timeout_is_a_stall(
    start: Callable[..., Worker], pool: ThreadPoolExecutor
) -> None:
    clock, gate = FakeClock(), Gate()
    worker = start(FakeSession(before_run=gate), clock=clock, stall_timeout_s=10.0)
    assert not worker.is_stalled(clock.now + 1000)  # idle for ever is no stall
    future = submit(pool, worker)
    gate.wait_entered()
    assert not worker.is_stalled(clock.now + 10)
    assert worker.is_stalled(clock.now + 10.1)
    gate.open()
    future.result(DEADLINE_S)
    worker.infer({"x": X}, deadline=None)
    assert not worker.is_stalled(clock.now + 1000)


def test_stop_answers_what_is_queued_then_closes(
    start: Callable[..., Worker], pool: ThreadPoolExecutor
) -> None:
    gate = Gate()
    session = FakeSession(before_run=gate)
    worker = start(session)
    accepted = [submit(pool, worker)]
    gate.wait_entered()
    accepted += [submit(pool, worker), submit(pool, worker)]
    wait_for_depth(worker, 2)
    assert not worker.stop(0.0)  # busy
    assert not worker.is_ready
    with pytest.raises(NotReadyError, match="stopping"):
        worker.infer({"x": X}, deadline=None)
    gate.open()
    for future in accepted:
        np.testing.assert_array_equal(future.result(DEADLINE_S).outputs["y"], affine(X)["y"])
    assert worker.stop(DEADLINE_S)
    assert session.is_closed


def test_a_worker_that_never_started_stops_at_once() -> None:
    assert affine_worker(FakeSession).stop(0.0)


BATCHED = affine_plan(batching=Batching())


def run_three_together(
    worker: Worker, pool: ThreadPoolExecutor, gate: Gate, rows: list[np.ndarray]
) -> list[Future[Answer]]:
    """Hold the worker in a run, let three requests wait, and let go."""
    first = submit(pool, worker)
    gate.wait_entered()
    asked = [pool.submit(worker.infer, {"x": x}, deadline=None) for x in rows]
    wait_for_depth(worker, len(rows))
    gate.open()
    first.result(DEADLINE_S)
    return asked


def test_requests_that_wait_together_run_together_and_get_their_own_rows(
    start: Callable[..., Worker], pool: ThreadPoolExecutor
) -> None:
    gate = Gate()
    session = FakeSession(before_run=gate)
    worker = start(session, plan=BATCHED)
    rows = [np.full((n, 4), n, np.float32) for n in (1, 2, 3)]
    asked = run_three_together(worker, pool, gate, rows)
    for x, future in zip(rows, asked, strict=True):
        answer = future.result(DEADLINE_S)
        np.testing.assert_array_equal(answer.outputs["y"], affine(x)["y"])
        np.testing.assert_array_equal(answer.outputs["s"], affine(x)["s"])
        assert answer.batch_rows == 6
    assert session.runs == 2


def test_a_request_that_breaks_its_batch_does_not_break_its_neighbours(
    start: Callable[..., Worker], pool: ThreadPoolExecutor
) -> None:
    gate = Gate()

    def compute(x: np.ndarray) -> dict[str, np.ndarray]:
        if (x == 2).any():
            raise InferenceError("two is too much")
        return affine(x)

    worker = start(FakeSession(compute=compute, before_run=gate), plan=BATCHED)
    rows = [np.full((1, 4), n, np.float32) for n in (1, 2, 3)]
    good, bad, fine = run_three_together(worker, pool, gate, rows)
    assert good.result(DEADLINE_S).batch_rows == 1
    assert fine.result(DEADLINE_S).outputs["y"][0, 0] == 7.0
    with pytest.raises(InferenceError, match="two is too much"):
        bad.result(DEADLINE_S)
    assert worker.is_ready


class Pipelined(FakeSession):
    """A session whose runs begin at `start` and end when they are waited for; two at a time."""

    depth = 2

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.events: list[str] = []
        self.most = self.begun = 0

    def start(self, feeds: Feeds) -> Callable[[], dict[str, np.ndarray]]:
        rows = len(feeds["x"])
        self.events.append(f"start {rows}")
        self.begun += 1
        self.most = max(self.most, self.begun)

        def finish() -> dict[str, np.ndarray]:
            outputs = self.run(feeds)
            self.begun -= 1
            self.events.append(f"finish {rows}")
            return outputs

        return finish


def test_the_next_full_batch_is_staged_while_one_runs(start: Callable[..., Worker]) -> None:
    gate = Gate()
    session = Pipelined(before_run=gate)
    plan = affine_plan(batching=Batching(), max_rows=2)
    worker = start(session, plan=plan, queue_size=16)
    answers = [worker.submit({"x": X}, deadline=None)]
    gate.wait_entered()
    answers += [worker.submit({"x": X * n}, deadline=None) for n in range(5)]
    gate.open()
    for answer in answers:
        answer.result(DEADLINE_S)
    for n, answer in enumerate(answers[1:]):
        np.testing.assert_array_equal(answer.result().outputs["y"], affine(X * n)["y"])
    assert session.events[:6] == [
        "start 1",
        "finish 1",
        "start 2",
        "start 2",
        "finish 2",
        "finish 2",
    ]
    assert session.most == worker.max_running_rows / 2 == 2


def test_a_run_that_waits_for_the_one_before_does_not_count_its_time_twice(
    start: Callable[..., Worker],
) -> None:
    clock, gate = FakeClock(), Gate()

    def before_run() -> None:
        gate()
        clock.advance(1.0)

    worker = start(Pipelined(before_run=before_run), queue_size=16, clock=clock)
    answers = [worker.submit({"x": X}, deadline=None) for _ in range(6)]
    gate.wait_entered()
    gate.open()
    assert [answer.result(DEADLINE_S).compute_s for answer in answers] == [1.0] * 6


def test_batches_that_fail_one_behind_the_other_are_answered_each_for_itself(
    start: Callable[..., Worker],
) -> None:
    gate = Gate()

    def fail() -> None:
        gate()
        raise InferenceError("CUDA error 700")

    plan = affine_plan(batching=Batching(), max_rows=2)
    worker = start(Pipelined(before_run=fail), plan=plan, queue_size=16)
    answers = [worker.submit({"x": X}, deadline=None) for _ in range(7)]
    gate.wait_entered()
    gate.open()
    for answer in answers:
        with pytest.raises(InferenceError, match="700"):
            answer.result(DEADLINE_S)
    assert worker.load == 0
