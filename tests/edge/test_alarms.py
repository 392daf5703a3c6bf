"""When an alarm comes on, when it goes off, and what it says."""

from __future__ import annotations

import pytest

from edge.alarms import (
    Finding,
    Latch,
    LeakFinder,
    ThrottleWatch,
    heat_finding,
    memory_finding,
    worst,
)
from edge.probes.sample import GpuSample, Sample

GIB = 1 << 30
MIB = 1 << 20
BAD = Finding(is_bad=True, detail="bad")
WELL = Finding(is_bad=False, detail="well")
BETWEEN = Finding(is_bad=None, detail="")


def states(latch, findings, *, wall=lambda now: 1e9 + now):
    """Step once a second; return for each second whether the alarm is on, None if untold."""
    seen = []
    for now, finding in enumerate(findings):
        told = latch.step(finding, now=float(now), wall_s=wall(now))
        seen.append(None if told is None else told.alarm is not None)
    return seen


def test_an_alarm_comes_on_after_its_patience_and_names_when_it_began():
    latch = Latch("hot", None)
    assert states(latch, [WELL] * 5 + [BAD] * 11) == [False] * 15 + [True]
    assert latch.alarm.since_s == 1e9 + 5
    assert (latch.alarm.name, latch.alarm.model, latch.alarm.detail) == ("hot", None, "bad")


def test_an_alarm_goes_off_after_all_was_well_for_a_while_only():
    latch = Latch("hot", None)
    seen = states(latch, [BAD] * 11 + [WELL] * 29 + [BETWEEN] + [WELL] * 31)
    assert seen == [False] * 10 + [True] * (1 + 29 + 1 + 30) + [False]


def test_readings_between_the_limits_change_nothing():
    latch = Latch("memory-low", None)
    assert states(latch, [BETWEEN] * 100) == [False] * 100
    states(latch, [BAD] * 10)
    assert states(latch, [BETWEEN] * 100) == [True] * 100


def test_a_reading_that_flaps_around_a_limit_does_not_flap_the_alarm():
    latch = Latch("memory-low", None)
    seen = states(latch, [BAD] * 4 + [WELL, BAD] * 100)
    assert seen[3:] == [True] * (1 + 200)


def test_an_alarm_that_cannot_be_told_stays_for_five_minutes_and_is_forgotten_then():
    latch = Latch("memory-low", None)
    seen = states(latch, [BAD] * 4 + [None] * 302)
    assert seen == [False] * 3 + [True] * (1 + 300) + [None] * 2


def test_what_could_never_be_told_has_no_state():
    assert states(Latch("throttled", None), [None, None]) == [None, None]


@pytest.mark.parametrize("jump", [-3.2e7, 3.2e7])
def test_a_jump_of_the_clock_on_the_wall_raises_and_ends_nothing(jump):
    def wall(now):
        return 1e9 + now + (jump if now > 2 else 0)

    latch = Latch("hot", None)
    assert states(latch, [WELL] * 2 + [BAD] * 11, wall=wall) == [False] * 12 + [True]
    assert latch.alarm.since_s == 1e9 + 2 + jump
    assert states(latch, [WELL] * 31, wall=wall)[-2:] == [True, False]


@pytest.mark.parametrize(
    ("available", "is_bad"),
    [(100, False), (81, False), (80, None), (50, None), (49, True), (0, True)],
)
def test_memory_is_low_below_five_per_cent_and_ample_above_eight(available, is_bad):
    sample = Sample(memory_total_bytes=1000 * MIB, memory_available_bytes=available * MIB)
    assert memory_finding(sample).is_bad is is_bad


@pytest.mark.parametrize(
    ("total", "free", "is_bad"),
    [
        (80 * GIB, 200 * MIB, False),  # what the agent leaves free by plan is no alarm
        (80 * GIB, 150 * MIB, None),
        (80 * GIB, 127 * MIB, True),
        (2 * GIB, 120 * MIB, None),
        (2 * GIB, 100 * MIB, True),
    ],
)
def test_a_card_is_low_when_it_holds_less_than_is_left_free_by_plan(total, free, is_bad):
    gpu = GpuSample(memory="device", memory_total_bytes=total, memory_used_bytes=total - free)
    assert memory_finding(Sample(gpus=(gpu,))).is_bad is is_bad


def test_memory_that_cpu_and_gpu_share_counts_once():
    gpu = GpuSample(memory="unified", memory_total_bytes=GIB, memory_used_bytes=GIB)
    assert memory_finding(Sample(gpus=(gpu,))) is None


def test_memory_that_cannot_be_told_is_no_alarm():
    assert memory_finding(Sample(memory_total_bytes=GIB)) is None
    assert memory_finding(Sample(memory_available_bytes=GIB)) is None


@pytest.mark.parametrize(
    ("celsius", "is_bad"), [(93.9, None), (94.0, True), (89.0, None), (88.9, False)]
)
def test_heat_is_judged_by_the_limit_that_the_zone_has(celsius, is_bad):
    sample = Sample(temperatures_celsius={"cpu": celsius}, temperature_limits_celsius={"cpu": 99.0})
    finding = heat_finding(sample)
    assert finding.is_bad is is_bad
    assert "99 C (its own)" in finding.detail


def test_heat_without_a_limit_is_judged_by_the_default():
    assert heat_finding(Sample(temperatures_celsius={"a": 89.0})).is_bad is None
    finding = heat_finding(Sample(temperatures_celsius={"a": 20.0, "b": 90.0}))
    assert finding.is_bad
    assert finding.detail.startswith("zone 'b' has 90 C, near the limit of 95 C (the default)")


def test_heat_of_a_card_is_judged_by_its_slowdown_threshold():
    gpu = GpuSample(temperature_celsius=79.0, temperature_limit_celsius=84.0)
    assert heat_finding(Sample(gpus=(gpu,))).is_bad
    assert heat_finding(Sample(gpus=(GpuSample(),))) is None


def throttle(pattern):
    """Feed a reading a second; return the last finding."""
    watch, finding = ThrottleWatch(), None
    for now, reasons in enumerate(pattern):
        finding = watch.finding([GpuSample(throttle_reasons=reasons)], float(now))
    return finding


def test_clocks_held_down_in_every_second_reading_are_throttled():
    finding = throttle([("thermal",), ()] * 30)
    assert finding.is_bad
    assert "(thermal) in 5" in finding.detail


def test_a_moment_of_throttling_is_no_alarm():
    assert throttle([()] * 30 + [("power-cap",)] * 5 + [()] * 25).is_bad is False
    assert throttle([("power-cap",)] * 19).is_bad is None  # too few readings


def test_a_gpu_that_cannot_tell_is_not_throttled():
    assert throttle([("thermal",)] * 60 + [None]) is None


def test_the_worst_finding_wins_and_details_of_all_bad_ones_are_joined():
    other = Finding(is_bad=True, detail="worse", since_s=5.0)
    assert worst([WELL, BAD, BETWEEN, other]) == Finding(
        is_bad=True, detail="bad; worse", since_s=5.0
    )
    assert worst([WELL, BETWEEN]) is BETWEEN
    assert worst([]) is None


def leak_finding(samples):
    finder = LeakFinder()
    finding = None
    for second, sample in enumerate(samples):
        finding = finder.finding(
            sample, answered=100 * second, now=float(second), wall_s=1e9 + second
        )
    return finding


def test_a_leak_of_resident_memory_names_size_request_and_time():
    levels = [100 * MIB + max(0, second - 100) * 10 * MIB for second in range(250)]
    finding = leak_finding([Sample(rss_bytes=level) for level in levels])
    assert finding.is_bad
    assert "resident memory grows by 104,858 bytes with each request" in finding.detail
    assert finding.since_s >= 1e9 + 100


def test_a_leak_on_the_card_is_found_by_what_the_driver_says_of_the_agent():
    gpus = [
        GpuSample(own_memory_bytes=second * 10 * MIB, memory_used_bytes=GIB)
        for second in range(200)
    ]
    finding = leak_finding([Sample(rss_bytes=GIB, gpus=(gpu,)) for gpu in gpus])
    assert finding.is_bad
    assert finding.detail.startswith("memory of the GPU grows by 104,858 bytes")


def test_where_the_driver_does_not_say_whose_memory_it_is_all_of_it_counts():
    gpus = [GpuSample(memory_used_bytes=second * 10 * MIB) for second in range(200)]
    assert leak_finding([Sample(gpus=(gpu,)) for gpu in gpus]).is_bad


def test_a_leak_cannot_be_told_where_no_memory_can():
    assert leak_finding([Sample()]) is None
