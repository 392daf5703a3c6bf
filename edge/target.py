"""Target: what an engine must fit, read off this machine from every source that answers.

Sources that are missing, unreadable or unknown leave their fields None; nothing here raises for
what a machine is or is not.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge.cuda_query import CudaDevice, cuda_problem, gpus_like, query_cuda
from edge.devices import Device, device_from_gpu_name, device_from_part_number
from edge.installed import installed_backends
from edge.manifest import Backend
from edge.sysfs import text_of

_KIB = 1024

# The last item of the device tree's "compatible" names the chip, the chip has one SM version.
SM_FROM_CHIP: Mapping[str, str] = {
    "tegra210": "5.3",
    "tegra186": "6.2",
    "tegra194": "7.2",
    "tegra234": "8.7",
    "tegra264": "11.0",
}
# L4T to JetPack, newest first; an unknown revision falls back to the major version.
JETPACK_FROM_L4T: Mapping[str, str] = {
    "39.2.2": "7.2.2",
    "39.2.1": "7.2.1",
    "39.2.0": "7.2",
    "38.4.0": "7.1",
    "38.2.2": "7.0",
    "38.2.1": "7.0",
    "38.2.0": "7.0",
    "36.5.2": "6.2.3",
    "36.5.0": "6.2.2",
    "36.4.7": "6.2.1",
    "36.4.4": "6.2.1",
    "36.4.3": "6.2",
    "36.4.2": "6.1",
    "36.4.0": "6.1",
    "36.3.0": "6.0",
    "35.6.5": "5.1.7",
    "35.6.0": "5.1.4",
    "35.5.0": "5.1.3",
    "35.4.1": "5.1.2",
    "35.3.1": "5.1.1",
    "35.2.1": "5.1",
    "35.1.0": "5.0.2",
    "32.7.6": "4.6.6",
    "32.7.1": "4.6.1",
    "32.6.1": "4.6",
}
_JETPACK_MAJOR_FROM_L4T = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}
_RELEASE = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_PACKAGE = re.compile(r"^Package: nvidia-l4t-core$.*?^Version: ([\d.]+)", re.M | re.S)
_PART = re.compile(r"p?(\d{4})[-:](\d{4})")

Kind = Literal["jetson", "desktop", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One machine as far as engines care; None is "this machine cannot tell".

    device: key of the table in `devices`, if the machine is in it. gpus: how many are like the
    first, which all other fields describe. memory_bytes: of the GPU; on a
    Jetson, of the whole machine, which its GPU shares. tensorrt, tensorrt_rtx, onnxruntime: full
    versions, None if not installed. cuda: the highest version the driver runs, None without a
    driver that works; cuda_problem says why. plugins: layers registered with TensorRT.
    """

    kind: Kind
    arch: str
    name: str
    device: str | None = None
    part_number: str | None = None
    gpus: int = 0
    sm: str | None = None
    sm_count: int | None = None
    memory_bytes: int | None = None
    dla_cores: int | None = None
    l4t: str | None = None
    jetpack: str | None = None
    driver: str | None = None
    cuda: str | None = None
    cuda_problem: str | None = None
    tensorrt: str | None = None
    tensorrt_rtx: str | None = None
    onnxruntime: str | None = None
    onnxruntime_cuda: bool = False
    plugins: tuple[str, ...] | None = None

    @property
    def runtimes(self) -> dict[Backend, str | None]:
        """The installed version of what opens each backend."""
        return {"trt": self.tensorrt, "trt-rtx": self.tensorrt_rtx, "ort": self.onnxruntime}


def detect_target(
    root: Path = Path("/"),
    *,
    arch: str | None = None,
    query: Callable[[], CudaDevice | None] = query_cuda,
    alike: Callable[[CudaDevice], int] = gpus_like,
    problem: Callable[[], str | None] = cuda_problem,
    versions: Callable[[], Mapping[str, str]] = installed_backends,
) -> Target:
    """Return what this machine is.

    root: of the file system to read, another one in tests. query: asks the CUDA driver, None
    without one. alike: counts the GPUs that are like one. versions: installed TensorRT versions
    by module name.
    """
    chip = _chip(root)
    gpu = query()
    l4t = _l4t(root)
    part_number, device = _module(root)
    if device is None and gpu is not None:
        device = device_from_gpu_name(gpu.name)
    kind: Kind = "cpu"
    if chip is not None or l4t is not None:
        kind = "jetson"
    elif gpu is not None:
        kind = "desktop"
    found = versions()
    return Target(
        kind=kind,
        arch=arch or platform.machine(),
        name=_name(root, kind, gpu, device),
        device=None if device is None else device.name,
        part_number=part_number,
        gpus=0 if gpu is None else alike(gpu),
        sm=_first(gpu and gpu.sm, SM_FROM_CHIP.get(chip or ""), device and device.sm),
        sm_count=_first(gpu and gpu.sm_count, device and device.sm_count),
        memory_bytes=_first(
            _total_memory(root) if kind == "jetson" else None, gpu and gpu.memory_bytes
        ),
        dla_cores=device.dla_cores if device is not None else None,
        l4t=l4t,
        jetpack=_jetpack(l4t),
        driver=_driver(root),
        cuda=None if gpu is None else gpu.cuda,
        cuda_problem=problem() if gpu is None else None,
        tensorrt=found.get("tensorrt"),
        tensorrt_rtx=found.get("tensorrt_rtx"),
        onnxruntime=found.get("onnxruntime"),
        onnxruntime_cuda="onnxruntime_gpu" in found,
    )


def _name(root: Path, kind: Kind, gpu: CudaDevice | None, device: Device | None) -> str:
    if kind == "jetson":
        model = text_of(root / "proc/device-tree/model")
        return model or (device.title if device is not None else "an unknown Jetson")
    return gpu.name if gpu is not None else "no NVIDIA GPU"


def _chip(root: Path) -> str | None:
    """Return the Tegra chip of the device tree, such as "tegra234"."""
    for item in reversed(_items(root / "proc/device-tree/compatible")):
        vendor, _, chip = item.partition(",")
        if vendor == "nvidia" and chip.startswith("tegra"):
            return chip
    return None


def _module(root: Path) -> tuple[str | None, Device | None]:
    """Return part number and device of a Jetson module; the carrier board has numbers as well."""
    tree = root / "proc/device-tree"
    found = [
        f"p{board}-{variant}"
        for name in ("compatible", "nvidia,boardids", "nvidia,dtsfilename")
        for board, variant in _PART.findall(" ".join(_items(tree / name)))
    ]
    for part_number in found:
        device = device_from_part_number(part_number)
        if device is not None:
            return part_number, device
    return (found[0] if found else None), None


def _l4t(root: Path) -> str | None:
    """Return the Linux for Tegra release, such as "36.4.3"."""
    match = _RELEASE.search(text_of(root / "etc/nv_tegra_release") or "")
    if match is not None:
        return f"{match[1]}.{match[2]}"
    # Absent in containers, and on systems installed package by package.
    match = _PACKAGE.search(text_of(root / "var/lib/dpkg/status", max_bytes=16 << 20) or "")
    return match[1].rstrip(".") if match is not None else None


def _jetpack(l4t: str | None) -> str | None:
    if l4t is None:
        return None
    return JETPACK_FROM_L4T.get(l4t) or _JETPACK_MAJOR_FROM_L4T.get(l4t.split(".")[0])


def _driver(root: Path) -> str | None:
    match = re.search(r"(\d+\.\d+(?:\.\d+)?)", text_of(root / "proc/driver/nvidia/version") or "")
    return match[1] if match is not None else None


def _total_memory(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", text_of(root / "proc/meminfo") or "", re.M)
    return int(match[1]) * _KIB if match is not None else None


def _items(path: Path) -> list[str]:
    """Return the strings of a device tree property, which NUL bytes separate."""
    return [item for item in (text_of(path) or "").split("\0") if item]


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def machine_facts(target: Target, backend: Backend) -> tuple[object, ...]:
    """Return everything of a machine that an engine, or a verdict on one, depends on."""
    return (
        backend, target.runtimes[backend], target.arch, target.name, target.sm, target.sm_count,
        target.memory_bytes, target.driver, target.cuda, target.l4t,
    )  # fmt: skip
