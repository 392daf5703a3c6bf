"""What a history of polls says of a fleet: figures over time, and for each device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from host_tools.fleet.answers import Facts
from host_tools.fleet.history import PollHistory
from host_tools.fleet.inventory import Device
from host_tools.fleet.polling import DeviceStatus, State
from host_tools.fleet.readings import Column, Readings

BINS = 96
_SLACK_S = 2.0  # between the clock here and what an agent says of its uptime

Series = tuple[float | None, ...]
_Places: TypeAlias = NDArray[np.int64]


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


class _Shares:
    """How often something was so, among how many times that could tell, for each bin."""

    def __init__(self) -> None:
        self.yes, self.of = np.zeros(BINS), np.zeros(BINS)

    def add(self, bins: _Places, yes: Column, of: Column | None = None) -> None:
        """Add a value for each place; NaN could not tell. of: ones if it is not given."""
        known = ~np.isnan(yes)
        of = np.ones(len(yes)) if of is None else of
        self.yes += np.bincount(bins[known], yes[known], BINS)
        self.of += np.bincount(bins[known], of[known], BINS)

    @property
    def series(self) -> Series:
        return tuple(
            float(yes / of) if of else None for yes, of in zip(self.yes, self.of, strict=True)
        )

    @property
    def ratio(self) -> float | None:
        return float(self.yes.sum() / self.of.sum()) if self.of.any() else None


@dataclass(slots=True)
class _Gathered:
    """What is summed up of all devices, or of one."""

    served: _Shares = field(default_factory=_Shares)
    throttled: _Shares = field(default_factory=_Shares)
    gpu: _Shares = field(default_factory=_Shares)
    energy: _Shares = field(default_factory=_Shares)
    bins: list[_Places] = field(default_factory=list)
    p50_ms: list[Column] = field(default_factory=list)
    p95_ms: list[Column] = field(default_factory=list)

    def add(self, bins: _Places, readings: Readings, energy: _Energy) -> None:
        """Add the readings of a device, each of which is in a bin."""
        self.served.add(bins, readings.served)
        self.throttled.add(bins, readings.throttled)
        self.gpu.add(bins, readings.gpu_percent)
        self.energy.add(bins[energy.places], energy.joules, energy.requests)
        self.bins.append(bins)
        self.p50_ms.append(readings.p50_ms)
        self.p95_ms.append(readings.p95_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Energy:
    """Joules and answered requests between polls. places: of the later ones among all."""

    places: _Places
    joules: Column
    requests: Column


def figures_in(
    history: PollHistory, devices: Sequence[Device], *, begin_s: float, end_s: float
) -> FleetFigures:
    """Return the figures of these devices in a history; time begins with their first poll.

    Raises HistoryError.
    """
    firsts = [history.first_s(device.name, since_s=begin_s) for device in devices]
    first_s = min((one for one in firsts if one is not None and one <= end_s), default=begin_s)
    gathered, found = _Gathered(), list[DeviceFigures]()
    lasts: list[DeviceStatus] = []
    for device in devices:
        readings = history.readings(device.name, since_s=begin_s, until_s=end_s)
        share = (readings.time_s - first_s) / max(end_s - first_s, 1.0)
        bins = np.minimum(BINS - 1, (share * BINS).astype(np.int64))
        energy, own = _energy_in(readings), _Gathered()
        for one in (gathered, own):
            one.add(bins, readings, energy)
        last = history.last(device.name, since_s=begin_s, until_s=end_s)
        told = history.last(device.name, since_s=begin_s, until_s=end_s, is_told=True)
        lasts += [] if last is None else [last]
        found.append(_figures(device, own, bins, readings, last, told))
    facts = [(status.device, status.facts) for status in lasts if status.facts is not None]
    return FleetFigures(
        begin_s=first_s,
        end_s=end_s,
        polls=sum(device.polls for device in found),
        over_time=_over_time(gathered),
        states=_counted(status.state for status in lasts),
        bundles=_counted(one.bundle for _, one in facts),
        agents=_counted(one.agent for _, one in facts),
        variants=_counted(f"{m} {v}" for _, one in facts for m, v in one.variants.items()),
        drifted={name: one.drifted for name, one in facts if one.drifted},
        alarms={name: one.alarms for name, one in facts if one.alarms},
        joules_per_request=gathered.energy.ratio,
        devices=tuple(found),
    )


def _energy_in(readings: Readings) -> _Energy:
    """Return what was used between each report and the one before; none where an agent began anew.

    Both are counted since the agent began, and might then have passed what they were.
    """
    told = np.flatnonzero(readings.told)
    joules, requests = np.diff(readings.energy_joules[told]), np.diff(readings.requests[told])
    is_one_run = readings.uptime_s[told][1:] + _SLACK_S >= np.diff(readings.time_s[told])
    fits = is_one_run & (joules >= 0) & (requests >= 0)  # NaN does not
    return _Energy(places=told[1:][fits], joules=joules[fits], requests=requests[fits])


def _figures(
    device: Device,
    own: _Gathered,
    bins: _Places,
    readings: Readings,
    last: DeviceStatus | None,
    told: DeviceStatus | None,
) -> DeviceFigures:
    p95 = _Shares()
    p95.add(bins, readings.p95_ms)
    return DeviceFigures(
        device=device.name,
        groups=device.groups,
        state=None if last is None else last.state,
        reason=None if last is None else last.reason,
        facts=None if told is None else told.facts,
        polls=len(readings.time_s),
        served=own.served.ratio,
        p50_ms=_median(_known(readings.p50_ms)),
        p95_ms=_median(_known(readings.p95_ms)),
        gpu_percent=own.gpu.ratio,
        joules_per_request=own.energy.ratio,
        throttled=own.throttled.ratio,
        p95_over_time=p95.series,
    )


def _over_time(gathered: _Gathered) -> dict[str, Series]:
    p50, p95 = _by_bin(gathered, gathered.p50_ms), _by_bin(gathered, gathered.p95_ms)
    return {
        "served": gathered.served.series,
        "throttled": gathered.throttled.series,
        "p50_ms": tuple(map(_median, p50)),
        "p95_ms": tuple(map(_median, p95)),
        "slow_p95_ms": tuple(map(_high, p95)),
        "gpu_percent": gathered.gpu.series,
        "joules_per_request": gathered.energy.series,
    }


def _by_bin(gathered: _Gathered, columns: Sequence[Column]) -> list[Column]:
    """Return the known values of all devices in each bin, sorted."""
    bins, values = np.concatenate(gathered.bins), np.concatenate(columns)
    known = ~np.isnan(values)
    bins, values = bins[known], values[known]
    order = np.lexsort((values, bins))
    return np.split(values[order], np.searchsorted(bins[order], range(1, BINS)))


def _counted(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value for value in values if value is not None).most_common())


def _known(column: Column) -> Column:
    return column[~np.isnan(column)]


def _median(values: Column) -> float | None:
    return float(np.median(values)) if len(values) else None


def _high(values: Column) -> float | None:
    """Return the smallest of sorted values with at least nine tenths below or equal."""
    return float(values[-(-len(values) * 9 // 10) - 1]) if len(values) else None
