"""What the machine says of itself: one seam for every source of telemetry, and the portable one.

In a Sample None means that the source cannot tell; it never means zero.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import psutil

logger = logging.getLogger(__name__)

BACKOFF_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One reading of the machine; rss_bytes is this process's, the rest is system-wide.

    temperatures_celsius: by zone; empty when there is no sensor.
    """

    rss_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    cpu_percent: float | None = None
    temperatures_celsius: Mapping[str, float] = field(default_factory=dict)


class Probe(Protocol):
    """A source of telemetry, read from one thread."""

    @property
    def name(self) -> str:
        """What logs and reports call it."""

    def read(self) -> Sample:
        """Return what this source can tell now; any exception means that it failed."""

    def close(self) -> None:
        """Release the source; calling it twice does nothing."""


class PsutilProbe:
    """Memory, processor load and the kernel's thermal sensors, through psutil."""

    name = "psutil"

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._cpu_times: Any = None  # psutil's named tuple, its fields vary by kernel

    def read(self) -> Sample:
        """Return a full sample; cpu_percent covers the time since the previous read."""
        memory = psutil.virtual_memory()
        return Sample(
            rss_bytes=self._process.memory_info().rss,
            memory_available_bytes=memory.available,
            memory_total_bytes=memory.total,
            swap_used_bytes=psutil.swap_memory().used,
            cpu_percent=self._cpu_percent(),
            temperatures_celsius=_temperatures_celsius(),
        )

    def close(self) -> None:
        """Do nothing: psutil keeps nothing open."""

    def _cpu_percent(self) -> float | None:
        # psutil.cpu_percent() remembers the last call per thread; this remembers it per probe.
        before, self._cpu_times = self._cpu_times, psutil.cpu_times()
        if before is None:
            return None
        busy, total = (_busy_s(self._cpu_times) - _busy_s(before)), _total_s(self._cpu_times)
        elapsed = total - _total_s(before)
        return min(100.0, max(0.0, 100.0 * busy / elapsed)) if elapsed > 0 else None


class ProbeChain:
    """Several probes read as one: for each field the first probe that can tell wins.

    A probe that fails is left out for backoff_s and logged at the change only, so telemetry can
    never stop the agent. Itself a Probe.
    """

    name = "chain"

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        clock: Callable[[], float] = time.monotonic,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self._probes = tuple(probes)
        self._clock = clock
        self._backoff_s = backoff_s
        self._retry_at: dict[str, float] = {}

    def read(self) -> Sample:
        """Return the merged sample of every probe that answers; it is empty if none does."""
        samples = [self._read_one(probe) for probe in self._probes]
        return merge_samples([sample for sample in samples if sample is not None])

    def close(self) -> None:
        """Close every probe."""
        for probe in self._probes:
            probe.close()

    def _read_one(self, probe: Probe) -> Sample | None:
        if self._clock() < self._retry_at.get(probe.name, float("-inf")):
            return None
        try:
            sample = probe.read()
        except Exception as error:  # noqa: BLE001 - supervised: a driver may fail in any way
            if probe.name not in self._retry_at:
                logger.warning("probe failed name=%s: %s", probe.name, error)
            self._retry_at[probe.name] = self._clock() + self._backoff_s
            return None
        if self._retry_at.pop(probe.name, None) is not None:
            logger.info("probe works again name=%s", probe.name)
        return sample


def merge_samples(samples: Sequence[Sample]) -> Sample:
    """Return one sample: per field, and per thermal zone, the first that can tell."""
    merged: dict[str, Any] = {}
    zones: dict[str, float] = {}
    for sample in reversed(samples):
        zones |= sample.temperatures_celsius
        for key in fields(Sample):
            value = getattr(sample, key.name)
            if value is not None:
                merged[key.name] = value
    merged["temperatures_celsius"] = zones
    return Sample(**merged)


def _busy_s(times: Any) -> float:
    return float(_total_s(times) - times.idle - getattr(times, "iowait", 0.0))


def _total_s(times: Any) -> float:
    # Linux counts guest time in user time as well.
    return float(sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))


def _temperatures_celsius() -> dict[str, float]:
    zones: dict[str, float] = {}
    for chip, sensors in psutil.sensors_temperatures().items():
        for index, sensor in enumerate(sensors):
            zone = f"{chip}/{sensor.label or index}"
            zones[f"{zone}-{index}" if zone in zones else zone] = float(sensor.current)
    return zones
