from __future__ import annotations

from pathlib import Path

import numpy as np

from host_tools.measure import MAX_RUNS, MIN_RUNS, cpu_name, measure


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedSession:
    """Takes the given seconds per run, in turn; the clock is driven, nothing waits."""

    def __init__(self, clock: Clock, seconds: list[float]) -> None:
        self.clock, self.seconds, self.runs = clock, seconds, 0
        self.inputs = self.outputs = ()

    def run(self, feeds: object) -> dict[str, np.ndarray]:
        self.clock.now += self.seconds[min(self.runs, len(self.seconds) - 1)]
        self.runs += 1
        return {}

    def reset_state(self) -> None: ...
    def close(self) -> None: ...


FEEDS = {"x": np.zeros((3, 2))}


def test_the_first_tenth_of_the_runs_does_not_count() -> None:
    clock = Clock()
    session = TimedSession(clock, [1e-2] * (MAX_RUNS // 10) + [1e-3])
    result = measure({"s": session}, FEEDS, threads=1, runtime="r", clock=clock)["s"]
    assert (result.p50_ms, result.p99_ms) == (1.0, 1.0)
    assert (result.runs, result.batch) == (MAX_RUNS - MAX_RUNS // 10, 3)


def test_sessions_take_turns_and_slow_models_get_fewer_runs() -> None:
    clock = Clock()
    sessions = {"slow": TimedSession(clock, [2.0]), "fast": TimedSession(clock, [1.0])}
    result = measure(sessions, FEEDS, threads=1, runtime="r", clock=clock)
    assert sessions["slow"].runs == sessions["fast"].runs == MIN_RUNS
    assert (result["slow"].p50_ms, result["fast"].p50_ms) == (2000.0, 1000.0)


def test_percentiles_are_numpys() -> None:
    clock = Clock()
    seconds = np.random.default_rng(0).exponential(1e-3, MAX_RUNS).tolist()
    result = measure({"s": TimedSession(clock, seconds)}, FEEDS, threads=1, runtime="r",
                     clock=clock)["s"]  # fmt: skip
    counted = np.array(seconds[MAX_RUNS // 10 :]) * 1e3
    assert abs(result.p99_ms - np.percentile(counted, 99)) < 1e-3


def test_the_cpu_is_named_from_cpuinfo(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU 3000\n")
    assert cpu_name(tmp_path / "cpuinfo").startswith("Some CPU 3000 (")
    assert "(" not in cpu_name(tmp_path / "missing")
