"""Alarms of a serving agent: told, logged at the change, and shown; telemetry fails nobody."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import httpx
import msgspec
import pytest

from edge.alarm_watch import AlarmWatch, Drift
from edge.history.history import HistoryQuery
from edge.history.recorder import HistoryRecorder
from edge.probes.jetson import JetsonProbe
from edge.probes.jtop import JtopProbe
from edge.probes.nvml import NvmlProbe
from edge.probes.sample import GpuSample, ProbeChain, Sample
from edge.request_energy import RequestEnergy
from edge.sampler import EnergyMeter
from edge.telemetry import report_from_serving
from tests.agents import make_config, running_agent
from tests.edge.probes.fake_nvml import RTX_4060, FakeNvml
from tests.edge.probes.machine_trees import MACHINE_TREES
from tests.edge.probes.test_jtop import FakeJtop
from tests.edge.test_telemetry import make_serving
from tests.fakes import FakeClock

GIB = 1 << 30
LOW = Sample(memory_total_bytes=8 * GIB, memory_available_bytes=GIB // 8)
AMPLE = Sample(memory_total_bytes=8 * GIB, memory_available_bytes=4 * GIB)


class Watched:
    """An AlarmWatch whose clocks are moved by hand, a second with each reading."""

    def __init__(self, **options) -> None:
        self.serving = make_serving()
        self.clock, self.wall_clock = FakeClock(), FakeClock(1e9)
        self.watch = AlarmWatch(
            self.serving, clock=self.clock, wall_clock=self.wall_clock, **options
        )

    def take(self, *samples: Sample) -> list[str]:
        for sample in samples:
            self.watch.take(sample)
            self.clock.advance(1)
            self.wall_clock.advance(1)
        return [told.name for told in self.serving.alarms if told.alarm is not None]


def gauge(serving) -> dict[str, float]:
    lines = serving.metrics.exposition().decode().splitlines()
    found = [line.rsplit(" ", 1) for line in lines if line.startswith("edge_alarm_active{")]
    return {name: float(value) for name, value in found}


def changes(caplog) -> list[str]:
    return [r.getMessage().split(":")[0] for r in caplog.records if r.name == "edge.alarm_watch"]


def test_an_alarm_is_logged_once_when_it_comes_and_once_when_it_goes(caplog):
    watched = Watched()
    with caplog.at_level(logging.INFO):
        assert watched.take(*[LOW] * 60) == ["memory-low"]
        assert watched.take(*[AMPLE] * 60) == []
    assert changes(caplog) == [
        "alarm on name=memory-low model=None",
        "alarm off name=memory-low model=None",
    ]


def test_alarms_are_in_the_report_and_in_the_metrics():
    watched = Watched()
    watched.take(*[LOW] * 5)
    body = json.loads(msgspec.json.encode(report_from_serving(watched.serving, now=200.0)))
    (alarm,) = body["alarms"]
    assert (alarm["name"], alarm["model"], alarm["since_s"]) == ("memory-low", None, 1e9)
    assert "128 MiB of 8,192 MiB memory are available" in alarm["detail"]
    # Heat, throttling and growth cannot be told of these readings, so they have no series.
    assert gauge(watched.serving) == {'edge_alarm_active{alarm="memory-low",model=""}': 1.0}
    watched.take(*[AMPLE] * 40)
    assert gauge(watched.serving) == {'edge_alarm_active{alarm="memory-low",model=""}': 0.0}
    assert report_from_serving(watched.serving, now=200.0).alarms == ()


def test_a_model_that_drifts_is_an_alarm_of_its_own_and_one_that_does_not_is_told_as_well(caplog):
    drifts = [Drift("a", 5.0, "x: 4.0 sigma"), Drift("b", None, "")]
    watched = Watched(drifts=lambda: drifts)
    with caplog.at_level(logging.INFO):
        assert watched.take(Sample(), Sample()) == ["drift"]
        assert gauge(watched.serving) == {
            'edge_alarm_active{alarm="drift",model="a"}': 1.0,
            'edge_alarm_active{alarm="drift",model="b"}': 0.0,
        }
        drifts[0] = Drift("a", None, "")
        assert watched.take(Sample()) == []
    assert changes(caplog) == ["alarm on name=drift model=a", "alarm off name=drift model=a"]


def test_drift_may_be_told_by_plain_tuples():
    watched = Watched(drifts=lambda: [Drift("a", 5.0, "x")])
    watched.take(Sample())
    (told,) = watched.serving.alarms
    assert (told.alarm.model, told.alarm.since_s) == ("a", 5.0)


def test_drift_that_cannot_be_told_is_logged_once_and_keeps_no_other_alarm_back(caplog):
    def fail():
        raise RuntimeError("no reference")

    watched = Watched(drifts=fail)
    assert watched.take(*[LOW] * 10) == ["memory-low"]
    assert sum("no reference" in record.getMessage() for record in caplog.records) == 1


def test_memory_that_grows_because_a_model_was_opened_is_no_leak():
    watched = Watched()
    serving = watched.serving
    outcomes = serving.metrics.for_model("affine")
    served = serving.served["affine"]

    def readings(levels):
        on = []
        for level in levels:
            for _ in range(100):
                outcomes.record_answer(queue_s=0, compute_s=0, total_s=0)
            on += watched.take(Sample(rss_bytes=level))
        return on

    # Every 40 s a model is opened, which takes 100 MiB.
    for opened in range(10):
        serving.served = {f"model-{n}": served for n in range(opened + 1)}
        assert readings([GIB + opened * (100 << 20)] * 40) == []
    assert "memory-leak" in readings([2 * GIB + second * (4 << 20) for second in range(200)])


def test_joules_per_request_are_those_of_the_last_minute():
    serving, clock = make_serving(), FakeClock()
    energy = RequestEnergy(serving, clock=clock)
    outcomes = serving.metrics.for_model("affine")
    for second in range(200):
        # 10 W and 5 requests a second; then 20 W.
        joules = 10.0 * second + 10.0 * max(0, second - 100)
        energy.take(Sample(energy_joules=joules, gpus=(GpuSample(energy_joules=1.0),)))
        if second == 60:
            assert serving.joules_per_request == pytest.approx(2.0)
        for _ in range(5):
            outcomes.record_answer(queue_s=0, compute_s=0, total_s=0)
        outcomes.record_error("deadline")
        clock.advance(1)
    assert serving.joules_per_request == pytest.approx(4.0)
    assert report_from_serving(serving, now=1.0).joules_per_request == serving.joules_per_request


def test_joules_per_request_are_exact_with_a_counter_that_is_read_now_and_then():
    serving, clock = make_serving(), FakeClock()
    energy = RequestEnergy(serving, clock=clock)
    outcomes = serving.metrics.for_model("affine")
    for second in range(64):
        energy.take(Sample(gpus=(GpuSample(energy_joules=30.0 * (second // 5 * 5)),)))
        if second >= 5:
            assert serving.joules_per_request == pytest.approx(10.0)
        for _ in range(3):
            outcomes.record_answer(queue_s=0, compute_s=0, total_s=0)
        clock.advance(1)


def test_joules_per_request_are_unknown_without_power_or_requests():
    serving, clock = make_serving(), FakeClock()
    energy = RequestEnergy(serving, clock=clock)
    energy.take(Sample(energy_joules=1.0))
    energy.take(Sample(energy_joules=9.0))
    assert serving.joules_per_request is None  # nobody asked for anything
    serving.metrics.for_model("affine").record_answer(queue_s=0, compute_s=0, total_s=0)
    energy.take(Sample(energy_joules=10.0))
    assert serving.joules_per_request == 9.0
    energy.take(Sample())
    assert serving.joules_per_request is None
    # The counter of a card begins again when its driver is loaded.
    energy.take(Sample(gpus=(GpuSample(energy_joules=5.0),)))
    serving.metrics.for_model("affine").record_answer(queue_s=0, compute_s=0, total_s=0)
    energy.take(Sample(gpus=(GpuSample(energy_joules=2.0),)))
    assert serving.joules_per_request is None


class Sources:
    """Every source of telemetry with hardware behind it, scripted."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = MACHINE_TREES["agx-orin-jetpack6"].write(tmp_path / "tree")
        self.nvml, self.jtop, self.clock = FakeNvml(RTX_4060), FakeJtop(), FakeClock()
        probes = [JtopProbe(self.jtop), NvmlProbe(self.nvml), JetsonProbe(self.root)]
        self.probe = EnergyMeter(ProbeChain(probes, clock=self.clock), clock=self.clock)

    def stop_jtop(self) -> None:
        self.jtop.alive = False

    def lose_the_gpu(self) -> None:
        self.nvml.lost = True

    def lose_files(self) -> None:
        for path in self.root.glob("sys/class/thermal/*/temp"):
            path.unlink()

    def unload_the_driver(self) -> None:
        (self.root / "sys/class").rename(self.root / "sys/gone")


@pytest.mark.parametrize(
    ("fault", "logged"),
    [
        (Sources.stop_jtop, "probe failed name=jtop"),
        (Sources.lose_the_gpu, "probe failed name=nvml"),
        (Sources.lose_files, "probe name=jetson tells no more of: temperatures_celsius"),
        (Sources.unload_the_driver, "probe name=jetson tells no more of: gpus, power_watts, "),
    ],
)
def test_a_source_that_goes_is_logged_once_and_the_agent_stays_ready(
    tmp_path, caplog, fault, logged
):
    sources = Sources(tmp_path)
    with running_agent(make_config(tmp_path)) as agent, httpx.Client(base_url=agent.url) as client:
        agent._sampler.stop()  # and in its place
        for reading in range(20):
            if reading == 3:
                fault(sources)
            agent._take_sample(sources.probe.read())
            sources.clock.advance(60.5)
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/telemetry").status_code == 200
        assert client.get("/metrics").status_code == 200
    warnings = [r.getMessage() for r in caplog.records if r.name == "edge.probes.sample"]
    assert [text.startswith(logged) for text in warnings] == [True]


@pytest.mark.parametrize("jump", [-40e6, -3600.0, 3600.0, 40e6])
def test_a_clock_that_jumps_is_logged_once_and_nothing_is_counted_by_it(jump, caplog):
    watched = Watched()
    clock, wall_clock = watched.clock, watched.wall_clock
    serving = watched.serving
    recorder = HistoryRecorder(serving, clock=clock, wall_clock=wall_clock)
    energy = RequestEnergy(serving, clock=clock)
    outcomes = serving.metrics.for_model("affine")
    for second in range(120):
        if second == 60:
            wall_clock.advance(jump)
        sample = Sample(
            rss_bytes=GIB,
            memory_total_bytes=8 * GIB,
            memory_available_bytes=4 * GIB,
            temperatures_celsius={"cpu": 50.0},
            energy_joules=10.0 * second,
        )
        outcomes.record_answer(queue_s=0, compute_s=0, total_s=0)
        recorder.take(sample)
        energy.take(sample)
        assert watched.take(sample) == []
    (said,) = changes(caplog)
    assert said == f"the time of day has jumped by {jump:+.0f} s"
    assert serving.joules_per_request == pytest.approx(10.0)
    rates = serving.history.report(HistoryQuery()).columns["requests_per_s"]
    assert len(rates) == 11
    assert set(rates[1:]) == {1.0}
