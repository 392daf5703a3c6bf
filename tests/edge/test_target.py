from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from edge.devices import DEVICES, device_from_gpu_name, device_named
from edge.target import Target, detect_target
from tests.edge.device_trees import DEVICE_TREES


def detect(name: str, tmp_path: Path, versions: Mapping[str, str] | None = None) -> Target:
    recorded = DEVICE_TREES[name]
    return detect_target(
        recorded.write(tmp_path),
        arch=recorded.arch,
        query=lambda: recorded.gpu,
        versions=lambda: versions or {},
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("agx-orin-jetpack5", ("jetson", "agx-orin-64gb", "8.7", 16, "35.4.1", "5.1.2", 2)),
        ("agx-orin-jetpack6", ("jetson", "agx-orin-64gb", "8.7", 16, "36.4.3", "6.2", 2)),
        ("agx-orin-jetpack7", ("jetson", "agx-orin-64gb", "8.7", 16, "39.2.0", "7.2", 2)),
        ("orin-nx-in-a-container", ("jetson", "orin-nx-16gb", "8.7", 8, "36.4.7", "6.2.1", 2)),
        ("orin-nano", ("jetson", "orin-nano-8gb", "8.7", 8, "36.4.3", "6.2", 0)),
        ("agx-xavier", ("jetson", "agx-xavier", "7.2", 8, "35.3.1", "5.1.1", 2)),
        ("thor", ("jetson", "agx-thor", "11.0", 20, "38.4.0", "7.1", 0)),
        ("rtx-4060", ("desktop", "rtx-4060", "8.9", 24, None, None, 0)),
        ("no-gpu", ("cpu", None, None, None, None, None, None)),
        ("a-jetson-of-the-future", ("jetson", None, None, None, "45.1.2", None, None)),
    ],
)
def test_a_recorded_device_is_recognised(name: str, expected: tuple, tmp_path: Path) -> None:
    t = detect(name, tmp_path)
    assert (t.kind, t.device, t.sm, t.sm_count, t.l4t, t.jetpack, t.dla_cores) == expected
    assert t.arch == DEVICE_TREES[name].arch


def test_three_orins_of_one_cuda_name_are_told_apart(tmp_path: Path) -> None:
    names = ("agx-orin-jetpack6", "orin-nx-in-a-container", "orin-nano")
    assert len({DEVICE_TREES[name].gpu.name for name in names}) == 1
    targets = [detect(name, tmp_path / name) for name in names]
    assert len({t.device for t in targets}) == 3
    assert len({(t.sm_count, t.memory_bytes) for t in targets}) == 3


def test_a_jetson_shares_its_memory_and_a_desktop_does_not(tmp_path: Path) -> None:
    assert detect("orin-nano", tmp_path / "a").memory_bytes == 7_802_196 * 1024
    assert detect("rtx-4060", tmp_path / "b").memory_bytes == 8_188_461_056


def test_a_jetson_without_a_usable_driver_is_still_known(tmp_path: Path) -> None:
    root = DEVICE_TREES["agx-orin-jetpack6"].write(tmp_path)
    target = detect_target(root, arch="aarch64", query=lambda: None, versions=dict)
    assert (target.kind, target.device, target.sm, target.sm_count) == (
        "jetson", "agx-orin-64gb", "8.7", 16,
    )  # fmt: skip
    assert target.cuda is None


def test_an_unknown_revision_keeps_the_major_version_of_jetpack(tmp_path: Path) -> None:
    root = DEVICE_TREES["agx-orin-jetpack6"].write(tmp_path)
    release = root / "etc/nv_tegra_release"
    release.write_bytes(release.read_bytes().replace(b"4.3", b"9.9.1"))
    target = detect_target(root, query=lambda: None, versions=dict)
    assert (target.l4t, target.jetpack) == ("36.9.9.1", "6")


def test_driver_and_library_versions_are_read(tmp_path: Path) -> None:
    target = detect("rtx-4060", tmp_path, {"tensorrt_rtx": "1.7.1.116"})
    assert (target.driver, target.cuda) == ("580.65.06", "13.0")
    assert (target.tensorrt, target.tensorrt_rtx) == (None, "1.7.1.116")


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"\xff\xfe garbage", b"nvidia,\0,tegra\0"])
def test_nonsense_in_any_file_never_raises(content: bytes, tmp_path: Path) -> None:
    recorded = DEVICE_TREES["agx-xavier"]
    for position, name in enumerate(recorded.files):
        root = recorded.write(tmp_path / str(position))
        (root / name).write_bytes(content)
        target = detect_target(root, query=lambda: None, versions=dict)
        assert target.kind in {"jetson", "cpu"}


def test_a_file_that_is_a_folder_never_raises(tmp_path: Path) -> None:
    for name in DEVICE_TREES["agx-xavier"].files:
        (tmp_path / name).mkdir(parents=True)
    assert detect_target(tmp_path, query=lambda: None, versions=dict).kind == "cpu"


def test_keys_and_part_numbers_of_the_table_are_unique() -> None:
    parts = [part for device in DEVICES for part in device.part_numbers]
    assert len(parts) == len(set(parts))
    assert len({device.name for device in DEVICES}) == len(DEVICES)
    assert all(device_named(device.name) is device for device in DEVICES)


@pytest.mark.parametrize(
    ("gpu", "device"),
    [
        ("NVIDIA GeForce RTX 4060", "rtx-4060"),
        ("NVIDIA GeForce RTX 4060 Ti", "rtx-4060-ti"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", None),
        ("NVIDIA H200", None),
        ("Orin", None),
    ],
)
def test_only_the_exact_card_is_taken_for_it(gpu: str, device: str | None) -> None:
    found = device_from_gpu_name(gpu)
    assert (found and found.name) == device


def test_this_very_machine_is_detected_without_an_error() -> None:
    assert detect_target().kind in {"jetson", "desktop", "cpu"}
