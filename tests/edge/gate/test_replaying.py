"""Recorded requests before and after the switch: what is compared, and with what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.capture.answers import Closeness
from edge.capture.capture_file import Exchange
from edge.errors import CaptureError
from edge.gate.replaying import Replay
from tests.edge.capture.test_capture_file import exchange
from tests.edge.capture.test_replay import write_file
from tests.edge.gate.test_hostile_agents import FakeAgent

CLOSE = {"affine": Closeness(tolerance=0.1)}


@pytest.fixture
def agent() -> Iterator[FakeAgent]:
    made = FakeAgent()
    yield made
    made.close()


def requests(count: int) -> tuple[Exchange, ...]:
    return tuple(exchange(number) for number in range(count))


def test_what_the_bundle_before_failed_at_says_nothing_of_the_trial(
    tmp_path: Path, agent: FakeAgent
) -> None:
    left = [500, 429, 200, 200]
    agent.answers = lambda: (left.pop() if left else 200, b'{"a": 1}')
    replaying = Replay(write_file(tmp_path / "c", *requests(4)), agent.url)
    replaying.before()
    assert replaying.has_asked
    report = replaying.now(CLOSE, most=0.5)
    assert (report.is_same, report.requests, report.compared) == (True, 2, 2)
    agent.answers = lambda: (500, b"{}")
    assert not replaying.now(CLOSE, most=0.5).is_same


def test_a_bundle_before_that_answers_nothing_is_no_measure(
    tmp_path: Path, agent: FakeAgent
) -> None:
    recorded = exchange(answer=b'{"a": 1}')
    replaying = Replay(write_file(tmp_path / "c", recorded), agent.url)
    agent.answers = lambda: (500, b"{}")
    replaying.before()
    assert not replaying.has_asked
    agent.answers = lambda: (200, b'{"a": 1}')
    report = replaying.now(CLOSE, most=0.5)
    assert (report.is_same, report.compared) == (True, 1)


def test_a_recording_of_other_requests_is_refused_before_anything_is_sent(
    tmp_path: Path, agent: FakeAgent
) -> None:
    strange = exchange(path="/v2/health/ready", method="GET")
    with pytest.raises(CaptureError, match="no inference"):
        Replay(write_file(tmp_path / "c", strange), agent.url)
