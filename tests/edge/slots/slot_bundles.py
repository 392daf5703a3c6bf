"""Bundles for slots: bytes by which a store is filled, and the devices that they are for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from edge import manifest as m
from edge.bundle import MANIFEST_NAME, SIGNATURE_NAME
from edge.manifest import Artifact
from edge.manifest_reading import manifest_from_bytes
from edge.slots.state import bundle_id
from edge.slots.store import Store
from edge.target import Target
from edge.trust import public_key_from_pem
from tests.bundles import affine_parts, make_key, write_bundle

KEY = make_key()
TRUSTED = (public_key_from_pem(KEY.public_pem, name="site.pub"),)

RTX_4060 = Target(
    kind="desktop", arch="x86_64", name="NVIDIA GeForce RTX 4060", device="rtx-4060", gpus=1,
    sm="8.9", sm_count=24, memory_bytes=8 << 30, cuda="12.8", tensorrt_rtx="1.2.0.54",
    onnxruntime="1.31.1",
)  # fmt: skip
AGX_ORIN = Target(
    kind="jetson", arch="aarch64", name="Jetson AGX Orin", device="agx-orin-64gb", gpus=1,
    sm="8.7", sm_count=16, memory_bytes=64 << 30, dla_cores=2, cuda="12.6", tensorrt="10.3.0",
    onnxruntime="1.31.1", l4t="36.4.3",
)  # fmt: skip
CPU = Target(kind="cpu", arch="x86_64", name="no NVIDIA GPU", onnxruntime="1.31.1")


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A bundle as bytes: what a device is given, and the files by digest."""

    manifest: bytes
    signature: bytes
    blobs: dict[str, bytes]

    @property
    def id(self) -> str:
        return bundle_id(self.manifest)

    @property
    def parsed(self) -> m.Manifest:
        return manifest_from_bytes(self.manifest)


def packed(root: Path, version: str, *, change: Callable[[m.Manifest], m.Manifest] = lambda x: x,
           files: dict[str, bytes] | None = None) -> Packed:  # fmt: skip
    """Write a bundle of the affine model to root, with more files, and return its bytes."""
    manifest, parts = affine_parts(scale=float(len(version) + sum(map(ord, version))))
    manifest = change(replace(manifest, version=version))
    write_bundle(root, manifest, {**parts, **(files or {})}, KEY)
    return read(root)


def read(root: Path) -> Packed:
    """Return the bytes of the bundle at root."""
    return Packed(
        manifest=(root / MANIFEST_NAME).read_bytes(),
        signature=(root / SIGNATURE_NAME).read_bytes(),
        blobs={
            hashlib.sha256(content).hexdigest(): content
            for content in (path.read_bytes() for path in (root / "blobs/sha256").iterdir())
        },
    )


def fill(store: Store, bundle: Packed, artifacts: Iterable[Artifact], chunk: int = 700) -> None:
    """Bring the missing files of a bundle, as far as they have not arrived, in small pieces."""
    for artifact in store.missing(artifacts):
        offset = store.received_bytes(artifact)
        content = bundle.blobs[artifact.sha256][offset:]
        pieces = [content[at : at + chunk] for at in range(0, len(content), chunk)]
        store.receive(artifact, pieces, offset=offset)


def stage(store: Store, bundle: Packed, *, target: Target = CPU, **options: bool) -> None:
    """Bring a bundle into the idle slot."""
    artifacts = store.prepare(
        bundle.manifest, bundle.signature, keys=TRUSTED, target=target, **options
    )
    fill(store, bundle, artifacts)
    store.stage()
