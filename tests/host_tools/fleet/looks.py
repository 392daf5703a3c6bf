"""What a poll saw, made up for tests."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from host_tools.fleet.answers import Facts
from host_tools.fleet.figures import FleetFigures, figures_in
from host_tools.fleet.history import PollHistory
from host_tools.fleet.inventory import Device
from host_tools.fleet.polling import DeviceStatus, State

BEGAN_S = 1_790_000_000.0


def poll(
    device: str = "line-1",
    *,
    time_s: float = BEGAN_S,
    state: State = "ok",
    reason: str | None = None,
    **facts: Any,
) -> DeviceStatus:
    """Return what was seen of a device; one that does not serve tells no facts."""
    has_facts = state in {"ok", "degraded", "not-ready"}
    told = {"agent": "0.9.0", "bundle": "camera 1.4.0", "uptime_s": time_s - BEGAN_S + 60, **facts}
    return DeviceStatus(
        device=device,
        url=f"http://{device}:8000",
        state=state,
        reason=reason,
        time_s=time_s,
        answer_ms=3.5 if has_facts else None,
        facts=Facts(**told) if has_facts else None,
    )


def summarised(
    polls: Iterable[DeviceStatus], devices: Sequence[Device], *, begin_s: float, end_s: float
) -> FleetFigures:
    """Return the figures of polls, by way of a history of them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fleet.sqlite"
        with PollHistory.open(path, now=lambda: BEGAN_S) as history:
            history.add(polls)
            return figures_in(history, devices, begin_s=begin_s, end_s=end_s)


def a_week(names: tuple[str, ...], *, step_s: float = 3600.0) -> Iterator[DeviceStatus]:
    """Yield the polls of a week: the second device drifts on the last day, the third goes away."""
    rng = random.Random(1)
    rounds = int(7 * 86400 / step_s)
    for number in range(rounds):
        time_s, is_last_day = BEGAN_S + number * step_s, number > rounds * 6 / 7
        for place, name in enumerate(names):
            if place == 2 and is_last_day:
                yield poll(name, time_s=time_s, state="unreachable", reason="connection refused")
                continue
            is_drifted = place == 1 and is_last_day
            yield poll(
                name,
                time_s=time_s,
                state="degraded" if is_drifted else "ok",
                reason="drift of detector" if is_drifted else None,
                troubles=("drift of detector",) if is_drifted else (),
                drifted=("detector",) if is_drifted else (),
                variants={"detector": "int8-trt"},
                p50_ms=8.0 + place + rng.random(),
                p95_ms=18.0 + place + rng.random(),
                requests=1000 * number,
                energy_joules=2500.0 * number,
                gpu_percent=40.0 + 10 * place,
                throttled=("sw-thermal",) if place == 0 and number % 4 == 0 else (),
            )
