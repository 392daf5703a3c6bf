"""What stands between this machine and serving on its GPU, with the command that helps.

Every source is a file below `root` or a function given in, so that any device can be examined.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge.config import AgentConfig
from edge.errors import EdgeError, os_reason
from edge.installed import server_build_of_tensorrt
from edge.probes.host import PsutilProbe
from edge.probes.sample import Sample
from edge.sysfs import number_of, text_of
from edge.target import Target
from edge.trust import trusted_keys_in
from edge.unit import device_nodes, group_names

State = Literal["ok", "warning", "problem"]

LOW_MEMORY_BYTES = 1 << 30
LOW_DISK_BYTES = 2 << 30
_DEVFREQ = ("sys/class/devfreq/*gpu*", "sys/class/devfreq/gpu-gpc-0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. help: what to do about it, empty when it is fine."""

    name: str
    state: State
    detail: str
    help: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the checks ask of the machine; tests replace it."""

    root: Path = Path("/")
    groups: Callable[[], frozenset[int]] = lambda: frozenset((os.getegid(), *os.getgroups()))
    is_root: bool = os.geteuid() == 0
    lstat: Callable[[Path], os.stat_result] = Path.lstat
    sample: Callable[[], Sample] = lambda: PsutilProbe().read()
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    server_build: Callable[[], str | None] = server_build_of_tensorrt


def examine(target: Target, config: AgentConfig, machine: Machine) -> tuple[Finding, ...]:
    """Return every finding, in the order in which a person would look."""
    checks = (
        _device(target),
        _driver(target),
        _tensorrt(target, machine),
        _onnxruntime(target),
        *_permissions(machine),
        *_clocks(target, machine),
        _memory(machine),
        _disk(config, machine),
        _keys(config),
        _port(config),
    )
    return tuple(finding for finding in checks if finding is not None)


def _ok(name: str, detail: str) -> Finding:
    return Finding(name=name, state="ok", detail=detail)


def _device(target: Target) -> Finding:
    parts = [target.name]
    if target.sm is not None:
        count = "" if target.sm_count is None else f", {target.sm_count} SMs"
        parts.append(f"SM {target.sm}{count}")
    if target.l4t is not None:
        parts.append(
            f"L4T {target.l4t}" + (f", JetPack {target.jetpack}" if target.jetpack else "")
        )
    if target.device is not None:
        parts.append(f"target {target.device}")
    return _ok("device", "; ".join(parts))


def _driver(target: Target) -> Finding:
    if target.cuda is not None:
        driver = f"driver {target.driver}, " if target.driver else ""
        return _ok("cuda", f"{driver}runs CUDA {target.cuda}")
    problem, _, way_out = (target.cuda_problem or "no device").partition("; ")
    if target.kind == "jetson" and "999" in problem:
        way_out = "join the groups that own /dev/nvmap and /dev/nvhost*, see below"
    # A machine without a GPU serves on the CPU: that is not broken.
    state: State = "problem" if target.kind == "jetson" or target.driver else "warning"
    return Finding(name="cuda", state=state, detail=problem, help=way_out)


def _tensorrt(target: Target, machine: Machine) -> Finding:
    server_build = machine.server_build()
    if target.kind == "jetson" and server_build is not None:
        return Finding(
            name="tensorrt",
            state="problem",
            detail=f"{server_build} is the server build of TensorRT, which refuses Jetson's GPU",
            help="pip uninstall it; apt install python3-libnvinfer, and make the venv with "
            "--system-site-packages",
        )
    found = {"TensorRT": target.tensorrt, "TensorRT-RTX": target.tensorrt_rtx}
    versions = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if versions:
        return _ok("tensorrt", versions)
    on_gpu = target.cuda is not None or target.kind == "jetson"
    return Finding(
        name="tensorrt",
        state="problem" if on_gpu else "warning",
        detail="neither TensorRT nor TensorRT-RTX is installed",
        help="apt install python3-libnvinfer, and make the venv with --system-site-packages"
        if target.kind == "jetson"
        else "pip install 'edge-kit[rtx]'",
    )


def _onnxruntime(target: Target) -> Finding:
    if target.onnxruntime is not None:
        return _ok("onnxruntime", target.onnxruntime + (", CUDA" * target.onnxruntime_cuda))
    return Finding(
        name="onnxruntime",
        state="warning",
        detail="not installed, so nothing serves when no engine opens",
        help="pip install 'edge-kit[ort]'",
    )


def _permissions(machine: Machine) -> Iterator[Finding]:
    """Yield what keeps this account from the device nodes of the GPU."""
    mine, names = machine.groups(), group_names(machine.root)
    closed: dict[int, list[str]] = {}
    seen = 0
    for path, status in device_nodes(machine.root, machine.lstat):
        seen += 1
        may = status.st_mode & stat.S_IROTH and status.st_mode & stat.S_IWOTH
        if not (may or machine.is_root or status.st_gid in mine):
            closed.setdefault(status.st_gid, []).append(f"/{path.relative_to(machine.root)}")
    for gid, paths in sorted(closed.items()):
        group = names.get(gid, str(gid))
        few = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        way_out = (
            f"sudo usermod -aG {group} $USER, then log in again; the unit of `edge-agent "
            "install-unit` names the group itself"
            if gid
            else "they belong to root alone: add a udev rule that gives them to group video"
        )
        yield Finding(
            name="permissions",
            state="problem",
            detail=f"{few}: group {group}, and you are not in it",
            help=way_out,
        )
    if seen and not closed:
        yield _ok("permissions", f"{seen} device nodes can be opened")


def _clocks(target: Target, machine: Machine) -> Iterator[Finding]:
    """Yield power mode and clock limits: an engine timed at full power is slower below it."""
    mode = text_of(machine.root / "var/lib/nvpmodel/status")
    if mode is not None:
        yield _ok("power mode", f"nvpmodel {mode.removeprefix('pmode:')}")
    for pattern in _DEVFREQ:
        for folder in sorted(machine.root.glob(pattern)):
            limits = [number_of(folder / name) for name in ("cur_freq", "max_freq")]
            highest = max(map(int, (text_of(folder / "available_frequencies") or "0").split()))
            current, allowed = limits
            if current is None or allowed is None:
                continue
            detail = f"GPU at {current // 10**6} MHz, may reach {allowed // 10**6}"
            if highest > allowed:
                yield Finding(
                    name="clocks",
                    state="warning",
                    detail=f"{detail} of {highest // 10**6} MHz",
                    help="sudo nvpmodel -m 0 for full power, if cooling and supply allow",
                )
            else:
                yield _ok("clocks", detail)


def _memory(machine: Machine) -> Finding:
    available = machine.sample().memory_available_bytes
    if available is None:
        return Finding(name="memory", state="warning", detail="the system does not tell", help="")
    detail = f"{available >> 20} MiB available"
    if available >= LOW_MEMORY_BYTES:
        return _ok("memory", detail)
    return Finding(
        name="memory",
        state="warning",
        detail=detail,
        help="stop other programs, or the desktop: sudo systemctl isolate multi-user.target",
    )


def _disk(config: AgentConfig, machine: Machine) -> Finding:
    folder = next(p for p in (config.cache, *config.cache.parents) if p.exists())
    free = machine.free_bytes(folder)
    detail = f"{free >> 20} MiB free for engines at {config.cache}"
    if free >= LOW_DISK_BYTES:
        return _ok("disk", detail)
    return Finding(
        name="disk", state="warning", detail=detail, help="free some, or set cache to another disk"
    )


def _keys(config: AgentConfig) -> Finding:
    try:
        keys = trusted_keys_in(config.trusted_keys)
        if keys:
            return _ok("trusted keys", f"{len(keys)} in {config.trusted_keys}")
        detail = f"none in {config.trusted_keys}, so no bundle is accepted"
    except EdgeError as error:
        detail = str(error)
    return Finding(
        name="trusted keys",
        state="warning",
        detail=detail,
        help=f"copy the .pub file of `edge-kit keygen` to {config.trusted_keys}",
    )


def _port(config: AgentConfig) -> Finding:
    try:
        address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[4][:2], family=address[0]).close()
    except OSError as error:
        return Finding(
            name="port",
            state="warning",
            detail=f"{config.host}:{config.port}: {os_reason(error)}",
            help="an agent that runs already is fine; else choose another port",
        )
    return _ok("port", f"{config.host}:{config.port} is free")
