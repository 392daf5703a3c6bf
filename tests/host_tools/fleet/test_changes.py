"""What changed between two rounds, and when a device was how."""

from __future__ import annotations

import pytest

from host_tools.fleet.changes import changes_between, stretches_from
from host_tools.fleet.polling import DeviceStatus
from tests.host_tools.fleet.looks import BEGAN_S, poll

LATER_S = BEGAN_S + 10
GONE = poll(time_s=LATER_S, state="unreachable", reason="connection refused")
HOT = {"alarms": ("hot",), "troubles": ("hot: the GPU has 96 °C",)}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (poll(), poll(time_s=LATER_S), []),
        (poll(), GONE, [("went-down", "is unreachable: connection refused")]),
        (GONE, poll(), [("came-back", "is ok again, after unreachable")]),
        (GONE, GONE, []),
        (
            poll(),
            poll(time_s=LATER_S, bundle="camera 1.5.0"),
            [("new-bundle", "serves camera 1.5.0, before camera 1.4.0")],
        ),
        (
            poll(),
            poll(time_s=LATER_S, agent="1.0.0"),
            [("new-agent", "runs edge-agent 1.0.0, before 0.9.0")],
        ),
        (poll(), poll(time_s=LATER_S, uptime_s=1.0), [("restarted", "was restarted")]),
        (
            poll(),
            poll(time_s=LATER_S, state="degraded", reason="hot", **HOT),
            [("new-alarm", "alarm: hot: the GPU has 96 °C")],
        ),
        (
            poll(state="degraded", reason="hot", **HOT),
            poll(time_s=LATER_S),
            [("alarm-over", "alarm over: hot")],
        ),
        (
            poll(),
            poll(time_s=LATER_S, state="degraded", reason="detector: 1 of 2 workers down"),
            [("degraded", "is degraded: detector: 1 of 2 workers down")],
        ),
        (poll(state="degraded", reason="x"), poll(time_s=LATER_S), [("recovered", "is ok again")]),
        (poll("other"), poll(), [("new-device", "is ok")]),
    ],
)
def test_a_change_is_told_once_and_nothing_else(
    before: DeviceStatus, after: DeviceStatus, expected: list[tuple[str, str]]
) -> None:
    found = list(changes_between({before.device: before}, [after]))
    assert [(change.kind, change.detail) for change in found] == expected
    assert {change.time_s for change in found} <= {after.time_s}


def test_polls_that_were_alike_are_one_stretch() -> None:
    polls = [
        *(poll(time_s=BEGAN_S + n, p95_ms=float(n)) for n in range(3)),
        *(poll(time_s=BEGAN_S + n, state="timeout", reason=f"{n} bytes came") for n in (3, 4)),
        poll(time_s=BEGAN_S + 5, bundle="camera 1.5.0"),
    ]
    stretches = list(stretches_from(polls))
    assert [(s.state, s.polls, s.begin_s - BEGAN_S, s.end_s - BEGAN_S) for s in stretches] == [
        ("ok", 3, 0, 2),
        ("timeout", 2, 3, 4),
        ("ok", 1, 5, 5),
    ]
    assert (stretches[0].p95_ms, stretches[0].gpu_percent) == (1.0, None)
    assert stretches[1].reason == "4 bytes came"
    assert stretches[2].bundle == "camera 1.5.0"
    assert list(stretches_from([])) == []
