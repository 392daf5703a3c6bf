"""Who is served when, and with whom."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from edge.batching import Plan
from edge.errors import DeadlineError, NotReadyError, QueueFullError
from edge.inbox import Inbox, Request, RunCost
from edge.manifest import Batching
from edge.tensor_bytes import object_array
from tests.fakes import DEADLINE_S, FakeClock, affine_plan

TOGETHER = affine_plan(batching=Batching())
ROW_BYTES = 16


def make_inbox(plan: Plan = TOGETHER, **options: Any) -> Inbox:
    defaults = {"max_requests": 16, "max_bytes": 1 << 20, "window_s": 0.0, "clock": FakeClock()}
    inbox = Inbox("affine", plan, **{**defaults, **options})
    inbox.open()
    return inbox


def make_request(number: float = 0.0, *, rows: int = 1, **options: Any) -> Request:
    feeds = {"x": np.full((rows, 4), number, np.float32)}
    defaults = {"submitted": number, "deadline": None}
    return Request(feeds=feeds, extent=TOGETHER.extent(feeds), **{**defaults, **options})


def numbers(batch: list[Request]) -> list[float]:
    return [float(request.feeds["x"][0, 0]) for request in batch]


def test_what_waits_is_taken_together_up_to_the_rows_of_the_profile() -> None:
    inbox = make_inbox()
    for number in range(11):
        inbox.put(make_request(number))
    assert numbers(inbox.take()) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert numbers(inbox.take()) == [8, 9, 10]
    assert inbox.depth == 0


def test_bytes_that_wait_are_those_of_strings_too() -> None:
    inbox = make_inbox(affine_plan(), max_bytes=10_000)

    def put() -> None:
        feeds = {"x": object_array([b"x" * 4000], (1, 1))}
        extent = affine_plan().extent(feeds)
        inbox.put(Request(feeds=feeds, extent=extent, submitted=0.0, deadline=None))

    put()
    put()
    with pytest.raises(QueueFullError, match="bytes of requests waiting"):
        put()


def test_a_large_request_waits_for_the_next_batch_but_not_for_ever() -> None:
    inbox = make_inbox()
    for number, rows in enumerate((3, 6, 4, 1)):
        inbox.put(make_request(number, rows=rows))
    assert numbers(inbox.take()) == [0, 2, 3]
    inbox.put(make_request(9.0, rows=1))
    assert numbers(inbox.take()) == [1, 9]


def test_without_a_plan_each_request_is_a_batch() -> None:
    inbox = make_inbox(affine_plan())
    alone = affine_plan()
    for number in range(3):
        feeds = {"x": np.full((1, 4), number, np.float32)}
        inbox.put(Request(feeds=feeds, extent=alone.extent(feeds), submitted=number, deadline=None))
    assert [numbers(inbox.take()) for _ in range(3)] == [[0], [1], [2]]


def test_the_urgent_come_first_then_the_oldest() -> None:
    inbox = make_inbox(affine_plan(batching=Batching(), max_rows=2))
    for number, priority in enumerate((5, 9, 1, 5, 1)):
        inbox.put(make_request(number, priority=priority))
    assert [numbers(inbox.take()) for _ in range(3)] == [[2, 4], [0, 3], [1]]


def test_late_and_cancelled_requests_cost_no_row() -> None:
    clock = FakeClock(100.0)
    inbox = make_inbox(clock=clock)
    late, gone, good = (
        make_request(0, deadline=101.0),
        make_request(1),
        make_request(2, deadline=103.0),
    )
    for request in (late, gone, good):
        inbox.put(request)
    gone.answer.cancel()
    clock.advance(1.0)
    assert numbers(inbox.take()) == [2]
    with pytest.raises(DeadlineError, match="time limit"):
        late.answer.result(0)
    assert inbox.depth == 0


def test_the_inbox_is_bounded_by_count_and_by_bytes() -> None:
    few = make_inbox(max_requests=2)
    few.put(make_request())
    few.put(make_request())
    with pytest.raises(QueueFullError, match="2 requests waiting"):
        few.put(make_request())
    small = make_inbox(max_bytes=3 * ROW_BYTES)
    small.put(make_request(rows=8))  # an empty inbox takes any request the agent let in
    with pytest.raises(QueueFullError, match="128 bytes of requests waiting"):
        small.put(make_request())
    small.take()
    small.put(make_request(rows=2))
    small.put(make_request())
    with pytest.raises(QueueFullError):
        small.put(make_request())


def test_a_closed_inbox_gives_out_what_it_holds_and_takes_no_more() -> None:
    inbox = make_inbox()
    inbox.put(make_request())
    inbox.close()
    with pytest.raises(NotReadyError, match="stopping"):
        inbox.put(make_request())
    assert inbox.wait()
    assert len(inbox.take()) == 1
    assert not inbox.wait()
    inbox.open()
    assert not inbox.is_open


def learn(inbox: Inbox, *, fixed_s: float, row_s: float) -> None:
    """Let an inbox see runs of several sizes."""
    for rows in (1, 8, 2, 4) * 5:
        inbox.note_run(1, rows, fixed_s + rows * row_s)


def test_an_idle_model_never_waits_for_company() -> None:
    inbox = make_inbox(window_s=DEADLINE_S)
    learn(inbox, fixed_s=DEADLINE_S, row_s=0.0)
    for _ in range(3):
        inbox.put(make_request())
        assert len(inbox.take()) == 1
        inbox.note_run(1, 1, DEADLINE_S)
    assert inbox.window_s == DEADLINE_S  # waiting in vain would have halved it


def test_callers_of_the_last_batch_are_waited_for() -> None:
    inbox = make_inbox(window_s=DEADLINE_S)
    learn(inbox, fixed_s=DEADLINE_S, row_s=0.001)
    for number in range(3):
        inbox.put(make_request(number))
    assert len(inbox.take()) == 3
    inbox.note_run(3, 3, DEADLINE_S + 0.003)
    inbox.put(make_request(3))
    taken: list[Request] = []
    taker = threading.Thread(target=lambda: taken.extend(inbox.take()))
    taker.start()
    for number in (4, 5):
        assert not taken
        inbox.put(make_request(number))
    taker.join(DEADLINE_S)
    assert numbers(taken) == [3, 4, 5]


def test_waiting_in_vain_makes_the_window_shrink_until_nobody_waits() -> None:
    inbox = make_inbox(window_s=0.004)
    learn(inbox, fixed_s=1.0, row_s=0.0)
    waited = 0
    for number in range(40):
        inbox.put(make_request(number))
        inbox.note_run(8, 8, 1.0)  # as if eight callers had been answered and none came back
        waited += len(inbox.take())
    assert waited == 40
    assert inbox.window_s <= 50e-6


def test_nobody_is_waited_for_where_rows_cost_all_and_runs_nothing() -> None:
    inbox = make_inbox(window_s=DEADLINE_S)
    learn(inbox, fixed_s=0.0, row_s=DEADLINE_S)
    inbox.put(make_request())
    inbox.note_run(8, 8, 8 * DEADLINE_S)
    assert len(inbox.take()) == 1
    assert inbox.window_s == DEADLINE_S


@pytest.mark.parametrize(("fixed_s", "row_s"), [(0.01, 0.002), (0.0, 0.003), (0.5, 0.0)])
def test_the_fixed_cost_of_a_run_is_found_under_noise(fixed_s: float, row_s: float) -> None:
    rng = np.random.default_rng(0)
    cost = RunCost()
    for rows in rng.integers(1, 33, 500):
        cost.add(int(rows), (fixed_s + rows * row_s) * rng.uniform(0.98, 1.02))
    assert cost.fixed_s == pytest.approx(fixed_s, abs=0.05 * (fixed_s + 16 * row_s))


def test_runs_of_one_size_say_nothing_about_the_fixed_cost() -> None:
    cost = RunCost()
    assert cost.fixed_s == 0.0
    for _ in range(100):
        cost.add(8, 0.02)
    assert cost.fixed_s == 0.0
