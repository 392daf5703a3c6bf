"""A Jetson's GPU, power, heat and clocks, read from the kernel's files; no jtop is needed.

Formats: devfreq and thermal class of Linux, Documentation/hwmon/ina3221, /etc/nvpmodel.conf of
Jetson Linux. The nodes of the GPU appear some time after boot, so what is not there yet is looked
for again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from edge.probes.sample import GpuSample, Sample, is_limit, zone_name
from edge.sysfs import number_of, text_of

# As devfreq names them: 17000000.gpu, 17000000.ga10b, 17000000.gv11b, 57000000.gpu, gpu-gpc-0.
_GPU = re.compile(r".*(gpu|ga10b|gv11b|gp10b).*")
_TEGRA = "nvidia,tegra"
_MONITORS = ("ina3221", "ina238")
# A rail that feeds the module as a whole; where there is none, the rails are parts of it.
_INPUT_RAILS = ("VDD_IN", "VIN", "POM_5V_IN")
_GPU_RAILS = ("GPU", "VDD_GPU")
_NOT_CONNECTED = "NC"
# "active" is a fan's.
_SLOWING_TRIPS = ("passive", "hot", "critical")
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_CHOSEN_MODE = re.compile(r"pmode:(\d+)")


class JetsonProbe:
    """Utilization, clocks, unified memory, power rails, thermal zones and power mode of a Jetson.

    root: the file system to read, another one in tests.
    """

    name = "jetson"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._gpu: Path | None = None
        self._limits: dict[str, float | None] = {}  # they do not change
        self._over_currents: dict[Path, int] = {}

    def read(self) -> Sample:
        """Return what the files say now; what is missing or unreadable is None."""
        if _TEGRA not in (text_of(self._root / "proc/device-tree/compatible") or ""):
            return Sample()
        zones = self._temperatures_celsius()
        rails = dict(self._rails_watts())
        gpu = self._gpu_sample(zones, rails)
        return Sample(
            temperatures_celsius=zones,
            temperature_limits_celsius={
                zone: limit for zone, limit in self._limits.items() if limit is not None
            },
            rails_watts=rails,
            power_watts=_total_watts(rails),
            power_mode=self._power_mode(),
            gpus=() if gpu is None else (gpu,),
        )

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _gpu_sample(
        self, zones: Mapping[str, float], rails: Mapping[str, float]
    ) -> GpuSample | None:
        node = self._gpu_node()
        if node is None:
            return None
        permille = number_of(node / "device/load")
        memory = self._memory_bytes()
        return GpuSample(
            memory="unified",
            memory_used_bytes=memory.get("NvMapMemUsed"),
            memory_total_bytes=memory.get("MemTotal"),
            utilization_percent=None if permille is None else permille / 10.0,
            clock_hz=number_of(node / "cur_freq"),
            clock_max_hz=number_of(node / "max_freq"),
            temperature_celsius=zones.get("gpu"),
            temperature_limit_celsius=self._limits.get("gpu"),
            power_watts=next((rails[rail] for rail in _GPU_RAILS if rail in rails), None),
            throttle_reasons=self._over_current_reasons(),
        )

    def _gpu_node(self) -> Path | None:
        if self._gpu is None or not self._gpu.exists():
            nodes = sorted(self._root.glob("sys/class/devfreq/*"))
            self._gpu = next((node for node in nodes if _GPU.fullmatch(node.name)), None)
        return self._gpu

    def _memory_bytes(self) -> dict[str, int]:
        text = text_of(self._root / "proc/meminfo") or ""
        pairs = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
        return {name: int(kibibytes) << 10 for name, kibibytes in pairs}

    def _temperatures_celsius(self) -> dict[str, float]:
        zones = {}
        for zone in sorted(self._root.glob("sys/class/thermal/thermal_zone*")):
            kind, millis = text_of(zone / "type"), number_of(zone / "temp")
            # The zone of a block that is switched off cannot be read, or says -256.
            if kind and millis is not None and millis > -256_000:
                name = zone_name(kind)
                zones[name] = millis / 1000.0
                if name not in self._limits:
                    self._limits[name] = _limit_celsius(zone)
        return zones

    def _rails_watts(self) -> Iterator[tuple[str, float]]:
        for monitor in self._monitors(_MONITORS):
            for label in sorted(monitor.glob("in[0-9]_label")):
                rail, channel = (text_of(label) or "").strip(), label.name[2]
                watts = _channel_watts(monitor, channel)
                if rail and rail != _NOT_CONNECTED and watts is not None:
                    yield rail, watts

    def _over_current_reasons(self) -> tuple[str, ...] | None:
        counters = [
            path
            for monitor in self._monitors(("soctherm_oc",))
            for path in sorted(monitor.glob("oc[0-9]_event_cnt"))
        ]
        counts = {path: number_of(path) for path in counters}
        known = {path: count for path, count in counts.items() if count is not None}
        before, self._over_currents = self._over_currents, known
        rose = [path for path, count in known.items() if count > before.get(path, count)]
        return tuple(f"over-current-{path.name[2]}" for path in rose) if known else None

    def _monitors(self, names: tuple[str, ...]) -> Iterator[Path]:
        for monitor in sorted(self._root.glob("sys/class/hwmon/hwmon*")):
            if (text_of(monitor / "name") or "").strip() in names:
                yield monitor

    def _power_mode(self) -> str | None:
        chosen = _CHOSEN_MODE.search(text_of(self._root / "var/lib/nvpmodel/status") or "")
        if chosen is None:
            return None
        number = int(chosen[1])
        text = text_of(self._root / "etc/nvpmodel.conf") or ""
        names: dict[int, str] = {int(mode): name for mode, name in _MODE.findall(text)}
        return names.get(number, f"mode {number}")


def _limit_celsius(zone: Path) -> float | None:
    """Return the lowest trip point at which the kernel slows the machine down, or stops it."""
    kinds = ((text_of(path), path) for path in zone.glob("trip_point_*_type"))
    slowing = (path for kind, path in kinds if kind in _SLOWING_TRIPS)
    millis = (number_of(path.with_name(path.name.replace("_type", "_temp"))) for path in slowing)
    found = (value / 1000.0 for value in millis if value is not None)
    return min(filter(is_limit, found), default=None)


def _channel_watts(monitor: Path, channel: str) -> float | None:
    microwatts = number_of(monitor / f"power{channel}_input")
    if microwatts is not None:
        return microwatts / 1e6
    millivolts = number_of(monitor / f"in{channel}_input")
    milliamperes = number_of(monitor / f"curr{channel}_input")
    if millivolts is None or milliamperes is None:
        return None
    return millivolts * milliamperes / 1e6


def _total_watts(rails: Mapping[str, float]) -> float | None:
    whole = next((rails[rail] for rail in _INPUT_RAILS if rail in rails), None)
    return sum(rails.values()) if whole is None and rails else whole
