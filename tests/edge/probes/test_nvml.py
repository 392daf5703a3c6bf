"""NVML's answers and refusals; its names and numbers against the package itself."""

import os
from types import SimpleNamespace

import pytest

from edge.probes.nvml import NvmlProbe
from edge.probes.sample import GpuSample, Sample
from tests.edge.probes.fake_nvml import ORIN, RTX_4060, FakeNvml, NVMLError, field_value, process


def test_every_value_of_a_desktop_card_has_its_unit() -> None:
    own = process(os.getpid(), 700 << 20)
    other = process(1, 5 << 20)
    gpu = {**RTX_4060, ("ComputeRunningProcesses",): [own, other]}
    (read,) = NvmlProbe(FakeNvml(gpu)).read().gpus
    assert read == GpuSample(
        name="GeForce RTX 4060",
        memory="device",
        memory_used_bytes=3 << 30,
        memory_total_bytes=8188 << 20,
        own_memory_bytes=700 << 20,
        utilization_percent=73.0,
        memory_utilization_percent=41.0,
        clock_hz=2_460_000_000,
        clock_max_hz=3_105_000_000,
        memory_clock_hz=8_501_000_000,
        temperature_celsius=64.0,
        temperature_limit_celsius=93.0,
        power_watts=98.25,
        power_limit_watts=115.0,
        energy_joules=7654.321,
        throttle_reasons=("power-cap", "thermal"),
        pcie_received_bytes=1_500_000,
        pcie_sent_bytes=250_000,
    )


def test_what_a_gpu_does_not_support_is_unknown_not_zero() -> None:
    assert NvmlProbe(FakeNvml(ORIN)).read().gpus == (
        GpuSample(name="Orin (nvgpu)", memory="unified"),
    )


def test_memory_that_the_driver_does_not_tell_of_a_process_is_unknown() -> None:
    gpu = {**RTX_4060, ("ComputeRunningProcesses",): [process(os.getpid(), None)]}
    assert NvmlProbe(FakeNvml(gpu)).read().gpus[0].own_memory_bytes is None


def test_an_older_driver_tells_memory_in_the_first_form_and_counts_no_bytes() -> None:
    gpu = {
        **{key: RTX_4060[key] for key in RTX_4060 if key[1:] != (FakeNvml.nvmlMemory_v2,)},
        ("FieldValues", (198, 197)): [field_value(0, FakeNvml.NVML_ERROR_NOT_SUPPORTED)] * 2,
    }
    (read,) = NvmlProbe(FakeNvml(gpu)).read().gpus
    assert (read.memory_used_bytes, read.pcie_sent_bytes) == ((3 << 30) + 99, None)


def test_what_an_h100_said_under_load_is_read_as_nvidia_smi_printed_it() -> None:
    """Recorded by tests/gpu/nvml_record.py, driver 580; nvidia-smi: 883 MiB with 546 reserved."""
    said = {
        ("Name",): "NVIDIA H100 80GB HBM3",
        ("MemoryInfo",): SimpleNamespace(total=85520809984, free=84091797504, used=1429012480),
        ("UtilizationRates",): SimpleNamespace(gpu=56, memory=19),
        ("CurrentClocksThrottleReasons",): 4,
        ("ClockInfo", 0): 1815,
        ("MaxClockInfo", 0): 1980,
        ("ClockInfo", 2): 2619,
        ("Temperature", 0): 55,
        ("PowerUsage",): 522516,
        ("EnforcedPowerLimit",): 700000,
        ("TotalEnergyConsumption",): 15407798,
    }
    (read,) = NvmlProbe(FakeNvml(said)).read().gpus
    assert read == GpuSample(
        name="H100 80GB HBM3",
        memory="device",
        memory_used_bytes=1429012480,
        memory_total_bytes=81559 << 20,
        utilization_percent=56.0,
        memory_utilization_percent=19.0,
        clock_hz=1_815_000_000,
        clock_max_hz=1_980_000_000,
        memory_clock_hz=2_619_000_000,
        temperature_celsius=55.0,
        power_watts=522.516,
        power_limit_watts=700.0,
        energy_joules=15407.798,
        throttle_reasons=("power-cap",),
    )


def test_what_an_h200_said_under_load_is_read_as_nvidia_smi_printed_it() -> None:
    """Recorded by tests/gpu/nvml_record.py, driver 580; nvidia-smi: 883 MiB, 46 %, 537.03 W."""
    said = {
        ("Name",): "NVIDIA H200",
        ("MemoryInfo", FakeNvml.nvmlMemory_v2): SimpleNamespace(
            total=150754820096, reserved=644939776, free=149184184320, used=925696000
        ),
        ("UtilizationRates",): SimpleNamespace(gpu=46, memory=12),
        ("CurrentClocksThrottleReasons",): 4,
        ("ComputeRunningProcesses",): [process(os.getpid(), 916455424)],
        ("ClockInfo", 0): 1680,
        ("MaxClockInfo", 0): 1980,
        ("ClockInfo", 2): 3201,
        ("Temperature", 0): 54,
        ("TemperatureThreshold", 1): 89,
        ("PowerUsage",): 537035,
        ("EnforcedPowerLimit",): 700000,
        ("TotalEnergyConsumption",): 14261567,
    }
    (read,) = NvmlProbe(FakeNvml(said)).read().gpus
    assert read == GpuSample(
        name="H200",
        memory="device",
        memory_used_bytes=925_696_000,
        memory_total_bytes=150_754_820_096,
        own_memory_bytes=916_455_424,
        utilization_percent=46.0,
        memory_utilization_percent=12.0,
        clock_hz=1_680_000_000,
        clock_max_hz=1_980_000_000,
        memory_clock_hz=3_201_000_000,
        temperature_celsius=54.0,
        temperature_limit_celsius=89.0,
        power_watts=537.035,
        power_limit_watts=700.0,
        energy_joules=14261.567,
        throttle_reasons=("power-cap",),
    )
    assert round(read.memory_used_bytes / 2**20) == 883


def test_a_machine_without_the_library_has_no_gpus_and_no_failure() -> None:
    nvml = FakeNvml(RTX_4060, init_error=FakeNvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert NvmlProbe(nvml).read() == Sample()


def test_a_gpu_that_is_lost_is_a_failure_and_the_next_reading_opens_anew() -> None:
    nvml = FakeNvml(RTX_4060)
    probe = NvmlProbe(nvml)
    assert probe.read().gpus
    nvml.lost = True
    with pytest.raises(NVMLError):
        probe.read()
    assert nvml.closed == 1
    nvml.lost = False
    assert probe.read().gpus
    assert nvml.opened == 2
    probe.close()
    probe.close()
    assert nvml.closed == 2


def test_what_is_dear_to_ask_is_asked_rarely() -> None:
    gpu = dict(RTX_4060)
    probe = NvmlProbe(nvml := FakeNvml(gpu))
    energies = []
    for reading in range(6):
        gpu["TotalEnergyConsumption",] = 1_000 * reading
        energies.append(probe.read().gpus[0].energy_joules)
    assert energies == [0.0, 0.0, 0.0, 0.0, 0.0, 5.0]
    assert nvml.asked.count("nvmlDeviceGetMaxClockInfo") == 1
    assert nvml.asked.count("nvmlDeviceGetClockInfo") == 12


def test_two_gpus_are_told_apart() -> None:
    cooler = {**RTX_4060, ("Temperature", 0): 40}
    read = NvmlProbe(FakeNvml(RTX_4060, cooler)).read()
    assert [gpu.temperature_celsius for gpu in read.gpus] == [64.0, 40.0]


def test_the_fake_has_the_names_and_numbers_of_the_package() -> None:
    pynvml = pytest.importorskip("pynvml")
    constants = [name for name in dir(FakeNvml) if name.startswith("NVML_")]
    assert constants
    assert {n: getattr(FakeNvml, n) for n in constants} == {
        n: getattr(pynvml, n) for n in constants
    }
    functions = {f"nvmlDeviceGet{key[0]}" for key in RTX_4060}
    assert [name for name in functions if not callable(getattr(pynvml, name, None))] == []
    bits = {
        "nvmlClocksThrottleReasonSwPowerCap": 0x04,
        "nvmlClocksThrottleReasonHwSlowdown": 0x08,
        "nvmlClocksThrottleReasonSwThermalSlowdown": 0x20,
        "nvmlClocksThrottleReasonHwThermalSlowdown": 0x40,
        "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": 0x80,
    }
    assert {name: getattr(pynvml, name) for name in bits} == bits


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (0x00, ()),
        (0x01, ()),  # idle
        (0x102, ()),  # a clock that somebody set
        (0x48, ("hardware-slowdown", "hardware-thermal")),
        (0x80, ("power-brake",)),
    ],
)
def test_only_what_slows_a_working_gpu_is_throttling(bits: int, reasons: tuple[str, ...]) -> None:
    gpu = {**RTX_4060, ("CurrentClocksThrottleReasons",): bits}
    assert NvmlProbe(FakeNvml(gpu)).read().gpus[0].throttle_reasons == reasons
