"""What a device is, and why a payload cannot be set up on it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from host_tools.flash.device.files import (
    SPARE_BYTES,
    Json,
    digest_of,
    free_bytes,
    linked,
    resolved,
    text_of,
)

SCHEMA = 1
PAYLOAD = "var/lib/edge-kit/payload"
AGENTS = "opt/edge-kit/agents"
CURRENT = "opt/edge-kit/current"
SLOTS = "var/lib/edge"
# The venv of an agent is 3.5 times as large as its wheels, which lie beside it until it is made.
UNPACKED = 4
PROBE_S = 20.0
JETPACK_FROM_L4T = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}
_PYTHON_OF_JETPACK = {"4": "3.6", "5": "3.8"}
_RELEASE = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_PACKAGE = re.compile(r"^Package: nvidia-l4t-core$.*?^Version: ([\d.]+)", re.M | re.S)


def facts(root: Path) -> Json:
    """Return what decides whether and how this device can be set up; writes nothing.

    root: of the system to look at; programs are those of this one.
    """
    l4t = l4t_release(root)
    is_root = os.geteuid() == 0
    return {
        "schema": SCHEMA,
        "arch": platform.machine(),
        "pythons": _pythons(),
        "glibc": (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")[2],
        "l4t": l4t,
        "jetpack": JETPACK_FROM_L4T.get(l4t.partition(".")[0], "?") if l4t else None,
        "gpus": _gpus(root),
        "tensorrt": any(root.glob("usr/lib/python3*/dist-packages/tensorrt/__init__.py")),
        "free_bytes": {name: free_bytes(root / name) for name in ("opt", "var")},
        "agent": current_agent(root),
        "blobs": sorted(path.name for path in root.glob(SLOTS + "/blobs/sha256/*")),
        "payload": digest_of(root / PAYLOAD / "payload.json"),
        "root": is_root,
        "sudo": is_root or _answer(["sudo", "-n", "true"]) is not None,
    }


def current_agent(root: Path) -> Optional[str]:
    """Return what names the agent that is in use."""
    folder, _, name = CURRENT.rpartition("/")
    target = linked(resolved(root, folder) / name)
    return None if target is None else target.rpartition("/")[2]


def refusal(device: Json, wanted: Json) -> Optional[str]:
    """Return why a payload cannot be set up on a device, None if it can; pure."""
    old_python = _PYTHON_OF_JETPACK.get(device["jetpack"])
    if old_python is not None:
        return (
            "JetPack {} (L4T {}) has Python {}, and TensorRT's bindings for it alone; the agent "
            "needs Python 3.10, so run it in a container: docs/flash.md, 'JetPack 5'".format(
                device["jetpack"], device["l4t"], old_python
            )
        )
    if device["arch"] != wanted["arch"]:
        return (
            "the wheelhouse is for {}, the device is {}; make another one: edge-kit wheelhouse "
            "--for {} --python {}".format(
                wanted["arch"], device["arch"], device["arch"], wanted["python"]
            )
        )
    if wanted["python"] not in device["pythons"]:
        return (
            "there is no Python {} with venv, but {}; install it, or make a wheelhouse with "
            "--python for one that is there, 3.10 or newer".format(
                wanted["python"], ", ".join(sorted(device["pythons"])) or "none"
            )
        )
    if _version(device["glibc"]) < _version(wanted["glibc"]):
        return "the wheels need glibc {}, the device has {}; its system is too old".format(
            wanted["glibc"], device["glibc"] or "none"
        )
    if not device["sudo"]:
        return "the account is not root, and `sudo -n true` fails; let it use sudo unasked"
    return _lack_of_space(device, wanted)


def _lack_of_space(device: Json, wanted: Json) -> Optional[str]:
    wheels = 0
    if device["agent"] != wanted["agent"]:
        wheels = sum(f["size"] for f in wanted["files"] if f["path"].startswith("wheels/"))
    there = set(device["blobs"])
    blobs = sum(b["size"] for b in wanted["blobs"] if b["always"] and b["sha256"] not in there)
    # A blob is in the payload and in a slot for as long as it is being installed.
    for folder, needed in (("opt", wheels * UNPACKED), ("var", wheels + 2 * blobs)):
        free = device["free_bytes"][folder]
        if needed and free < needed + SPARE_BYTES:
            return "/{} has {} MiB free, and {} MiB are needed; make space".format(
                folder, free >> 20, (needed + SPARE_BYTES >> 20) + 1
            )
    return None


def described(device: Json) -> str:
    """Return a device in a few words."""
    parts = [device["arch"]]
    if device["l4t"]:
        parts.append("JetPack {} (L4T {})".format(device["jetpack"], device["l4t"]))
    parts.append("Python " + ", ".join(sorted(device["pythons"], key=_version)))
    parts.append(", ".join(device["gpus"]) or "no NVIDIA GPU")
    parts.append("{} MiB free".format(device["free_bytes"]["var"] >> 20))
    return "; ".join(parts)


def _version(text: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _pythons() -> Dict[str, str]:
    """Return the path of each Python that can make a venv, by version; the system's own first."""
    found: Dict[str, str] = {}
    path = "/usr/bin:/usr/local/bin:" + os.environ.get("PATH", "")
    for name in ["python3"] + ["python3.{}".format(minor) for minor in range(8, 20)]:
        program = shutil.which(name, path=path)
        code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
        version = program and _answer([program, "-c", code])
        if program and version:
            found.setdefault(version, program)
    return found


def _answer(command: List[str]) -> Optional[str]:
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.decode().strip() if result.returncode == 0 else None


def l4t_release(root: Path) -> Optional[str]:
    """Return the Linux for Tegra release, as `edge.target` finds it."""
    match = _RELEASE.search(text_of(resolved(root, "etc/nv_tegra_release")) or "")
    if match:
        return "{}.{}".format(*match.groups())
    match = _PACKAGE.search(text_of(resolved(root, "var/lib/dpkg/status")) or "")
    return match.group(1).rstrip(".") if match else None


def _gpus(root: Path) -> List[str]:
    chip = text_of(root / "proc/device-tree/compatible") or ""
    if "nvidia,tegra" in chip:
        return [text_of(root / "proc/device-tree/model") or "Jetson"]
    told = (text_of(path) or "" for path in root.glob("proc/driver/nvidia/gpus/*/information"))
    models = (re.search(r"Model:\s*(.+)", text) for text in told)
    return [model.group(1).strip() for model in models if model]
