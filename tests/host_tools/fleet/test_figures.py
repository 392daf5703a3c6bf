"""The figures of a fleet, against sums made by hand."""

from __future__ import annotations

import statistics

import pytest

from host_tools.fleet.figures import BINS, FleetFigures
from host_tools.fleet.inventory import Device
from host_tools.fleet.polling import DeviceStatus
from tests.host_tools.fleet.looks import BEGAN_S, a_week, poll, summarised

NAMES = ("line-1", "line-2", "line-3", "line-4")
DEVICES = tuple(Device(name=name, host=name) for name in NAMES)
END_S = BEGAN_S + 7 * 86400


def figures_of(polls: list[DeviceStatus], *, begin_s: float = BEGAN_S) -> FleetFigures:
    return summarised(polls, DEVICES, begin_s=begin_s, end_s=END_S)


def test_a_weeks_figures_are_those_of_its_polls() -> None:
    polls = list(a_week(NAMES[:3]))
    fleet = figures_of(polls)
    assert (fleet.polls, fleet.states) == (504, {"ok": 1, "degraded": 1, "unreachable": 1})
    assert fleet.drifted == {"line-2": ("detector",)}
    first, _, third, never = fleet.devices
    own = [status.facts for status in polls if status.device == "line-1" and status.facts]
    assert first.p95_ms == statistics.median(one.p95_ms for one in own if one.p95_ms is not None)
    assert (first.served, first.gpu_percent) == (1.0, 40.0)
    assert first.throttled == pytest.approx(42 / 168)
    assert third.served == pytest.approx(145 / 168)
    assert third.state == "unreachable"
    assert third.facts is not None  # what was last known of it
    assert (never.state, never.polls, never.p95_ms, never.served) == (None, 0, None, None)
    assert fleet.joules_per_request == pytest.approx(2.5)
    assert {len(series) for series in fleet.over_time.values()} == {BINS}
    served = [value for value in fleet.over_time["served"] if value is not None]
    assert served[0] == 1.0
    assert served[-1] == pytest.approx(2 / 3)


def test_energy_is_not_counted_over_a_restart() -> None:
    def at(second: int, joules: float, requests: int, uptime_s: float) -> DeviceStatus:
        return poll(time_s=BEGAN_S + second, energy_joules=joules, requests=requests,
                    uptime_s=uptime_s)  # fmt: skip

    fleet = figures_of([
        at(0, 100.0, 10, 1000.0),
        at(100, 300.0, 110, 1100.0),  # 200 J, 100 requests
        at(200, 9000.0, 9000, 50.0),  # it began anew, and has done more than before
        at(300, 9100.0, 9100, 150.0),  # 100 J, 100 requests
        at(400, 50.0, 1, 20.0),  # it began anew
    ])  # fmt: skip
    assert fleet.joules_per_request == pytest.approx(300 / 200)


def test_what_no_device_tells_is_unknown_and_not_zero() -> None:
    fleet = figures_of([poll(time_s=BEGAN_S + n) for n in range(3)])
    one = fleet.devices[0]
    assert (one.throttled, one.gpu_percent, one.joules_per_request) == (None, None, None)
    assert fleet.over_time["served"][0] == 1.0
    for name in ("throttled", "gpu_percent", "p95_ms", "joules_per_request"):
        assert set(fleet.over_time[name]) == {None}


def test_polls_of_devices_that_are_not_asked_for_do_not_count() -> None:
    fleet = figures_of([poll("elsewhere"), poll("line-1", time_s=BEGAN_S + 1)])
    assert fleet.polls == 1
    assert fleet.begin_s == BEGAN_S + 1


def test_the_slowest_tenth_begins_at_the_smallest_value_that_nine_tenths_reach() -> None:
    devices = [Device(name=f"d{n}", host="x") for n in range(10)]
    polls = [poll(f"d{n}", time_s=BEGAN_S, p95_ms=float(n + 1)) for n in range(10)]
    fleet = summarised(polls, devices, begin_s=BEGAN_S, end_s=END_S)
    assert fleet.over_time["slow_p95_ms"][0] == 9.0
    assert fleet.over_time["p95_ms"][0] == 5.5
