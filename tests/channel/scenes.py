"""A device that follows a server which somebody else owns, and stolen keys to sign with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, TargetFile

from edge.errors import ChannelError, EdgeError
from tests.channel.sites import Device, Site
from tests.edge.update.file_server import Served, serving


@dataclass(kw_only=True)
class Scene:
    """A device that serves version 1 and follows a mirror that somebody else owns."""

    site: Site
    mirror: Path
    server: Served
    device: Device

    def copy_channel(self) -> None:
        """Bring the mirror up to date, honestly."""
        shutil.rmtree(self.mirror)
        shutil.copytree(self.site.channel, self.mirror)

    def refused(self, kind: type[EdgeError] = ChannelError) -> EdgeError:
        """Do a pass: it must refuse, and version 1 must be in service, whole, before and after."""
        ran = self.device.install()
        assert isinstance(ran.error, kind), (ran.said, ran.error)
        assert self.device.served == "1"
        status = json.loads((self.device.slots / "channel/status.json").read_bytes())
        assert (status["verdict"], status["code"]) == ("failed", ran.error.code)
        assert ran.said.items() <= status.items()
        return ran.error

    def target(self, name: str) -> str:
        """Return the digest that the mirror lists for a target."""
        targets = Metadata.from_file(str(self.newest("targets"))).signed
        return str(targets.targets[name].hashes["sha256"])

    def offer(self, files: dict[str, bytes]) -> None:
        """Put targets into the mirror, signed by stolen keys of targets, snapshot and timestamp."""
        entries = {n: TargetFile.from_data(n, content, ["sha256"]) for n, content in files.items()}
        for name, entry in entries.items():
            folder, _, base = name.rpartition("/")
            place = self.mirror / "targets" / folder / f"{entry.hashes['sha256']}.{base}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(files[name])

        def list_them(signed: Any) -> None:
            signed.version += 1
            signed.targets.update(entries)

        targets = sign_again(self.newest("targets"), list_them, self.site.keys / "targets.key")
        republish(self, self.site.keys, targets)

    def newest(self, role: str) -> Path:
        found = self.mirror.glob(f"metadata/*.{role}.json")
        return max(found, key=lambda path: int(path.name.partition(".")[0]))


def sign_again(path: Path, change: Any, *keys: Path) -> Metadata[Any]:
    """Alter a file of metadata and sign it with stolen keys."""
    metadata: Metadata[Any] = Metadata.from_file(str(path))
    change(metadata.signed)
    metadata.signatures.clear()
    for key in keys:
        private = load_pem_private_key(key.read_bytes(), password=None)
        metadata.sign(CryptoSigner(private), append=True)  # type: ignore[arg-type]
    return metadata


def republish(scene: Scene, keys: Path, targets: Metadata[Any]) -> None:
    """Put altered targets into the mirror, with snapshot and timestamp by the keys in a folder."""
    folder, version = scene.mirror / "metadata", targets.signed.version
    content = targets.to_bytes()
    (folder / f"{version}.targets.json").write_bytes(content)

    def list_targets(signed: Any) -> None:
        signed.version += 1
        signed.meta["targets.json"] = MetaFile.from_data(version, content, ["sha256"])

    snapshot = sign_again(scene.newest("snapshot"), list_targets, keys / "snapshot.key")
    below = snapshot.to_bytes()
    (folder / f"{snapshot.signed.version}.snapshot.json").write_bytes(below)

    def list_snapshot(signed: Any) -> None:
        signed.version += 1
        signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, below, ["sha256"])

    timestamp = sign_again(folder / "timestamp.json", list_snapshot, keys / "timestamp.key")
    (folder / "timestamp.json").write_bytes(timestamp.to_bytes())


@contextmanager
def attacked(root: Path) -> Iterator[Scene]:
    """Set up a scene in an empty folder; the server runs meanwhile."""
    site = Site(root)
    site.release("1")
    mirror = root / "mirror"
    shutil.copytree(site.channel, mirror)
    with serving(mirror) as server:
        device = Device(root / "device", site.anchor, server.url)
        assert device.install().code == 0
        assert device.served == "1"
        yield Scene(site=site, mirror=mirror, server=server, device=device)
