"""jetson-stats, where its user asks for it: a service that reads what others may not.

The package is AGPL-3.0, so nothing imports it unless the configuration says `jtop`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.probes.sample import GpuSample, Sample


class JtopProbe:
    """Memory, GPU, rails, heat and power mode as jtop's service reports them.

    client: an object like jtop.jtop(), made by the first `read` unless given. Raises from `read`
    what jtop raises when its service is away.
    """

    name = "jtop"

    def __init__(self, client: Any | None = None) -> None:
        self._client = client
        self._is_open = False

    def read(self) -> Sample:
        """Return what the service said last."""
        if self._client is None:
            from jtop import jtop

            self._client = jtop()
        if not self._is_open:
            self._client.start()
            self._is_open = True
        if not self._client.ok():
            self.close()
            raise OSError("the service jtop.service stopped to answer")
        return _sample_from(self._client)

    def close(self) -> None:
        """Leave the service."""
        if self._client is not None and self._is_open:
            self._client.close()
        self._client, self._is_open = None, False


def _sample_from(client: Any) -> Sample:
    ram, swap = client.memory["RAM"], client.memory.get("SWAP") or {}
    rails = {
        name: rail["power"] / 1e3
        for name, rail in client.power["rail"].items()
        if rail.get("online", True)
    }
    zones = {
        name.lower(): float(zone["temp"])
        for name, zone in client.temperature.items()
        if zone.get("online", True) and zone["temp"] > -256
    }
    return Sample(
        memory_total_bytes=ram["tot"] << 10,
        swap_used_bytes=swap["used"] << 10 if "used" in swap else None,
        swap_total_bytes=swap["tot"] << 10 if "tot" in swap else None,
        temperatures_celsius=zones,
        rails_watts=rails,
        power_watts=client.power["tot"]["power"] / 1e3,
        power_mode=None if client.nvpmodel is None else str(client.nvpmodel),
        gpus=tuple(_gpu_sample(gpu, ram, zones) for gpu in client.gpu.values()),
    )


def _gpu_sample(
    gpu: Mapping[str, Any], ram: Mapping[str, int], zones: Mapping[str, float]
) -> GpuSample:
    load, clock = gpu["status"].get("load"), gpu.get("freq") or {}
    return GpuSample(
        memory="unified" if gpu.get("type") == "integrated" else "device",
        memory_used_bytes=ram["shared"] << 10,
        memory_total_bytes=ram["tot"] << 10,
        utilization_percent=None if load is None else float(load),
        clock_hz=clock["cur"] * 1000 if "cur" in clock else None,
        clock_max_hz=clock["max"] * 1000 if "max" in clock else None,
        temperature_celsius=zones.get("gpu"),
    )
