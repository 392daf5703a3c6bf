"""What installing a bundle takes of a device's disk, before any device is asked."""

from __future__ import annotations

from edge.manifest import Manifest, Variant
from edge.slots.needs import bytes_of
from edge.slots.store import BLOCK_BYTES

ELSEWHERE = "any other"


def peak_bytes(manifest: Manifest) -> dict[str, int]:
    """Return what an installation takes at most beside the bundle in service, by device.

    Files that both bundles have are not taken twice, so it is less where there are some. A device
    that no engine and no graph is made for is among `ELSEWHERE`.
    """
    variants = [variant for model in manifest.models for variant in model.variants]
    devices = {v.engine.device for v in variants if v.engine is not None}
    devices.update(device for variant in variants for device in variant.build_for)
    return {device: _peak(manifest, variants, device) for device in (*sorted(devices), ELSEWHERE)}


def _peak(manifest: Manifest, variants: list[Variant], device: str) -> int:
    unused = {path for v in variants if not _may_run(v, device) for path in v.files}
    used = {path for v in variants if _may_run(v, device) for path in v.files}
    kept = tuple(a for a in manifest.artifacts if a.path in used or a.path not in unused)
    return bytes_of(kept) + BLOCK_BYTES * len({artifact.sha256 for artifact in kept})


def _may_run(variant: Variant, device: str) -> bool:
    if variant.engine is not None:
        return variant.engine.device == device or variant.engine.portable
    return not variant.build_for or device in {*variant.build_for, ELSEWHERE}
