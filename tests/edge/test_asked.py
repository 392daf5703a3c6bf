from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

from edge.asked import MAX_PARTS, Asked, submit_in_turn
from edge.errors import InferenceError, QueueFullError
from edge.http_answer import HttpAnswer
from edge.inbox import Answer
from edge.promise import Promise
from edge.spec import Feeds
from tests.fakes import DEADLINE_S, FakeSession, affine_worker
from tests.models import affine


def part(number: float, rows: int = 1) -> Feeds:
    return {"x": np.full((rows, 4), number, np.float32)}


class Line:
    """A submit whose answers come when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Feeds, Promise[Answer]]] = []
        self.is_full = False

    def __call__(self, feeds: Feeds) -> Promise[Answer]:
        if self.is_full:
            raise QueueFullError("full")
        future: Promise[Answer] = Promise()
        self.waiting.append((feeds, future))
        return future

    def answer(self) -> None:
        feeds, future = self.waiting[-1]
        future.set_running_or_notify_cancel()
        rows = len(feeds["x"])
        ragged = np.zeros((rows, int(feeds["x"][0, 0])))
        outputs = {**affine(feeds["x"]), "ragged": ragged}
        future.set_result(Answer(outputs=outputs, queue_s=1.0, compute_s=2.0, batch_rows=rows))


def test_parts_run_one_after_the_other_and_their_rows_are_joined() -> None:
    line = Line()
    parts = [part(1.0, 2), part(2.0), part(3.0)]
    future = submit_in_turn(parts, line)
    for count in (1, 2, 3):
        assert len(line.waiting) == count
        assert not future.done()
        line.answer()
    got = future.result(0)
    rows = np.concatenate([feeds["x"] for feeds in parts])
    np.testing.assert_array_equal(got.outputs["y"], affine(rows)["y"])
    np.testing.assert_array_equal(got.outputs["s"], affine(rows)["s"])
    assert "ragged" not in got.outputs
    assert (got.queue_s, got.compute_s, got.batch_rows) == (3.0, 6.0, 2)


def test_a_single_part_costs_nothing_more() -> None:
    line = Line()
    assert submit_in_turn([part(1.0)], line) is line.waiting[0][1]


def test_cancelling_stops_what_runs_and_what_would_follow() -> None:
    line = Line()
    future = submit_in_turn([part(1.0), part(2.0), part(3.0)], line)
    line.answer()
    assert future.cancel()
    assert line.waiting[1][1].cancelled()
    assert len(line.waiting) == 2
    with pytest.raises(CancelledError):
        future.result(0)


def test_an_answer_that_comes_after_the_cancel_is_dropped() -> None:
    line = Line()
    future = submit_in_turn([part(1.0), part(2.0)], line)
    line.waiting[0][1].set_running_or_notify_cancel()
    assert future.cancel()
    result = Answer(outputs={}, queue_s=0.0, compute_s=0.0, batch_rows=1)
    line.waiting[0][1].set_result(result)
    assert len(line.waiting) == 1


def test_the_first_failure_ends_it() -> None:
    line = Line()
    future = submit_in_turn([part(1.0), part(2.0), part(3.0)], line)
    line.answer()
    line.waiting[-1][1].set_exception(InferenceError("broken"))
    with pytest.raises(InferenceError, match="broken"):
        future.result(0)
    assert len(line.waiting) == 2


def test_a_full_inbox_refuses_at_once_or_in_the_middle() -> None:
    line = Line()
    future = submit_in_turn([part(1.0), part(2.0)], line)
    line.is_full = True
    line.answer()
    with pytest.raises(QueueFullError):
        future.result(0)
    with pytest.raises(QueueFullError):
        submit_in_turn([part(1.0), part(2.0)], line)


def test_a_real_worker_takes_as_many_parts_as_there_may_be() -> None:
    worker = affine_worker(FakeSession)
    worker.start()
    parts = [part(float(number)) for number in range(MAX_PARTS)]
    done = threading.Event()
    future = submit_in_turn(parts, lambda feeds: worker.submit(feeds, deadline=None))
    future.add_done_callback(lambda _: done.set())
    assert done.wait(DEADLINE_S)
    rows = np.concatenate([feeds["x"] for feeds in parts])
    np.testing.assert_array_equal(future.result(0).outputs["y"], affine(rows)["y"])
    assert worker.stop(DEADLINE_S)


def test_rows_are_counted_over_all_parts() -> None:
    answer = HttpAnswer(status=200, body=b"")
    asked = Asked(parts=(part(1.0, 3), part(2.0, 2)), encode=lambda _: answer)
    assert asked.rows == 5
    assert Asked(parts=({"x": np.float32(1.0)},), encode=lambda _: answer).rows == 1
