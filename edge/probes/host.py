"""The portable source of telemetry: psutil."""

from __future__ import annotations

from typing import Any

import psutil

from edge.probes.sample import Sample, is_limit, zone_name


class PsutilProbe:
    """Memory, processor load and the kernel's thermal sensors, through psutil."""

    name = "psutil"

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._cpu_times: Any = None  # psutil's named tuple, its fields vary by kernel

    def read(self) -> Sample:
        """Return a full sample; cpu_percent covers the time since the previous read."""
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        zones = _zones()
        return Sample(
            rss_bytes=self._process.memory_info().rss,
            memory_available_bytes=memory.available,
            memory_total_bytes=memory.total,
            swap_used_bytes=swap.used,
            swap_total_bytes=swap.total,
            cpu_percent=self._cpu_percent(),
            temperatures_celsius={zone: float(read.current) for zone, read in zones.items()},
            temperature_limits_celsius={
                zone: float(read.high) for zone, read in zones.items() if is_limit(read.high or 0.0)
            },
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


def _busy_s(times: Any) -> float:
    return float(_total_s(times) - times.idle - getattr(times, "iowait", 0.0))


def _total_s(times: Any) -> float:
    # Linux counts guest time in user time as well.
    return float(sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))


def _zones() -> dict[str, Any]:
    zones: dict[str, Any] = {}
    for chip, sensors in psutil.sensors_temperatures().items():
        for index, sensor in enumerate(sensors):
            # Of a Jetson's zones each is a chip, with one sensor.
            bare = zone_name(chip)
            zone = f"{chip}/{sensor.label or index}" if bare == chip.lower() else bare
            zones[f"{zone}-{index}" if zone in zones else zone] = sensor
    return zones
