"""The same layout in a mounted root file system or SD card, for NVIDIA's own flash tools.

Nothing of the image is run: it may be for another architecture. What a program of the device must
do (its venv, its units, the trial of the bundle) is done at the first boot by edge-setup.service.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from edge.errors import UsageError
from edge.files import storage_errors
from host_tools.flash.device.facts import (
    JETPACK_FROM_L4T,
    PAYLOAD,
    current_agent,
    described,
    l4t_release,
    refusal,
)
from host_tools.flash.device.files import StopError, free_bytes, resolved
from host_tools.flash.device.steps import Setup
from host_tools.flash.flash import Json, Say
from host_tools.flash.payload import Payload

# e_machine of an ELF header, by platform.machine().
_ARCH_FROM_ELF = {0xB7: "aarch64", 0x3E: "x86_64"}
_ELF_MAGIC = b"\x7fELF"
_E_MACHINE = slice(18, 20)
_GLIBC = re.compile(rb"GNU C Library[^\n]*version (\d+\.\d+)")
_LIB64 = ("usr/lib64", "libc.so.6")
MAX_LIBC_BYTES = 8 << 20


def flash_image(payload: Payload, image: Path, *, dry_run: bool, say: Say) -> Json:
    """Write a payload into an image and return the report, as `flash` does for a device."""
    with storage_errors("read", image):
        if not image.is_dir():
            raise UsageError(f"{image} is no folder; mount the image and give its mount point")
        if image.samefile("/"):
            raise UsageError(
                f"--image {image} is the root of this very machine; flash that over SSH, or give "
                "the mount point of another system"
            )
        image = image.resolve()
    before = os.umask(0o022)
    try:
        with storage_errors("write", image):
            return _placed(payload, image, dry_run=dry_run, say=say)
    except StopError as error:
        raise UsageError(f"{error}; mend the image") from error
    finally:
        os.umask(before)


def _placed(payload: Payload, image: Path, *, dry_run: bool, say: Say) -> Json:
    device = image_facts(image)
    say(f"image: {described(device)}")
    reason = refusal(device, json.loads(payload.content))
    if reason is not None:
        return {"state": "refused", "changed": False, "steps": [], "reason": reason}
    folder = resolved(image, PAYLOAD)
    for name in payload.sources:
        parent = (PurePosixPath(PAYLOAD) / name).parent
        if resolved(image, str(parent)) != folder / PurePosixPath(name).parent:
            raise UsageError(f"{image / parent} is a link, where files are to be put; remove it")
    setup = Setup(folder, payload.content, image, say=say, dry_run=dry_run)
    if not dry_run:
        payload.write(folder)
    try:
        setup.place()
    except StopError as stop:
        return {"state": stop.state, "changed": True, "steps": setup.steps, "reason": str(stop)}
    return {"state": "placed", "changed": setup.changed, "steps": setup.steps}


def image_facts(image: Path) -> dict[str, Any]:
    """Return of an image what `device.facts` tells of a device; raises UsageError if it is none."""
    programs = {
        match[1]: path
        for path in sorted(resolved(image, "usr/bin").glob("python3.*"))
        if (match := re.fullmatch(r"python(3\.\d+)", path.name))
    }
    if not programs or not resolved(image, "etc").is_dir():
        raise UsageError(
            f"{image} is no root file system with Python: there is no usr/bin/python3.*; mount "
            "the image and give its mount point"
        )
    arches = {_arch(_followed(image, path)) for path in programs.values()} - {None}
    l4t = l4t_release(image)
    return {
        "arch": next(iter(arches), "unknown"),
        "pythons": {version: f"/usr/bin/{path.name}" for version, path in programs.items()},
        "glibc": _glibc(image) or "",
        "l4t": l4t,
        "jetpack": JETPACK_FROM_L4T.get(l4t.partition(".")[0], "?") if l4t else None,
        "gpus": [],
        "free_bytes": {name: free_bytes(resolved(image, name)) for name in ("opt", "var")},
        "agent": current_agent(image),
        "blobs": [],
        "sudo": True,
    }


def _followed(image: Path, path: Path) -> Path:
    return resolved(image, str(path.relative_to(image)))


def _arch(program: Path) -> str | None:
    with program.open("rb") as file:
        head = file.read(_E_MACHINE.stop)
    if not head.startswith(_ELF_MAGIC):
        return None
    return _ARCH_FROM_ELF.get(int.from_bytes(head[_E_MACHINE], "little"))


def _glibc(image: Path) -> str | None:
    for folder, pattern in (("usr/lib", "*/libc.so.6"), ("lib", "*/libc.so.6"), _LIB64):
        for path in sorted(resolved(image, folder).glob(pattern)):
            with _followed(image, path).open("rb") as file:
                match = _GLIBC.search(file.read(MAX_LIBC_BYTES))
            if match is not None:
                return match[1].decode()
    return None
