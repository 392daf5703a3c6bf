"""Bounds of a recording: time, bytes, what is held, and the share of requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge.capture import recording
from edge.capture.recording import Recording, Wish
from tests.edge.capture.test_capture_file import exchange
from tests.fakes import FakeClock


def begin(clock: FakeClock | None = None, **wish: Any) -> Recording:
    return Recording(Wish(**wish), clock=clock or FakeClock(), rng=np.random.default_rng(0))


def test_it_ends_after_its_time_and_takes_the_answer_that_was_under_way() -> None:
    clock = FakeClock()
    made = begin(clock, seconds=5)
    assert made.wants_next()
    clock.advance(5.1)
    assert not made.wants_next()
    made.add(exchange())
    assert (made.end_reason, made.take(100)) == ("time", [exchange()])


def test_it_ends_at_its_bytes_whether_they_were_fetched_or_not() -> None:
    size = exchange().size
    made = begin(max_bytes=3 * size)
    for _ in range(3):
        made.add(exchange())
        assert made.take(size) == [exchange()]
    assert made.end_reason is None
    made.add(exchange())
    assert (made.end_reason, made.is_empty, made.dropped) == ("bytes", True, 0)


def test_what_is_not_fetched_in_time_is_counted_and_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recording, "MAX_HELD_BYTES", 2 * exchange().size)
    made = begin()
    for number in range(5):
        made.add(exchange(number))
    assert made.dropped == 3
    assert made.take(1000) == [exchange(0), exchange(1)]
    made.add(exchange(5))
    assert made.take(1000) == [exchange(5)]


def test_the_number_of_requests_held_is_bounded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_HELD", 2)
    made = begin()
    for _ in range(5):
        made.add(exchange(body=b"", answer=b""))
    assert (made.dropped, len(made.take(1000))) == (3, 2)


def test_a_fetch_is_bounded_but_never_empty() -> None:
    made = begin()
    for number in range(4):
        made.add(exchange(number))
    size = exchange().size
    assert [len(made.take(limit)) for limit in (1, 2 * size, 10, 10)] == [1, 2, 1, 0]


def test_a_share_is_that_share() -> None:
    made = begin(share=0.1)
    taken = sum(made.wants_next() for _ in range(10_000))
    assert abs(taken - 1000) < 5 * np.sqrt(10_000 * 0.1 * 0.9)  # five sigma of a binomial


def test_once_stopped_it_takes_nothing() -> None:
    made = begin()
    made.add(exchange(0))
    made.stop()
    made.add(exchange(1))
    assert not made.wants_next()
    assert (made.end_reason, made.take(1000)) == ("stopped", [exchange(0)])
