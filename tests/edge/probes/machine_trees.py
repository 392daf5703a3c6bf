"""What the kernels of Jetsons show in /sys, /proc and /etc; none was copied off a real device.

Written from the documented formats: the devfreq, thermal and hwmon classes of Linux,
Documentation/hwmon/ina3221.rst, "Power Mode Controls" of the Jetson Linux Developer Guide.
Beside each tree stands what a reader must make of it, computed by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.probes.sample import GpuSample, Sample

_MODES = (
    "< PARAM TYPE=FILE NAME=CPU_ONLINE >\n"
    "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=2 NAME=MODE_30W >\n< PM_CONFIG DEFAULT=2 >\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Files by path below the root, and the Sample that they are."""

    files: Mapping[str, str]
    expected: Sample

    def write(self, root: Path) -> Path:
        """Write the files below root and return it."""
        for name, content in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return root


def _files(
    chip: str, *, memory: str, gpu: Mapping[str, str], node: str, zones: Mapping[str, str]
) -> dict[str, str]:
    files = {
        "proc/device-tree/compatible": f"nvidia,board\0nvidia,{chip}\0",
        "proc/meminfo": memory,
        **{f"sys/class/devfreq/{node}/{name}": value for name, value in gpu.items()},
    }
    for number, (kind, temperature) in enumerate(zones.items()):
        zone = f"sys/class/thermal/thermal_zone{number}"
        files |= {f"{zone}/type": f"{kind}\n", f"{zone}/temp": f"{temperature}\n"}
    return files


def _ina3221(number: int, *channels: tuple[str, str, str]) -> dict[str, str]:
    """channels: label, millivolts and milliamperes of each."""
    folder = f"sys/class/hwmon/hwmon{number}"
    files = {f"{folder}/name": "ina3221\n", f"{folder}/in7_label": "sum of shunt voltages\n"}
    for channel, (label, millivolts, milliamperes) in enumerate(channels, 1):
        files |= {
            f"{folder}/in{channel}_label": f"{label}\n",
            f"{folder}/in{channel}_input": f"{millivolts}\n",
            f"{folder}/curr{channel}_input": f"{milliamperes}\n",
        }
    return files


_AGX_GPU = {"cur_freq": "930750000\n", "max_freq": "1300500000\n", "device/load": "437\n"}
_AGX_MEMORY = (
    "MemTotal:       64335836 kB\nMemFree:  1000 kB\nMemAvailable:   50000000 kB\n"
    "NvMapMemFree:          0 kB\nNvMapMemUsed:    2097152 kB\n"
)


def _agx(node: str, zones: Mapping[str, str], used_bytes: int | None, memory: str) -> Tree:
    files = {
        **_files("tegra234", memory=memory, gpu=_AGX_GPU, node=node, zones=zones),
        **_ina3221(3, ("VDD_GPU_SOC", "19864", "201"), ("VDD_CPU_CV", "19864", "60")),
        **_ina3221(4, ("NC", "0", "0"), ("VIN_SYS_5V0", "5016", "680")),
        "sys/class/hwmon/hwmon0/name": "soctherm_oc\n",
        "sys/class/hwmon/hwmon0/oc1_event_cnt": "0\n",
        "sys/class/hwmon/hwmon0/oc3_event_cnt": "17\n",
        "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet",
        "etc/nvpmodel.conf": _MODES,
    }
    expected = Sample(
        # mV x mA = microwatts.
        rails_watts={"VDD_GPU_SOC": 3.992664, "VDD_CPU_CV": 1.19184, "VIN_SYS_5V0": 3.41088},
        power_watts=8.595384,
        power_mode="MODE_30W",
        temperatures_celsius={"cpu": 47.031, "gpu": 45.5},
        gpus=(
            GpuSample(
                memory="unified",
                memory_used_bytes=used_bytes,
                memory_total_bytes=64335836 * 1024,
                utilization_percent=43.7,
                clock_hz=930_750_000,
                clock_max_hz=1_300_500_000,
                temperature_celsius=45.5,
                throttle_reasons=(),
            ),
        ),
    )
    return Tree(files=files, expected=expected)


MACHINE_TREES: Mapping[str, Tree] = {
    "agx-orin-jetpack5": _agx(
        "17000000.ga10b",
        {"CPU-therm": "47031", "GPU-therm": "45500", "CV0-therm": "-256000"},
        2 << 30,
        _AGX_MEMORY,
    ),
    "agx-orin-jetpack6": _agx(
        "17000000.gpu", {"cpu-thermal": "47031", "gpu-thermal": "45500"}, 2 << 30, _AGX_MEMORY
    ),
    # A kernel that keeps no account of what the GPU's driver holds.
    "agx-orin-jetpack7": _agx(
        "17000000.gpu",
        {"cpu-thermal": "47031", "gpu-thermal": "45500"},
        None,
        "MemTotal:       64335836 kB\n",
    ),
    "orin-nano": Tree(
        files={
            **_files(
                "tegra234",
                memory="MemTotal:        7802196 kB\nNvMapMemUsed:     524288 kB\n",
                gpu={"cur_freq": "306000000\n", "max_freq": "1020000000\n", "device/load": "0\n"},
                node="17000000.gpu",
                zones={"gpu-thermal": "51218", "tj-thermal": "52000"},
            ),
            **_ina3221(
                1,
                ("VDD_IN", "5040", "1256"),
                ("VDD_CPU_GPU_CV", "5040", "280"),
                ("VDD_SOC", "5040", "296"),
            ),
            "var/lib/nvpmodel/status": "pmode:0007",
        },
        expected=Sample(
            rails_watts={"VDD_IN": 6.33024, "VDD_CPU_GPU_CV": 1.4112, "VDD_SOC": 1.49184},
            power_watts=6.33024,  # the input feeds the others: it is not added to them
            power_mode="mode 7",
            temperatures_celsius={"gpu": 51.218, "tj": 52.0},
            gpus=(
                GpuSample(
                    memory="unified",
                    memory_used_bytes=512 << 20,
                    memory_total_bytes=7802196 * 1024,
                    utilization_percent=0.0,
                    clock_hz=306_000_000,
                    clock_max_hz=1_020_000_000,
                    temperature_celsius=51.218,
                ),
            ),
        ),
    ),
    "agx-xavier": Tree(
        files={
            **_files(
                "tegra194",
                memory="MemTotal:       32692908 kB\n",
                gpu={
                    "cur_freq": "1377000000\n",
                    "max_freq": "1377000000\n",
                    "device/load": "1000\n",
                },
                node="17000000.gv11b",
                zones={"GPU-therm": "38000", "thermal-fan-est": "37500"},
            ),
            **_ina3221(2, ("GPU", "19152", "312"), ("CPU", "19152", "78"), ("SOC", "19152", "104")),
            "var/lib/nvpmodel/status": "pmode:0000",
            "etc/nvpmodel.conf": _MODES,
        },
        expected=Sample(
            rails_watts={"GPU": 5.975424, "CPU": 1.493856, "SOC": 1.991808},
            power_watts=9.461088,
            power_mode="MAXN",
            temperatures_celsius={"gpu": 38.0, "thermal-fan-est": 37.5},
            gpus=(
                GpuSample(
                    memory="unified",
                    memory_total_bytes=32692908 * 1024,
                    utilization_percent=100.0,
                    clock_hz=1_377_000_000,
                    clock_max_hz=1_377_000_000,
                    temperature_celsius=38.0,
                    power_watts=5.975424,
                ),
            ),
        ),
    ),
    # Its load is NVML's to tell; a monitor of the input says its power in microwatts.
    "thor": Tree(
        files={
            **_files(
                "tegra264",
                memory="MemTotal:      128844092 kB\n",
                gpu={"cur_freq": "1575000000\n", "max_freq": "1575000000\n"},
                node="gpu-gpc-0",
                zones={"gpu-thermal": "55125"},
            ),
            **_ina3221(5, ("VDD_GPU", "12000", "1500"), ("VDD_CPU_SOC_MSS", "12000", "900")),
            "sys/class/hwmon/hwmon6/name": "ina238\n",
            "sys/class/hwmon/hwmon6/in1_label": "VIN\n",
            "sys/class/hwmon/hwmon6/power1_input": "41500000\n",
        },
        expected=Sample(
            rails_watts={"VDD_GPU": 18.0, "VDD_CPU_SOC_MSS": 10.8, "VIN": 41.5},
            power_watts=41.5,
            temperatures_celsius={"gpu": 55.125},
            gpus=(
                GpuSample(
                    memory="unified",
                    memory_total_bytes=128844092 * 1024,
                    clock_hz=1_575_000_000,
                    clock_max_hz=1_575_000_000,
                    temperature_celsius=55.125,
                    power_watts=18.0,
                ),
            ),
        ),
    ),
}
