"""What watching costs: a reading of the machine, a look, a day of points on the page.

python -m tests.bench_telemetry
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from edge.agent import Agent
from edge.config import AgentConfig
from edge.history.history import INTERVAL_S, SIZE, Point
from edge.history.recorder import HistoryRecorder
from edge.probes.host import PsutilProbe
from edge.probes.jetson import JetsonProbe
from edge.probes.sample import Probe, ProbeChain
from edge.sampler import EnergyMeter, machine_probe
from tests.agents import make_config, running_agent
from tests.browser import Browser, found_browser
from tests.edge.probes.machine_trees import MACHINE_TREES

ROUNDS, LOOKS, FRAMES = 500, 300, 40
JETSON = "agx-orin-jetpack6"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_agent(make_config(Path(folder))) as agent:
        device = MACHINE_TREES[JETSON].write(Path(folder) / JETSON)
        probes: dict[str, Probe] = {
            "this machine": machine_probe(AgentConfig()),
            JETSON: EnergyMeter(ProbeChain([JetsonProbe(device), PsutilProbe()])),
        }
        for name, probe in probes.items():
            cpu_ms = _cpu_ms_of_reading(agent, probe)
            print(
                f"a reading, {name}: {cpu_ms:.3f} ms of CPU, {cpu_ms / 10:.3f} % of a core at 1 Hz"
            )
        with httpx.Client(base_url=agent.url) as client:
            for path in ("/telemetry", "/metrics"):
                _print(f"GET {path}", _cpu_ms(LOOKS, lambda p=path: client.get(p)))  # type: ignore[misc]
        _draw_a_day(agent)


def _cpu_ms_of_reading(agent: Agent, probe: Probe) -> float:
    """Return milliseconds of CPU that the sampler's thread takes for one reading, on average."""
    recorder = HistoryRecorder(agent.serving)
    probe.read()
    began = time.thread_time()
    for _ in range(ROUNDS):
        recorder.take(probe.read())
    return 1e3 * (time.thread_time() - began) / ROUNDS


def _cpu_ms(times: int, act: Callable[[], object]) -> list[float]:
    """Return milliseconds of CPU of this process, client and agent, for each time."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        act()
        taken.append(1e3 * (time.process_time() - began))
    return taken


def _draw_a_day(agent: Agent) -> None:
    executable = found_browser()
    if executable is None:
        sys.exit("no Chromium on this machine")
    rng = np.random.default_rng(0)
    for number in range(SIZE):
        values = {name: float(rng.uniform(1, 99)) for name in _columns()}
        agent.serving.history.add(1e9 + INTERVAL_S * number, Point(**values))
    with Browser(executable) as page:
        page.look(1440, 900)
        page.call("Performance.enable")
        page.open(f"{agent.url}/")
        page.evaluate("document.querySelector('.choice button:last-child').click()")
        page.wait_for("document.querySelector('#tile-power canvas')?.getAttribute('aria-label')")
        frames = [_frame(page) for _ in range(FRAMES)]
    for part in ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration"):
        _print(f"a frame, {part}", [frame[part] for frame in frames])
    _print("a frame, all of it", [sum(frame.values()) for frame in frames])


def _frame(page: Browser) -> dict[str, float]:
    """Draw the day once more and return the milliseconds of its parts."""
    before = _times(page)
    page.evaluate(
        "new Promise((done) => { dispatchEvent(new Event('resize'));"
        " requestAnimationFrame(() => requestAnimationFrame(done)); })"
    )
    return {name: 1e3 * (value - before[name]) for name, value in _times(page).items()}


def _times(page: Browser) -> dict[str, float]:
    wanted = {"ScriptDuration", "LayoutDuration", "RecalcStyleDuration"}
    metrics: list[dict[str, Any]] = page.call("Performance.getMetrics")["metrics"]
    return {one["name"]: one["value"] for one in metrics if one["name"] in wanted}


def _columns() -> list[str]:
    return [field.name for field in fields(Point)]


def _print(what: str, ms: list[float]) -> None:
    p50, p95 = np.percentile(ms, (50, 95))
    print(f"{what}: p50 {p50:.2f}, p95 {p95:.2f} ms, n = {len(ms)}")


if __name__ == "__main__":
    main()
