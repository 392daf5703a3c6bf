"""NVIDIA's management library: what a desktop card, and a newer Jetson in part, say of themselves.

Every value is asked for by itself: an Orin lists its GPU here and answers hardly anything.
"""

from __future__ import annotations

import os
from typing import Any

from edge.probes.sample import GpuSample, Sample

# Bits of nvmlClocksEventReasons that hold the clocks down, but idleness and settings of a user.
_THROTTLE_REASONS = {
    0x04: "power-cap",
    0x08: "hardware-slowdown",
    0x20: "thermal",
    0x40: "hardware-thermal",
    0x80: "power-brake",
}
_UNIFIED_NAMES = ("nvgpu", "Thor")
# Its counter of energy took 3.7 of the 5.5 ms of a reading on an H200, the highest clock 1.4.
_ENERGY_EVERY = 5


class NvmlProbe:
    """Utilization, memory, power, energy, heat, clocks and throttling of every GPU, through NVML.

    nvml: the module to ask, pynvml unless given. It is opened by the first `read`: its state does
    not survive a fork. Raises from `read` what NVML raises for a GPU that is lost; the next one
    opens NVML again.
    """

    name = "nvml"

    def __init__(self, nvml: Any | None = None) -> None:
        self._nvml = nvml
        self._is_open = False
        self._gpus: list[_Gpu] = []

    def read(self) -> Sample:
        """Return one entry per GPU; an empty sample without the package or the library."""
        nvml = self._opened()
        if nvml is None:
            return Sample()
        try:
            count = int(nvml.nvmlDeviceGetCount())
            if count != len(self._gpus):
                handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]
                self._gpus = [_Gpu(nvml, handle) for handle in handles]
            return Sample(gpus=tuple(gpu.read() for gpu in self._gpus))
        except nvml.NVMLError:
            self.close()
            raise

    def close(self) -> None:
        """Release NVML."""
        self._gpus = []
        if self._is_open and self._nvml is not None:
            self._is_open = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                return

    def _opened(self) -> Any | None:
        if self._nvml is None:
            try:
                import pynvml
            except ImportError:
                return None
            self._nvml = pynvml
        if not self._is_open:
            try:
                self._nvml.nvmlInit()
            except self._nvml.NVMLError as error:
                if error.value == self._nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                    return None
                raise
            self._is_open = True
        return self._nvml


class _Gpu:
    """One GPU while NVML is open; what is dear to ask is kept: see _ENERGY_EVERY."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._readings = 0
        self._energy: int | None = None
        self._max_clock = self._ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_GRAPHICS)

    def read(self) -> GpuSample:
        nvml, ask = self._nvml, self._ask
        name = ask("nvmlDeviceGetName")
        # The second version tells what is used without what the driver keeps for itself, as
        # nvidia-smi does; the difference was 0.5 GB on an H100.
        memory = ask("nvmlDeviceGetMemoryInfo", nvml.nvmlMemory_v2)
        memory = memory or ask("nvmlDeviceGetMemoryInfo")
        use = ask("nvmlDeviceGetUtilizationRates")
        reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        # Not nvmlDeviceGetPcieThroughput: it looks for 20 ms, in each direction.
        received, sent = nvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, nvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES
        counted = ask("nvmlDeviceGetFieldValues", (received, sent))
        heat, limit = nvml.NVML_TEMPERATURE_GPU, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        if self._readings % _ENERGY_EVERY == 0:
            self._energy = ask("nvmlDeviceGetTotalEnergyConsumption")
        self._readings += 1
        is_unified = any(part in str(name) for part in _UNIFIED_NAMES)
        return GpuSample(
            name=None if name is None else str(name).removeprefix("NVIDIA "),
            memory="unified" if is_unified else "device",
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            own_memory_bytes=_own_bytes(ask("nvmlDeviceGetComputeRunningProcesses")),
            utilization_percent=None if use is None else float(use.gpu),
            memory_utilization_percent=None if use is None else float(use.memory),
            clock_hz=_scaled(ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_GRAPHICS), 10**6),
            clock_max_hz=_scaled(self._max_clock, 10**6),
            memory_clock_hz=_scaled(ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM), 10**6),
            temperature_celsius=_ratio(ask("nvmlDeviceGetTemperature", heat), 1.0),
            temperature_limit_celsius=_ratio(ask("nvmlDeviceGetTemperatureThreshold", limit), 1.0),
            power_watts=_ratio(ask("nvmlDeviceGetPowerUsage"), 1e3),
            power_limit_watts=_ratio(ask("nvmlDeviceGetEnforcedPowerLimit"), 1e3),
            energy_joules=_ratio(self._energy, 1e3),
            throttle_reasons=None if reasons is None else _reasons(int(reasons)),
            pcie_received_bytes=_field(counted, 0),
            pcie_sent_bytes=_field(counted, 1),
        )

    def _ask(self, function: str, *arguments: Any) -> Any:
        """Return what a function says, None where this GPU or library does not know it."""
        nvml = self._nvml
        unknown = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        refused = (nvml.NVML_ERROR_NO_PERMISSION, nvml.NVML_ERROR_INVALID_ARGUMENT)
        try:
            return getattr(nvml, function)(self._handle, *arguments)
        except nvml.NVMLError as error:
            if error.value in (*unknown, *refused):
                return None
            raise


def _field(values: Any, place: int) -> int | None:
    """Return one of the values of nvmlDeviceGetFieldValues, each with a status of its own."""
    if values is None or values[place].nvmlReturn != 0:
        return None
    return int(values[place].value.ullVal)


def _own_bytes(processes: Any) -> int | None:
    """Return what this process and its children hold; they share its process group."""
    if processes is None:
        return None
    own = [process for process in processes if _group_of(int(process.pid)) == os.getpgid(0)]
    used = [process.usedGpuMemory for process in own]
    return None if None in used else sum(used)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _reasons(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _THROTTLE_REASONS.items() if bits & bit)


def _scaled(value: Any, factor: int) -> int | None:
    return None if value is None else int(value) * factor


def _ratio(value: Any, divisor: float) -> float | None:
    return None if value is None else float(value) / divisor
