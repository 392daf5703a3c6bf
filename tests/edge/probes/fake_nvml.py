"""NVML with scripted GPUs: the functions, errors and units of pynvml that the probe uses."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """As in pynvml: the number of the error."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


class FakeNvml:
    """One handle per entry of gpus: what each function returns; a missing one is not supported."""

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_INVALID_ARGUMENT = 2
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_FUNCTION_NOT_FOUND = 13
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_CLOCK_GRAPHICS = 0
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1
    NVML_FI_DEV_PCIE_COUNT_TX_BYTES = 197
    NVML_FI_DEV_PCIE_COUNT_RX_BYTES = 198
    nvmlMemory_v2 = 0x02000028  # noqa: N815 - the library's name

    def __init__(self, *gpus: Mapping[Any, Any], init_error: int | None = None) -> None:
        self.gpus = gpus
        self.init_error = init_error
        self.lost = False
        self.opened = self.closed = 0
        self.asked: list[str] = []

    def nvmlInit(self) -> None:  # noqa: N802
        if self.init_error is not None:
            raise NVMLError(self.init_error)
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.closed += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> Mapping[Any, Any]:  # noqa: N802
        return self.gpus[number]

    def __getattr__(self, function: str) -> Any:
        if not function.startswith("nvmlDeviceGet"):
            raise AttributeError(function)

        def call(handle: Mapping[Any, Any], *arguments: Any) -> Any:
            self.asked.append(function)
            if self.lost:
                raise NVMLError(self.NVML_ERROR_GPU_IS_LOST)
            key = (function.removeprefix("nvmlDeviceGet"), *arguments)
            if key not in handle:
                raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
            return handle[key]

        return call


def process(pid: int, used: int | None) -> SimpleNamespace:
    """One entry of nvmlDeviceGetComputeRunningProcesses."""
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def field_value(value: int, status: int = 0) -> SimpleNamespace:
    """One entry of nvmlDeviceGetFieldValues."""
    return SimpleNamespace(nvmlReturn=status, value=SimpleNamespace(ullVal=value))


# Units of NVML: MHz, milliwatts, millijoules.
RTX_4060: Mapping[Any, Any] = {
    ("Name",): "NVIDIA GeForce RTX 4060",
    ("MemoryInfo", FakeNvml.nvmlMemory_v2): SimpleNamespace(used=3 << 30, total=8188 << 20),
    ("MemoryInfo",): SimpleNamespace(used=(3 << 30) + 99, total=8188 << 20),  # and the driver's own
    ("UtilizationRates",): SimpleNamespace(gpu=73, memory=41),
    ("ClockInfo", 0): 2460,
    ("ClockInfo", 2): 8501,
    ("MaxClockInfo", 0): 3105,
    ("Temperature", 0): 64,
    ("TemperatureThreshold", 1): 93,
    ("PowerUsage",): 98_250,
    ("EnforcedPowerLimit",): 115_000,
    ("TotalEnergyConsumption",): 7_654_321,
    ("CurrentClocksThrottleReasons",): 0x04 | 0x20 | 0x01,
    ("FieldValues", (198, 197)): [field_value(1_500_000), field_value(250_000)],
    ("ComputeRunningProcesses",): [],
}
# A Jetson of JetPack 6 lists its GPU and knows nothing else of it.
ORIN: Mapping[Any, Any] = {("Name",): "Orin (nvgpu)"}
