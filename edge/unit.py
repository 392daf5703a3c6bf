"""The systemd unit for this machine: the shipped one with its two local lines filled in.

`install` writes one complete unit rather than a drop-in: `systemctl cat` shows everything in one
place, installing again replaces it, and the operator's own drop-ins (`systemctl edit`) survive.
systemd refuses to start a unit that names a group which does not exist (status 216/GROUP), so the
groups are computed here and not shipped.
"""

from __future__ import annotations

import grp
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from edge.errors import UsageError
from edge.files import atomic_write, storage_errors

UNIT_NAME = "edge-agent.service"
UNIT_FOLDER = "etc/systemd/system"
UNIT_PATH = f"{UNIT_FOLDER}/{UNIT_NAME}"
# Installed beside it; nothing of them runs before it is enabled.
GATE_UNIT = "edge-gate.service"
GATE_TIMER = "edge-gate.timer"
UPDATE_UNITS = ("edge-update.service", "edge-update.timer")
FURTHER_UNITS = (GATE_UNIT, GATE_TIMER, *UPDATE_UNITS)
_SHIPPED_EXECUTABLE = "/usr/bin/env edge-agent"
GPU_GROUPS = ("video", "render")
DEVICE_GLOBS = (
    "dev/nvmap",
    "dev/nvhost-*",
    "dev/nvgpu/*/*",
    "dev/nvidia*",
    "dev/dri/renderD*",
)
# The unit cannot see these: ProtectHome=yes and PrivateTmp=yes.
HIDDEN_FROM_UNIT = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - not written
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._+@/-]+")
_WORLD_READ_WRITE = stat.S_IROTH | stat.S_IWOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The text of a unit, the groups it names, and what an operator should know about it."""

    text: str
    groups: tuple[str, ...]
    warnings: tuple[str, ...]


def unit_for_machine(
    executable: PurePosixPath,
    *,
    needs: tuple[PurePosixPath, ...] = (),
    root: Path = Path("/"),
    gid_from_group: Callable[[Path], Mapping[str, int]] | None = None,
    lstat: Callable[[Path], os.stat_result] = Path.lstat,
) -> Unit:
    """Return the unit that starts executable with the groups that own this machine's GPU.

    needs: further paths that it reads, such as its interpreter and packages.
    root: where etc/group and dev/ are looked up, for preparing an image.
    Raises UsageError if systemd could not start the executable by this path.
    """
    if _PLAIN_PATH.fullmatch(str(executable)) is None:
        raise UsageError(
            f"cannot start {str(executable)!r} from a unit: the path must be absolute and hold "
            "only letters, digits and ._+@-; install into a plain path such as /opt/edge-kit"
        )
    gids = (gid_from_group or _gid_from_group)(root)
    name_from_gid = {gid: name for name, gid in reversed(list(gids.items()))}
    wanted = {name for name in GPU_GROUPS if name in gids}
    warnings = [
        f"{path} is below {top}, which the unit cannot see; install edge-kit below /opt or /usr"
        for path in (executable, *needs)
        for top in HIDDEN_FROM_UNIT
        if path.is_relative_to(top)
    ]
    for node, status in device_nodes(root, lstat):
        if status.st_gid != 0:
            wanted.add(name_from_gid.get(status.st_gid, str(status.st_gid)))
        elif status.st_mode & _WORLD_READ_WRITE != _WORLD_READ_WRITE:
            warnings.append(f"{node} belongs to root alone; give it to group video by a udev rule")
    groups = tuple(sorted(wanted))
    text = _with_line(shipped_unit(), "ExecStart=", f"{executable} serve")
    text = _with_line(text, "SupplementaryGroups=", " ".join(groups))
    text = text.replace(_SHIPPED_EXECUTABLE, str(executable))
    return Unit(text=text, groups=groups, warnings=tuple(warnings))


def install(unit: Unit, root: Path) -> bool:
    """Write the unit below root; return False if the same text is there already."""
    return install_text(unit.text, UNIT_NAME, root)


def further_unit(name: str, executable: PurePosixPath) -> str:
    """Return the text of another shipped unit, for the executable that `unit_for_machine` took."""
    return shipped_unit(name).replace(_SHIPPED_EXECUTABLE, str(executable))


def install_text(text: str, name: str, root: Path) -> bool:
    """Write the text of a unit below root; return False if the same text is there already.

    Raises UsageError if the place holds a link (a masked unit), StorageError if writing fails.
    """
    path = root / UNIT_FOLDER / name
    if path.is_symlink():
        raise UsageError(f"{path} is a link, so the unit is masked or kept elsewhere; remove it")
    content = text.encode()
    with storage_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.read_bytes() == content:
            return False
    atomic_write(path, content)
    return True


def shipped_unit(name: str = UNIT_NAME) -> str:
    """Return a unit as the package carries it."""
    return resources.files("edge").joinpath(name).read_text(encoding="utf-8")


def _with_line(text: str, key: str, value: str) -> str:
    changed, count = re.subn(rf"(?m)^{key}.*$", lambda _: key + value, text)
    assert count == 1, f"the shipped unit has {count} lines {key}"  # noqa: S101
    return changed


def group_names(root: Path) -> dict[int, str]:
    """Return the name of each group id of the system at root."""
    return {gid: name for name, gid in reversed(list(_gid_from_group(root).items()))}


def _gid_from_group(root: Path) -> dict[str, int]:
    if root == Path("/"):
        return {group.gr_name: group.gr_gid for group in grp.getgrall()}
    path = root / "etc/group"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    fields = [line.split(":") for line in lines]
    return {name: int(gid) for name, _, gid, *_ in (f for f in fields if len(f) == 4)}


def device_nodes(
    root: Path, lstat: Callable[[Path], os.stat_result]
) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the GPU's nodes; character devices only, since a link could lead to any file."""
    for pattern in DEVICE_GLOBS:
        for path in sorted(root.glob(pattern)):
            status = lstat(path)
            if stat.S_ISCHR(status.st_mode):
                yield path, status
