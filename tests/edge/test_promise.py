"""A Promise does what a Future of the standard library does; every test runs on both."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.promise import Promise
from tests.fakes import DEADLINE_S

KINDS: list[Any] = [Future, Promise]
STEPS = ("run", "result", "error", "cancel", "listen", "ask")


@pytest.fixture(params=KINDS)
def future(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_a_result_reaches_who_waits_in_another_thread(future: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(future.result, DEADLINE_S)
        assert future.set_running_or_notify_cancel()
        future.set_result(7)
        assert waiting.result(DEADLINE_S) == 7


def test_an_error_is_raised_by_result_and_returned_by_exception(future: Any) -> None:
    error = ValueError("no")
    future.set_exception(error)
    with pytest.raises(ValueError, match="no"):
        future.result(0)
    assert future.exception(0) is error


def test_who_waits_too_long_is_told(future: Any) -> None:
    with pytest.raises(FutureTimeoutError):
        future.result(0)
    future.set_result(1)
    assert future.result(0) == 1


def test_a_callback_that_fails_keeps_no_other_from_its_turn(
    future: Any, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[int] = []

    def fail(_: object) -> None:
        raise RuntimeError("out of order")

    future.add_done_callback(fail)
    future.add_done_callback(lambda done: called.append(done.result(0)))
    future.set_result(3)
    assert called == [3]
    assert "out of order" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_either_the_runner_or_the_canceller_wins(kind: Any) -> None:
    for _ in range(200):
        future, start = kind(), threading.Barrier(2)

        def run(future: Any = future, start: threading.Barrier = start) -> bool:
            start.wait(DEADLINE_S)
            running: bool = future.set_running_or_notify_cancel()
            return running

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run)
            start.wait(DEADLINE_S)
            cancelled = future.cancel()
            assert running.result(DEADLINE_S) is not cancelled


@given(st.lists(st.sampled_from(STEPS), max_size=6))
def test_any_steps_lead_where_they_lead_a_future(steps: list[str]) -> None:
    ours: Any = Promise()
    theirs: Any = Future()
    is_running = False
    told: dict[str, list[str]] = {"ours": [], "theirs": []}
    for step in steps:
        if step == "run" and (is_running or theirs.done()):
            continue  # misuse
        if step in {"result", "error"} and theirs.done():
            continue  # misuse
        seen = [
            stepped(kind, step, told[name]) for name, kind in (("ours", ours), ("theirs", theirs))
        ]
        is_running |= step == "run"
        assert seen[0] == seen[1]
        assert told["ours"] == told["theirs"]
        assert (ours.done(), ours.cancelled()) == (theirs.done(), theirs.cancelled())


def stepped(future: Any, step: str, told: list[str]) -> object:
    """Return what one step gives, or the name of what it raises."""
    try:
        if step == "run":
            return future.set_running_or_notify_cancel()
        if step == "result":
            return future.set_result(5)
        if step == "error":
            return future.set_exception(KeyError("x"))
        if step == "cancel":
            return future.cancel()
        if step == "listen":
            return future.add_done_callback(lambda done: told.append(str(done.cancelled())))
        return future.result(0)
    except (CancelledError, FutureTimeoutError, KeyError) as error:
        return type(error).__name__
