"""The thread that reads the machine, and the energy that it adds up."""

import threading
from dataclasses import replace

import pytest

from edge.config import AgentConfig
from edge.probes.jtop import JtopProbe
from edge.probes.sample import Sample
from edge.sampler import EnergyMeter, Sampler, machine_probe

DEADLINE_S = 30.0


class Powered:
    """A probe that reads one power after the other."""

    name = "powered"

    def __init__(self, *watts):
        self.watts = list(watts)
        self.closed = threading.Event()
        self.threads = set()

    def read(self):
        self.threads.add(threading.current_thread().name)
        return Sample(power_watts=self.watts.pop(0) if self.watts else None)

    def close(self):
        self.closed.set()


def test_energy_is_the_area_below_the_power():
    times = iter([0.0, 1.0, 3.0])
    meter = EnergyMeter(Powered(10.0, 20.0, 0.0), clock=lambda: next(times))
    # (10 + 20) / 2 * 1 s, and (20 + 0) / 2 * 2 s more.
    assert [meter.read().energy_joules for _ in range(3)] == [0.0, 15.0, 35.0]


def test_a_gap_in_the_readings_adds_no_energy():
    times = iter([0.0, 1.0, 100.0, 101.0])
    meter = EnergyMeter(Powered(10.0, None, 10.0, 10.0), clock=lambda: next(times))
    assert [meter.read().energy_joules for _ in range(4)] == [0.0, None, 0.0, 10.0]


def test_samples_come_from_a_thread_of_their_own_until_the_stop():
    probe, taken, seen = Powered(1.0, 2.0), [], threading.Event()

    def take(sample):
        taken.append(sample.power_watts)
        if len(taken) == 2:
            seen.set()

    sampler = Sampler(probe, take, interval_s=0.0)
    sampler.start()
    assert seen.wait(DEADLINE_S)
    sampler.stop()
    assert taken[:2] == [1.0, 2.0]
    assert probe.threads == {"sampler"}
    assert probe.closed.is_set()


def test_a_reading_that_fails_ends_nothing_and_is_logged_once(caplog):
    taken, seen = [], threading.Event()

    def take(sample):
        taken.append(sample.power_watts)
        if len(taken) == 4:
            seen.set()
        if len(taken) < 4:
            raise RuntimeError("a bug in what is done with it")

    sampler = Sampler(Powered(1.0, 2.0, 3.0, 4.0), take, interval_s=0.0)
    sampler.start()
    assert seen.wait(DEADLINE_S)
    sampler.stop()
    assert taken[:4] == [1.0, 2.0, 3.0, 4.0]
    assert [record.getMessage().count("a bug") for record in caplog.records] == [1]


def test_a_sampler_that_never_began_can_be_stopped():
    Sampler(Powered(), lambda sample: None).stop()


def test_this_machine_is_read_and_jtop_only_where_it_is_asked_for(monkeypatch):
    def refuse(self):
        pytest.fail("jtop was asked")

    monkeypatch.setattr(JtopProbe, "read", refuse)
    probe = machine_probe(replace(AgentConfig(), jtop=False))
    sample = probe.read()
    probe.close()
    assert sample.rss_bytes is not None
    assert sample.memory_total_bytes is not None
