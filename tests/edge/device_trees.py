"""File trees of devices, written from the documented formats; none was copied off a real device.

Formats: Linux device tree bindings ("compatible" and "model" are NUL-terminated), NVIDIA's
/etc/nv_tegra_release, dpkg's status file, /proc/meminfo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge.cuda_query import CudaDevice


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One device: its files by path below the root, and what its CUDA driver says."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    gpu: CudaDevice | None = None
    arch: str = "aarch64"

    def write(self, root: Path) -> Path:
        """Write the files below root and return it."""
        for name, content in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return root


def _release(major: int, revision: str) -> bytes:
    return (
        f"# R{major} (release), REVISION: {revision}, GCID: 38968081, BOARD: generic, "
        "EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
        "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
    ).encode()


def _jetson(
    compatible: str, model: str, memory_kib: int, release: bytes | None, **more: bytes
) -> dict[str, bytes]:
    files = {
        "proc/device-tree/compatible": compatible.replace(" ", "\0").encode() + b"\0",
        "proc/device-tree/model": model.encode() + b"\0",
        "proc/meminfo": f"MemTotal:       {memory_kib} kB\nMemFree: 12 kB\n".encode(),
    }
    if release is not None:
        files["etc/nv_tegra_release"] = release
    return {**files, **{name.replace("__", "/"): content for name, content in more.items()}}


def _gpu(name: str, sm: str, sm_count: int, memory_bytes: int, cuda: str) -> CudaDevice:
    return CudaDevice(name=name, sm=sm, sm_count=sm_count, memory_bytes=memory_bytes, cuda=cuda)


_AGX = "nvidia,p3737-0000+p3701-0005 nvidia,p3701-0005 nvidia,tegra234"
_AGX_NAME = "NVIDIA Jetson AGX Orin Developer Kit"
_DPKG = (
    b"Package: libc6\nStatus: install ok installed\nVersion: 2.35\n\n"
    b"Package: nvidia-l4t-core\nStatus: install ok installed\nArchitecture: arm64\n"
    b"Version: 36.4.7-20250918154033\n\n"
)

DEVICE_TREES: Mapping[str, Recorded] = {
    "agx-orin-jetpack5": Recorded(
        files=_jetson(_AGX, _AGX_NAME, 64_335_836, _release(35, "4.1")),
        gpu=_gpu("Orin", "8.7", 16, 65_879_896_064, "11.4"),
    ),
    "agx-orin-jetpack6": Recorded(
        files=_jetson(_AGX, _AGX_NAME, 64_335_836, _release(36, "4.3")),
        gpu=_gpu("Orin", "8.7", 16, 65_879_896_064, "12.6"),
    ),
    "agx-orin-jetpack7": Recorded(
        files=_jetson(_AGX, _AGX_NAME, 64_335_836, _release(39, "2.0")),
        gpu=_gpu("Orin", "8.7", 16, 65_879_896_064, "13.2"),
    ),
    "orin-nx-in-a-container": Recorded(
        files=_jetson(
            "nvidia,p3768-0000+p3767-0000 nvidia,p3767-0000 nvidia,tegra234",
            "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
            15_957_832,
            None,
            var__lib__dpkg__status=_DPKG,
        ),
        gpu=_gpu("Orin", "8.7", 8, 16_340_819_968, "12.6"),
    ),
    "orin-nano": Recorded(
        files=_jetson(
            "nvidia,p3768-0000+p3767-0005-super nvidia,p3767-0005 nvidia,tegra234",
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            7_802_196,
            _release(36, "4.3"),
        ),
        gpu=_gpu("Orin", "8.7", 8, 7_989_448_704, "12.6"),
    ),
    "agx-xavier": Recorded(
        files={
            **_jetson(
                "nvidia,p2972-0000 nvidia,tegra194", "Jetson-AGX", 32_692_908, _release(35, "3.1")
            ),
            "proc/device-tree/nvidia,dtsfilename": (
                b"/dvs/git/dirty/kernel/t19x/tegra194-p2888-0001-p2822-0000.dts\0"
            ),
        },
        gpu=_gpu("Xavier", "7.2", 8, 33_477_537_792, "11.4"),
    ),
    "thor": Recorded(
        files=_jetson(
            "nvidia,p4071-0000+p3834-0008 nvidia,p3834-0008 nvidia,tegra264",
            "NVIDIA Jetson AGX Thor Developer Kit",
            128_844_092,
            _release(38, "4.0"),
        ),
        gpu=_gpu("NVIDIA Thor", "11.0", 20, 131_936_350_208, "13.0"),
    ),
    "rtx-4060": Recorded(
        files={
            "proc/driver/nvidia/version": (
                b"NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  "
                b"Sun Jul 27 07:30:00 UTC 2025\nGCC version:  gcc version 13.3.0\n"
            ),
            "proc/meminfo": b"MemTotal:       32657624 kB\n",
        },
        gpu=_gpu("NVIDIA GeForce RTX 4060", "8.9", 24, 8_188_461_056, "13.0"),
        arch="x86_64",
    ),
    "no-gpu": Recorded(files={"proc/meminfo": b"MemTotal: 8000000 kB\n"}, arch="x86_64"),
    "a-jetson-of-the-future": Recorded(
        files=_jetson(
            "nvidia,p9999-0000+p9998-0001 nvidia,tegra999",
            "NVIDIA Jetson Next Developer Kit",
            256_000_000,
            _release(45, "1.2"),
        ),
    ),
}
