"""Telemetry sources: merging, back-off, and psutil against /proc."""

import logging
from pathlib import Path

from edge.probes.host import PsutilProbe
from edge.probes.sample import ProbeChain, Sample, merge_samples


class ScriptedProbe:
    """Reads the next entry of a script; an exception in it is raised."""

    def __init__(self, name, *script):
        self.name = name
        self.script = list(script)
        self.closed = 0

    def read(self):
        entry = self.script.pop(0)
        if isinstance(entry, Exception):
            raise entry
        return entry

    def close(self):
        self.closed += 1


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_the_first_probe_that_can_tell_wins_per_field_and_per_zone():
    merged = merge_samples(
        [
            Sample(rss_bytes=0, temperatures_celsius={"gpu": 50.0}),
            Sample(rss_bytes=9, cpu_percent=5.0, temperatures_celsius={"gpu": 1.0, "cpu": 40.0}),
        ]
    )
    assert merged == Sample(
        rss_bytes=0, cpu_percent=5.0, temperatures_celsius={"gpu": 50.0, "cpu": 40.0}
    )


def test_no_probe_gives_an_empty_sample():
    assert ProbeChain([]).read() == Sample()


def test_a_failing_probe_is_left_out_for_the_back_off_and_logged_at_the_change(caplog):
    clock = Clock()
    bad = ScriptedProbe("bad", OSError("gone"), OSError("still"), Sample(rss_bytes=1))
    chain = ProbeChain(
        [bad, ScriptedProbe("good", *[Sample(rss_bytes=2)] * 5)], clock=clock, backoff_s=60
    )
    seen = []
    with caplog.at_level(logging.INFO):
        for now in (0, 59, 60, 119, 120):
            clock.now = float(now)
            seen.append(chain.read().rss_bytes)
    assert seen == [2, 2, 2, 2, 1]
    assert bad.script == []
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_closing_the_chain_closes_every_probe():
    probes = [ScriptedProbe("a"), ScriptedProbe("b")]
    ProbeChain(probes).close()
    assert [probe.closed for probe in probes] == [1, 1]


def test_psutil_agrees_with_the_kernel():
    kibibytes = dict(
        line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines() if line
    )
    sample = PsutilProbe().read()
    assert sample.memory_total_bytes == int(kibibytes["MemTotal:"]) * 1024
    assert 0 < sample.memory_available_bytes <= sample.memory_total_bytes
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert abs(sample.rss_bytes - resident_pages * 4096) < 64 << 20


def test_psutil_cannot_tell_the_load_before_the_second_read():
    probe = PsutilProbe()
    assert probe.read().cpu_percent is None
    total = sum(number for number in range(2_000_000))
    second = probe.read().cpu_percent
    assert total > 0
    assert second is None or 0.0 <= second <= 100.0
