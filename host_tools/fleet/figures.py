"""What a history of polls says of a fleet: figures over time, and for each device. Pure."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from host_tools.fleet.answers import Facts
from host_tools.fleet.inventory import Device
from host_tools.fleet.polling import DeviceStatus, State

BINS = 96
_SLACK_S = 2.0  # between the clock here and what an agent says of its uptime

Series = tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFigures:
    """One device. state is None if it was never asked. Shares are 0 to 1.

    served: share of the polls in which it was ok or degraded. p50_ms, p95_ms: medians over the
    polls; p95_over_time: means of each bin. joules_per_request: of the module, idle time included.
    """

    device: str
    groups: tuple[str, ...]
    state: State | None
    reason: str | None
    facts: Facts | None
    polls: int
    served: float | None
    p50_ms: float | None
    p95_ms: float | None
    gpu_percent: float | None
    joules_per_request: float | None
    throttled: float | None
    p95_over_time: Series


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFigures:
    """A fleet between two Unix times; each Series has BINS values, None where nobody could tell.

    over_time: "served" and "throttled" are shares of polls, "p50_ms" and "p95_ms" those of the
    median device, "slow_p95_ms" of the device that a tenth of all are slower than, "gpu_percent" a
    mean, "joules_per_request" of all devices together. bundles, agents, variants, states: how many
    devices have each now.
    """

    begin_s: float
    end_s: float
    polls: int
    over_time: dict[str, Series]
    states: dict[str, int]
    bundles: dict[str, int]
    agents: dict[str, int]
    variants: dict[str, int]
    drifted: dict[str, tuple[str, ...]]
    alarms: dict[str, tuple[str, ...]]
    joules_per_request: float | None
    devices: tuple[DeviceFigures, ...]


@dataclass(slots=True)
class _Shares:
    """How often something was so, among how many times that could tell."""

    yes: float = 0.0
    of: float = 0.0

    def add(self, value: float, of: float = 1.0) -> None:
        self.yes += value
        self.of += of

    @property
    def ratio(self) -> float | None:
        return self.yes / self.of if self.of else None


@dataclass(slots=True)
class _Gathered:
    """What is summed up of a bin, or of a device."""

    served: _Shares = field(default_factory=_Shares)
    throttled: _Shares = field(default_factory=_Shares)
    gpu: _Shares = field(default_factory=_Shares)
    energy: _Shares = field(default_factory=_Shares)
    p50_ms: array[float] = field(default_factory=lambda: array("d"))
    p95_ms: array[float] = field(default_factory=lambda: array("d"))

    def add(self, status: DeviceStatus, energy: tuple[float, int] | None) -> None:
        """Add one poll; energy: joules since the one before, and requests."""
        self.served.add(float(status.state in {"ok", "degraded"}))
        if energy is not None:
            self.energy.add(*energy)
        facts = status.facts
        if facts is None:
            return
        if facts.throttled is not None:
            self.throttled.add(float(bool(facts.throttled)))
        if facts.gpu_percent is not None:
            self.gpu.add(facts.gpu_percent)
        if facts.p50_ms is not None:
            self.p50_ms.append(facts.p50_ms)
        if facts.p95_ms is not None:
            self.p95_ms.append(facts.p95_ms)


@dataclass(slots=True)
class _Seen:
    """One device while the polls go by."""

    last: DeviceStatus | None = None
    told: DeviceStatus | None = None  # the last one with facts
    polls: int = 0
    all: _Gathered = field(default_factory=_Gathered)
    p95: list[_Shares] = field(default_factory=lambda: [_Shares() for _ in range(BINS)])


def summarised(
    polls: Iterable[DeviceStatus], devices: Sequence[Device], *, begin_s: float, end_s: float
) -> FleetFigures:
    """Return the figures of these devices from polls, oldest first; time begins with the first."""
    seen = {device.name: _Seen() for device in devices}
    bins = [_Gathered() for _ in range(BINS)]
    count, first_s = 0, begin_s
    for poll in polls:
        device = seen.get(poll.device)
        if device is None or poll.time_s > end_s:
            continue
        if count == 0:
            first_s = poll.time_s
        count += 1
        place = min(BINS - 1, int((poll.time_s - first_s) / max(end_s - first_s, 1.0) * BINS))
        energy = _energy_between(device.told, poll)
        for gathered in (bins[place], device.all):
            gathered.add(poll, energy)
        if poll.facts is not None:
            device.told = poll
            if poll.facts.p95_ms is not None:
                device.p95[place].add(poll.facts.p95_ms)
        device.last = poll
        device.polls += 1
    lasts = [one.last for one in seen.values() if one.last is not None]
    facts = [(status.device, status.facts) for status in lasts if status.facts is not None]
    total = _Shares()
    for one in bins:
        total.add(one.energy.yes, one.energy.of)
    return FleetFigures(
        begin_s=first_s,
        end_s=end_s,
        polls=count,
        over_time=_over_time(bins),
        states=_counted(status.state for status in lasts),
        bundles=_counted(one.bundle for _, one in facts),
        agents=_counted(one.agent for _, one in facts),
        variants=_counted(f"{m} {v}" for _, one in facts for m, v in one.variants.items()),
        drifted={name: one.drifted for name, one in facts if one.drifted},
        alarms={name: one.alarms for name, one in facts if one.alarms},
        joules_per_request=total.ratio,
        devices=tuple(_figures(device, seen[device.name]) for device in devices),
    )


def _energy_between(then: DeviceStatus | None, now: DeviceStatus) -> tuple[float, int] | None:
    """Return joules and answered requests between two polls; None if the agent began anew."""
    if then is None or then.facts is None or now.facts is None:
        return None
    old, new = then.facts, now.facts
    if old.energy_joules is None or new.energy_joules is None or new.uptime_s is None:
        return None
    if old.requests is None or new.requests is None:
        return None
    # Both are counted since the agent began, and might have passed what they were.
    if new.uptime_s + _SLACK_S < now.time_s - then.time_s:
        return None
    joules, requests = new.energy_joules - old.energy_joules, new.requests - old.requests
    return None if joules < 0 or requests < 0 else (joules, requests)


def _figures(device: Device, seen: _Seen) -> DeviceFigures:
    gathered, last = seen.all, seen.last
    return DeviceFigures(
        device=device.name,
        groups=device.groups,
        state=None if last is None else last.state,
        reason=None if last is None else last.reason,
        facts=None if seen.told is None else seen.told.facts,
        polls=seen.polls,
        served=gathered.served.ratio,
        p50_ms=_median(gathered.p50_ms),
        p95_ms=_median(gathered.p95_ms),
        gpu_percent=gathered.gpu.ratio,
        joules_per_request=gathered.energy.ratio,
        throttled=gathered.throttled.ratio,
        p95_over_time=tuple(share.ratio for share in seen.p95),
    )


def _over_time(bins: Sequence[_Gathered]) -> dict[str, Series]:
    kinds: dict[str, Callable[[_Gathered], float | None]] = {
        "served": lambda one: one.served.ratio,
        "throttled": lambda one: one.throttled.ratio,
        "p50_ms": lambda one: _median(one.p50_ms),
        "p95_ms": lambda one: _median(one.p95_ms),
        "slow_p95_ms": lambda one: _high(one.p95_ms),
        "gpu_percent": lambda one: one.gpu.ratio,
        "joules_per_request": lambda one: one.energy.ratio,
    }
    return {name: tuple(map(kind, bins)) for name, kind in kinds.items()}


def _counted(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value for value in values if value is not None).most_common())


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _high(values: Sequence[float]) -> float | None:
    """Return the smallest value with at least nine tenths below or equal."""
    return sorted(values)[-(-len(values) * 9 // 10) - 1] if values else None
