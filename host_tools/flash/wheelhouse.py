"""A wheelhouse: every wheel that the agent needs on a device without a network.

    wheelhouse.json    for which machine, and the digest of each wheel
    NAME.whl           the agent, what it imports, and pip, which need not be on the device

`pip download` judges a requirement's markers by the Python that runs it, and so forgets what only
an older Python needs. Here they are judged again for the device, until nothing is missing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

import edge
from edge.errors import EdgeError, StorageError, UsageError
from edge.files import atomic_directory, read_capped, sha256_of
from host_tools.flash import DEFAULT_EXTRAS

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Arch = Literal["aarch64", "x86_64"]
Say = Callable[[str], None]

DOCUMENT_NAME = "wheelhouse.json"
SCHEMA = 1
# Debian 11, Ubuntu 20.04. A wheel for a newer glibc is passed over for an older release.
NEWEST_GLIBC = (2, 31)
MAX_DOCUMENT_BYTES = 1 << 20
MAX_ROUNDS = 5
SOURCES = ("edge", "host_tools", "calibration", "setup.py", "pyproject.toml", "README.md")
_LEGACY_GLIBC = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
_FIRST_GLIBC = (2, 5)
_EPOCH = "315532800"  # of the oldest date that a zip can hold: the same sources, the same bytes


class WheelhouseError(EdgeError):
    """A wheelhouse cannot be made, or is incomplete."""

    code = "wheelhouse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One file of a wheelhouse."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheelhouse:
    """The content of wheelhouse.json. glibc: the oldest that every wheel runs with."""

    schema: int
    arch: Arch
    python: str
    glibc: str
    wheels: tuple[Wheel, ...]

    @property
    def agent(self) -> str:
        """Return what names an agent that is made of these wheels."""
        encoded = msgspec.json.encode([(w.name, w.sha256) for w in self.wheels])
        return hashlib.sha256(encoded).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelhousePlan:
    """What would be downloaded, with all that it needs. wanted: as pip is asked for it."""

    out: Path
    arch: Arch
    python: str
    wanted: tuple[str, ...]


def open_wheelhouse(folder: Path) -> Wheelhouse:
    """Return what a folder holds; raises WheelhouseError unless every wheel is there, unaltered."""
    if not (folder / DOCUMENT_NAME).is_file():
        raise WheelhouseError(
            f"{folder} is no wheelhouse; make one with `edge-kit wheelhouse --for aarch64 "
            f"--python 3.10 --out {folder}`"
        )
    content = read_capped(folder / DOCUMENT_NAME, max_bytes=MAX_DOCUMENT_BYTES)
    try:
        house = msgspec.json.decode(content, type=Wheelhouse)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise WheelhouseError(f"{folder / DOCUMENT_NAME}: {error}; make it again") from error
    for wheel in house.wheels:
        if "/" in wheel.name or not wheel.name.endswith(".whl"):
            raise WheelhouseError(f"{folder}: {wheel.name!r} is no wheel; make it again")
        if sha256_of(folder / wheel.name, max_bytes=wheel.size) != (wheel.sha256, wheel.size):
            raise WheelhouseError(f"{folder / wheel.name} was altered; make the wheelhouse again")
    return house


def planned_wheelhouse(
    out: Path,
    *,
    arch: Arch,
    python: str,
    extras: tuple[str, ...] = DEFAULT_EXTRAS,
    wheels: tuple[Path, ...] = (),
    constraint: Path | None = None,
) -> WheelhousePlan:
    """Return what `make_wheelhouse` would ask for; raises what it would raise for its arguments."""
    _check(out, python, wheels, constraint)
    own = next((str(w) for w in wheels if _is_own(w)), f"edge-kit=={edge.__version__}")
    others = (str(wheel) for wheel in wheels if not _is_own(wheel))
    wanted = (f"{own}[{','.join(extras)}]", "pip", *others)
    return WheelhousePlan(out=out, arch=arch, python=python, wanted=wanted)


def make_wheelhouse(
    out: Path,
    *,
    arch: Arch,
    python: str,
    extras: tuple[str, ...] = DEFAULT_EXTRAS,
    wheels: tuple[Path, ...] = (),
    constraint: Path | None = None,
    say: Say = lambda line: None,
) -> Wheelhouse:
    """Download what the agent needs into the new folder out.

    extras: of edge-kit, such as rtx. wheels: files of your own, such as a PyCUDA built on a
    Jetson; one of edge-kit stands for this installation.
    """
    _check(out, python, wheels, constraint)
    with atomic_directory(out) as folder, tempfile.TemporaryDirectory() as scratch:
        own = next(filter(_is_own, wheels), None)
        agent = own or _agent_wheel(Path(scratch))
        wanted = [f"{agent}[{','.join(extras)}]", "pip", *(str(w) for w in wheels if w != own)]
        for _ in range(MAX_ROUNDS):
            _download(folder, wanted, arch, python, constraint)
            missing = sorted(set(_missing(folder, _marker_environment(arch, python), extras)))
            if not missing:
                break
            say(f"also for Python {python} on {arch}: {', '.join(missing)}")
            wanted += missing
        else:
            raise WheelhouseError(f"still missing: {', '.join(missing)}; give them with --wheel")
        house = _described(folder, arch, python)
        (folder / DOCUMENT_NAME).write_bytes(msgspec.json.encode(house) + b"\n")
    return house


def _check(out: Path, python: str, wheels: tuple[Path, ...], constraint: Path | None) -> None:
    if re.fullmatch(r"3\.1\d", python) is None:
        raise UsageError(f"--python {python}: the agent needs Python 3.10 to 3.19")
    for path in (*wheels, *(() if constraint is None else (constraint,))):
        if not path.is_file():
            raise UsageError(f"{path} is no file; give a wheel, or versions as for `pip -c`")
    if os.path.lexists(out):
        raise StorageError(f"{out} exists; remove it or give another --out")


def _is_own(wheel: Path) -> bool:
    return wheel.name.startswith("edge_kit-")


def _described(folder: Path, arch: Arch, python: str) -> Wheelhouse:
    wheels = []
    for path in sorted(folder.glob("*.whl")):
        digest, size = sha256_of(path)
        wheels.append(Wheel(name=path.name, size=size, sha256=digest))
    glibc = max(_glibc_of(wheel.name) for wheel in wheels)
    return Wheelhouse(
        schema=SCHEMA,
        arch=arch,
        python=python,
        glibc=".".join(map(str, glibc)),
        wheels=tuple(wheels),
    )


def _download(
    folder: Path, wanted: list[str], arch: Arch, python: str, constraint: Path | None
) -> None:
    major, newest = NEWEST_GLIBC
    tags = [f"manylinux_{major}_{minor}_{arch}" for minor in range(_FIRST_GLIBC[1], newest + 1)]
    tags += [f"{name}_{arch}" for name in _LEGACY_GLIBC] + [f"linux_{arch}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command += ["--abi", f"cp{python.replace('.', '')}", "--abi", "abi3", "--abi", "none"]
    command += [word for tag in reversed(tags) for word in ("--platform", tag)]
    command += [] if constraint is None else ["--constraint", str(constraint)]
    _pip([*command, *wanted], "download the wheels")


def _agent_wheel(scratch: Path) -> Path:
    """Build the wheel of this checkout, from a copy: a build leaves files behind."""
    root = Path(edge.__file__).parents[1]
    if not (root / "setup.py").is_file():
        raise UsageError(
            "this edge-kit was not installed from its sources, so it cannot make its own wheel; "
            "give the one that it was installed from with --wheel edge_kit-VERSION-py3-none-any.whl"
        )
    sources = scratch / "sources"
    sources.mkdir()
    for name in SOURCES:
        path = root / name
        if path.is_dir():
            shutil.copytree(
                path, sources / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=False
            )
        else:
            shutil.copyfile(path, sources / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    _pip([*command, "--wheel-dir", str(scratch), str(sources)], "build the agent's wheel")
    return next(scratch.glob("edge_kit-*.whl"))


def _pip(command: list[str], action: str) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise WheelhouseError(f"cannot {action}: {reason.removeprefix('ERROR: ')}")


def _marker_environment(arch: Arch, python: str) -> dict[str, str]:
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": arch,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def _missing(folder: Path, environment: dict[str, str], extras: tuple[str, ...]) -> Iterator[str]:
    """Yield the requirements of a wheelhouse that no wheel in it fulfils."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name, parse_wheel_filename

    paths = sorted(folder.glob("*.whl"))
    there = {parse_wheel_filename(path.name)[0]: path for path in paths}
    asked = [(path, "") for path in paths]
    asked += [(there[canonicalize_name("edge-kit")], extra) for extra in extras]
    seen = set(asked)
    while asked:
        path, extra = asked.pop()
        for text in _requirements(path):
            requirement = Requirement(text)
            if not _applies(requirement, {**environment, "extra": extra}):
                continue
            found = there.get(canonicalize_name(requirement.name))
            if found is None:
                yield f"{requirement.name}{requirement.specifier}"
                continue
            new = {(found, name) for name in requirement.extras} - seen
            seen |= new
            asked += sorted(new)


def _applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


def _requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode("utf-8", "replace")
    return HeaderParser().parsestr(text).get_all("Requires-Dist", [])


def _glibc_of(wheel: str) -> tuple[int, int]:
    """Return the oldest glibc that a wheel names in its platform tags."""
    tags = wheel.removesuffix(".whl").rpartition("-")[2].split(".")
    named = [
        (int(m[1]), int(m[2])) for m in (re.match(r"manylinux_(\d+)_(\d+)_", t) for t in tags) if m
    ]
    named += [_LEGACY_GLIBC[t.partition("_")[0]] for t in tags if t.split("_")[0] in _LEGACY_GLIBC]
    return min(named, default=_FIRST_GLIBC)
