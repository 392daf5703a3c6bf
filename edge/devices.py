"""The devices the kit knows by name: NVIDIA Jetson modules and GeForce RTX desktop cards.

Numbers are those of the vendor's data sheets; None is "not published or not sure", never a guess.
A device that is not here still works: what it reports itself goes before this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["jetson", "desktop"]
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One module or card.

    name: its key, as in `--target NAME`. sm: compute capability, such as "8.7".
    bandwidth_bytes_per_s: of its memory, the highest that any power mode has.
    part_numbers: of the Jetson module ("p3701-0005"), as device trees spell it.
    gpu_name: how CUDA names a desktop card, without the vendor. All Orins are just "Orin" there.
    """

    name: str
    title: str
    kind: Kind
    sm: str
    sm_count: int | None
    memory_bytes: int
    bandwidth_bytes_per_s: float | None
    dla_cores: int = 0
    part_numbers: tuple[str, ...] = ()
    gpu_name: str | None = None

    @property
    def arch(self) -> str:
        """The processor architecture."""
        return "aarch64" if self.kind == "jetson" else "x86_64"


def _jetson(
    name: str,
    title: str,
    sm: str,
    sm_count: int | None,
    memory_gib: int,
    bandwidth_gb: float | None,
    dla_cores: int,
    *part_numbers: str,
) -> Device:
    return Device(
        name=name,
        title=f"Jetson {title}",
        kind="jetson",
        sm=sm,
        sm_count=sm_count,
        memory_bytes=memory_gib * GIB,
        bandwidth_bytes_per_s=None if bandwidth_gb is None else bandwidth_gb * 1e9,
        dla_cores=dla_cores,
        part_numbers=part_numbers,
    )


def _rtx(model: str, sm: str, sm_count: int, memory_gib: int, bandwidth_gb: float) -> Device:
    return Device(
        name=f"rtx-{model.lower().replace(' ', '-')}",
        title=f"GeForce RTX {model}",
        kind="desktop",
        sm=sm,
        sm_count=sm_count,
        memory_bytes=memory_gib * GIB,
        bandwidth_bytes_per_s=bandwidth_gb * 1e9,
        gpu_name=f"GeForce RTX {model}",
    )


DEVICES: tuple[Device, ...] = (
    _jetson("nano", "Nano", "5.3", 1, 4, 25.6, 0, "p3448-0000", "p3448-0002", "p3448-0003"),
    _jetson("tx2", "TX2", "6.2", 2, 8, 59.7, 0, "p3310-1000", "p3489-0000", "p3636-0001"),
    _jetson("xavier-nx", "Xavier NX", "7.2", 6, 8, 59.7, 2, "p3668-0000", "p3668-0001"),
    _jetson("xavier-nx-16gb", "Xavier NX 16GB", "7.2", 6, 16, 59.7, 2, "p3668-0003"),
    _jetson(
        "agx-xavier", "AGX Xavier", "7.2", 8, 32, 136.5, 2,
        "p2888-0001", "p2888-0003", "p2888-0004", "p2888-0006",
    ),
    _jetson("agx-xavier-64gb", "AGX Xavier 64GB", "7.2", 8, 64, 136.5, 2, "p2888-0005"),
    # In the Super power modes of JetPack 6.2; 34 and 68 GB/s in all others.
    _jetson("orin-nano-4gb", "Orin Nano 4GB", "8.7", 4, 4, 51.2, 0, "p3767-0004"),
    _jetson("orin-nano-8gb", "Orin Nano 8GB", "8.7", 8, 8, 102.4, 0, "p3767-0003", "p3767-0005"),
    _jetson("orin-nx-8gb", "Orin NX 8GB", "8.7", 8, 8, 102.4, 1, "p3767-0001"),
    _jetson("orin-nx-16gb", "Orin NX 16GB", "8.7", 8, 16, 102.4, 2, "p3767-0000"),
    _jetson("agx-orin-32gb", "AGX Orin 32GB", "8.7", 14, 32, 204.8, 2, "p3701-0004"),
    _jetson("agx-orin-64gb", "AGX Orin 64GB", "8.7", 16, 64, 204.8, 2, "p3701-0005"),
    _jetson("agx-orin-devkit", "AGX Orin 32GB DevKit", "8.7", 16, 32, 204.8, 2, "p3701-0000"),
    _jetson("igx-orin", "IGX Orin", "8.7", 16, 64, 204.8, 2, "p3701-0002"),
    _jetson("agx-thor", "AGX Thor T5000", "11.0", 20, 128, 273.0, 0, "p3834-0008"),
    _rtx("2060", "7.5", 30, 6, 336),
    _rtx("2070", "7.5", 36, 8, 448),
    _rtx("2080", "7.5", 46, 8, 448),
    _rtx("2080 Ti", "7.5", 68, 11, 616),
    _rtx("3050", "8.6", 20, 8, 224),
    _rtx("3060", "8.6", 28, 12, 360),
    _rtx("3060 Ti", "8.6", 38, 8, 448),
    _rtx("3070", "8.6", 46, 8, 448),
    _rtx("3080", "8.6", 68, 10, 760),
    _rtx("3090", "8.6", 82, 24, 936),
    _rtx("4060", "8.9", 24, 8, 272),
    _rtx("4060 Ti", "8.9", 34, 8, 288),
    _rtx("4070", "8.9", 46, 12, 504),
    _rtx("4070 Ti", "8.9", 60, 12, 504),
    _rtx("4080", "8.9", 76, 16, 717),
    _rtx("4090", "8.9", 128, 24, 1008),
    _rtx("5060", "12.0", 30, 8, 448),
    _rtx("5060 Ti", "12.0", 36, 16, 448),
    _rtx("5070", "12.0", 48, 12, 672),
    _rtx("5070 Ti", "12.0", 70, 16, 896),
    _rtx("5080", "12.0", 84, 16, 960),
    _rtx("5090", "12.0", 170, 32, 1792),
)  # fmt: skip


def device_named(name: str) -> Device | None:
    """Return the device with this key, which may carry its memory: "agx-xavier-32gb"."""
    exact = (device for device in DEVICES if device.name == name)
    larger = (d for d in DEVICES if f"{d.name}-{d.memory_bytes // GIB}gb" == name)
    return next(exact, None) or next(larger, None)


def device_from_part_number(part_number: str) -> Device | None:
    """Return the Jetson module with this part number, such as "p3701-0005"."""
    return next((device for device in DEVICES if part_number in device.part_numbers), None)


def device_from_gpu_name(name: str) -> Device | None:
    """Return the desktop card that CUDA or NVML calls so; a Laptop or SUPER variant is another."""
    bare = name.removeprefix("NVIDIA ").strip()
    return next((device for device in DEVICES if device.gpu_name == bare), None)
