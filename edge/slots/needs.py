"""Which files of a bundle a device needs, and which it never will."""

from __future__ import annotations

from edge.errors import BundleError
from edge.manifest import Artifact, Manifest, Variant
from edge.matching import Mismatch, ways_to_run
from edge.target import Target

# What a reboot or an update of the driver changes is no reason to leave a file behind.
_PASSING = frozenset({"driver-missing", "driver-too-old"})


def artifacts_for(manifest: Manifest, target: Target) -> tuple[Artifact, ...]:
    """Return what target needs of a bundle, each content once, in the order of the manifest.

    That is everything but what only those variants use that TensorRT cannot run on target: engines
    for another GPU, platform or version, and graphs in the form of another version. Graphs for ONNX
    Runtime are needed everywhere. Raises BundleError if a model would have no variant left.
    """
    unused: set[str] = set()
    used: set[str] = set()
    for model in manifest.models:
        refusals = {variant.id: refusal(variant, target) for variant in model.variants}
        if all(refused is not None for refused in refusals.values()):
            reasons = "; ".join(f"{name}: {r.reason}" for name, r in refusals.items() if r)
            raise BundleError(
                f"no variant of model {model.name!r} can run on this device: {reasons}"
            )
        for variant in model.variants:
            (used if refusals[variant.id] is None else unused).update(variant.files)
    needed = [a for a in manifest.artifacts if a.path in used or a.path not in unused]
    return tuple({artifact.sha256: artifact for artifact in needed}.values())


def refusal(variant: Variant, target: Target) -> Mismatch | None:
    """Return why target does not need the files of a variant, None if it does."""
    if variant.backend == "ort":
        return None
    mismatch = ways_to_run(variant, target, trusted=True, may_build=True)[1]
    passes = mismatch is not None and mismatch.code in _PASSING and target.kind != "cpu"
    return None if passes else mismatch


def bytes_of(artifacts: tuple[Artifact, ...]) -> int:
    """Return what artifacts take on disk; equal files are stored once."""
    return sum({artifact.sha256: artifact.size for artifact in artifacts}.values())
