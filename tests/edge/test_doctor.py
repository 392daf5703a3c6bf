"""The doctor on recorded devices: what it calls a problem, and the way out it names."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from edge.config import AgentConfig
from edge.doctor import Finding, Machine, examine
from edge.probes.sample import Sample
from edge.target import Target, detect_target
from tests.edge.device_trees import DEVICE_TREES

VIDEO, RENDER = 44, 104


def node(gid: int, mode: int) -> os.stat_result:
    return os.stat_result((stat.S_IFCHR | mode, 0, 0, 0, 0, gid, 0, 0, 0, 0))


def machine(root: Path, **changes: object) -> Machine:
    values: dict[str, object] = {
        "root": root,
        "groups": lambda: frozenset({1000, VIDEO}),
        "is_root": False,
        "lstat": lambda path: node(VIDEO, 0o660),
        "sample": lambda: Sample(memory_available_bytes=8 << 30),
        "free_bytes": lambda path: 64 << 30,
        "server_build": lambda: None,
    }
    return Machine(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """A file tree with the device nodes, groups, power mode and clocks of an AGX Orin."""
    root = DEVICE_TREES["agx-orin-jetpack6"].write(tmp_path / "root")
    files = {
        "dev/nvmap": "", "dev/nvhost-gpu": "", "dev/dri/renderD128": "",
        "etc/group": f"root:x:0:\nvideo:x:{VIDEO}:me\nrender:x:{RENDER}:\n",
        "var/lib/nvpmodel/status": "pmode:0002",
        "sys/class/devfreq/17000000.gpu/cur_freq": "306000000",
        "sys/class/devfreq/17000000.gpu/max_freq": "612000000",
        "sys/class/devfreq/17000000.gpu/available_frequencies": "306000000 612000000 1300500000",
    }  # fmt: skip
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def target(name: str, root: Path, *, tensorrt: str | None = "10.3.0", **changes: object) -> Target:
    recorded = DEVICE_TREES[name]
    values: dict[str, object] = {"query": lambda: recorded.gpu, "problem": lambda: "no driver"}
    versions = {"onnxruntime": "1.23.2", **({"tensorrt": tensorrt} if tensorrt else {})}
    return detect_target(
        root,
        arch=recorded.arch,
        versions=lambda: versions,
        **{**values, **changes},  # type: ignore[arg-type]
    )


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return AgentConfig(cache=tmp_path / "cache", trusted_keys=tmp_path / "keys", port=0)


def found(findings: tuple[Finding, ...], name: str) -> list[Finding]:
    return [finding for finding in findings if finding.name == name]


def problems(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.name for finding in findings if finding.state == "problem"]


def test_a_healthy_device_has_no_problem_and_is_described(orin: Path, config: AgentConfig) -> None:
    findings = examine(target("agx-orin-jetpack6", orin), config, machine(orin))
    assert problems(findings) == []
    (device,) = found(findings, "device")
    for word in ("AGX Orin", "SM 8.7, 16 SMs", "L4T 36.4.3, JetPack 6.2", "agx-orin-64gb"):
        assert word in device.detail
    assert found(findings, "tensorrt")[0].detail == "TensorRT 10.3.0"
    assert found(findings, "permissions")[0].detail == "3 device nodes can be opened"
    assert found(findings, "power mode")[0].detail == "nvpmodel 0002"


def test_a_group_that_the_user_is_not_in_is_named_with_the_command(
    orin: Path, config: AgentConfig
) -> None:
    def lstat(path: Path) -> os.stat_result:
        return node(RENDER if "renderD" in path.name else VIDEO, 0o660)

    findings = examine(target("agx-orin-jetpack6", orin), config, machine(orin, lstat=lstat))
    (closed,) = found(findings, "permissions")
    assert closed.state == "problem"
    assert "/dev/dri/renderD128: group render" in closed.detail
    assert "usermod -aG render" in closed.help
    as_root = machine(orin, lstat=lstat, is_root=True)
    assert problems(examine(target("agx-orin-jetpack6", orin), config, as_root)) == []


def test_nodes_of_root_alone_need_a_rule(orin: Path, config: AgentConfig) -> None:
    closed = machine(orin, lstat=lambda path: node(0, 0o600))
    findings = examine(target("agx-orin-jetpack6", orin), config, closed)
    assert "udev rule" in found(findings, "permissions")[0].help


def test_a_driver_that_may_not_open_its_nodes_is_explained(orin: Path, config: AgentConfig) -> None:
    denied = target(
        "agx-orin-jetpack6", orin, query=lambda: None,
        problem=lambda: "the CUDA driver refuses with error 999; check nvidia-smi",
    )  # fmt: skip
    (cuda,) = found(examine(denied, config, machine(orin)), "cuda")
    assert cuda.state == "problem"
    assert "/dev/nvmap" in cuda.help


def test_a_server_build_of_tensorrt_on_a_jetson_is_that_mistake(
    orin: Path, config: AgentConfig
) -> None:
    wrong = machine(orin, server_build=lambda: "tensorrt-cu12-libs")
    (tensorrt,) = found(examine(target("agx-orin-jetpack6", orin), config, wrong), "tensorrt")
    assert tensorrt.state == "problem"
    assert "server build" in tensorrt.detail
    assert "apt install python3-libnvinfer" in tensorrt.help


def test_a_jetson_without_tensorrt_has_a_problem_a_desktop_without_a_gpu_has_none(
    orin: Path, config: AgentConfig, tmp_path: Path
) -> None:
    bare = target("agx-orin-jetpack6", orin, tensorrt=None)
    assert problems(examine(bare, config, machine(orin))) == ["tensorrt"]
    root = DEVICE_TREES["no-gpu"].write(tmp_path / "cpu")
    cpu = target("no-gpu", root, tensorrt=None)
    findings = examine(cpu, config, machine(root))
    assert problems(findings) == []
    assert [f.state for f in findings if f.name in {"cuda", "tensorrt"}] == ["warning", "warning"]


def test_a_clock_limit_below_the_highest_is_a_warning(orin: Path, config: AgentConfig) -> None:
    (clocks,) = found(examine(target("agx-orin-jetpack6", orin), config, machine(orin)), "clocks")
    assert clocks.detail == "GPU at 306 MHz, may reach 612 of 1300 MHz"
    assert (clocks.state, "nvpmodel -m 0" in clocks.help) == ("warning", True)


def test_low_memory_low_disk_a_taken_port_and_missing_keys_are_warnings(
    orin: Path, config: AgentConfig, tmp_path: Path
) -> None:
    low = machine(
        orin, sample=lambda: Sample(memory_available_bytes=1 << 20), free_bytes=lambda path: 1 << 20
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = AgentConfig(
            cache=config.cache, trusted_keys=config.trusted_keys, port=taken.getsockname()[1]
        )
        findings = examine(target("agx-orin-jetpack6", orin), busy, low)
    warned = {finding.name for finding in findings if finding.state == "warning"}
    assert {"memory", "disk", "port", "trusted keys"} <= warned
    assert all(finding.help for finding in findings if finding.state != "ok")


@pytest.mark.parametrize("name", DEVICE_TREES)
def test_every_recorded_device_is_examined_without_an_error(
    name: str, tmp_path: Path, config: AgentConfig
) -> None:
    root = DEVICE_TREES[name].write(tmp_path / "root")
    findings = examine(target(name, root), config, machine(root))
    assert {"device", "cuda", "tensorrt", "memory", "port"} <= {f.name for f in findings}
