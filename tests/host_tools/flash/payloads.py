"""Small wheelhouses and payloads, whose wheels are no wheels."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import msgspec

from host_tools.flash.payload import Payload, make_payload
from host_tools.flash.wheelhouse import Wheel, Wheelhouse
from tests.bundles import TestKey, affine_parts, make_key, write_bundle

PYTHON = "{}.{}".format(*sys.version_info)
ARCH = os.uname().machine


def write_wheelhouse(folder: Path, wheels: Mapping[str, bytes] | None = None) -> Path:
    """Write a wheelhouse for this machine, whose wheels have these contents."""
    folder.mkdir()
    contents = {"edge_kit-1-py3-none-any.whl": b"agent", "pip-1-py3-none-any.whl": b"pip"}
    contents = dict(wheels or contents)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    house = Wheelhouse(
        schema=1,
        arch=ARCH,
        python=PYTHON,
        glibc="2.17",
        wheels=tuple(
            Wheel(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in sorted(contents.items())
        ),
    )
    (folder / "wheelhouse.json").write_bytes(msgspec.json.encode(house))
    return folder


def write_key(folder: Path) -> tuple[TestKey, Path]:
    """Write a public key; return the pair and the file."""
    key = make_key()
    path = folder / "release.pub"
    path.write_bytes(key.public_pem)
    return key, path


class Factory:
    """Makes payloads that belong together: the same key, bundles of the affine model."""

    def __init__(self, folder: Path, *, port: int = 8123) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.config = folder, {"port": port}
        self.key, self.public = write_key(folder)

    def bundle(
        self,
        name: str,
        *,
        scale: float = 2.0,
        version: str = "2026.1",
        graphs: dict[str, bytes] | None = None,
    ) -> Path:
        manifest, files = affine_parts(graphs, scale=scale)
        return write_bundle(self.folder / name, replace(manifest, version=version), files, self.key)

    def house(self, name: str, wheels: Mapping[str, bytes] | None = None) -> Path:
        folder = self.folder / name
        return folder if folder.exists() else write_wheelhouse(folder, wheels)

    def payload(self, bundle: Path, house: Path) -> Payload:
        return make_payload(bundle, wheelhouse=house, keys=(self.public,), config=self.config)


def small_payload(folder: Path) -> Payload:
    """Return the payload of the affine bundle."""
    factory = Factory(folder)
    return factory.payload(factory.bundle("bundle"), factory.house("wheelhouse"))


def agent_wheels(version: str = "1", fault: str = "") -> dict[str, bytes]:
    """Return the wheels of `fake_agent`, and pip's, which is made of the one that runs here."""
    source = Path(__file__).with_name("fake_agent.py").read_text()
    source = source.replace('VERSION = "1"', f"VERSION = {version!r}")
    source = source.replace('FAULT = ""', f"FAULT = {fault!r}")
    info = f"edge_kit-{version}.dist-info"
    files = {
        "fake_agent.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: edge-kit\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nedge-agent = fake_agent:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    return {
        f"edge_kit-{version}-py3-none-any.whl": _zip({n: t.encode() for n, t in files.items()}),
        "pip-1-py3-none-any.whl": _pip_wheel(),
    }


@cache
def _pip_wheel() -> bytes:
    # Not by an import: setuptools steps aside for good when it sees one of pip.
    folder = Path(str(distribution("pip").locate_file("pip")))
    return _zip(
        {
            f"pip/{path.relative_to(folder)}": path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
    )


def _zip(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), text)
    return content.getvalue()
