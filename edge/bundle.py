"""A bundle: a directory of blobs and the Manifest that names every one of them.

    manifest.json            what is in it, see `manifest`
    manifest.sig             who says so, see `trust`
    blobs/sha256/<digest>    the files, by content

`open_bundle` reads no byte of a blob before the signature holds, and returns only when every
listed blob has its size and digest. Files that the Manifest does not list are never opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edge.errors import BundleError, StorageError, TrustError, UnknownKeyError
from edge.files import read_capped, safe_join, sha256_of, storage_errors
from edge.manifest import (
    MAX_MANIFEST_BYTES,
    Artifact,
    Manifest,
)
from edge.manifest_reading import manifest_from_bytes
from edge.trust import MAX_SIGNATURE_BYTES, TrustedKey, verify

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified directory and its Manifest.

    signed_by: the trusted key, or None when the bundle was accepted unsigned on request.
    absent: artifacts that were never brought to this device, because nothing here can run them.
    """

    root: Path
    manifest: Manifest
    signed_by: TrustedKey | None
    absent: frozenset[str] = frozenset()

    def path(self, artifact_path: str) -> Path:
        """Return where the artifact with this name lies on disk."""
        return blob_path(self.root, self.manifest.artifact(artifact_path).sha256)


def blob_path(root: Path, sha256: str) -> Path:
    """Return the place of a blob inside a bundle."""
    return safe_join(root, f"blobs/sha256/{sha256}")


def open_bundle(
    root: Path,
    keys: tuple[TrustedKey, ...],
    *,
    allow_unsigned: bool = False,
    defer_engines: bool = False,
    is_slot: bool = False,
) -> Bundle:
    """Verify everything and return the bundle.

    With defer_engines, the bytes of engines are not read: most are for other devices, and who
    opens one verifies it then (see `sealed`). With allow_unsigned, a missing signature or an
    unknown signer is accepted; a signature of a known key that does not match never is. With
    is_slot, blobs may be missing as long as every model has a variant that is whole: a slot holds
    what its device needs (see `slots.needs`).
    Raises TrustError or BundleError, or StorageError if root is out of reach; the message names
    the file.
    """
    with storage_errors("read", root):
        is_directory = root.is_dir()
    if not is_directory:
        raise BundleError(f"no bundle at {root}: not a directory; give the folder that pack wrote")
    content = _read(root / MANIFEST_NAME, MAX_MANIFEST_BYTES)
    signature = None
    if os.path.lexists(root / SIGNATURE_NAME):
        signature = _read(root / SIGNATURE_NAME, MAX_SIGNATURE_BYTES)
    signer = signer_of(content, signature, keys, allow_unsigned=allow_unsigned, root=root)
    manifest = manifest_from_bytes(content)
    absent = _absent(root, manifest) if is_slot else frozenset()
    deferred = engine_paths(manifest) if defer_engines else frozenset()
    checked = tuple(a for a in manifest.artifacts if a.path not in deferred | absent)
    for problem in blob_problems(root, checked):
        raise BundleError(problem)
    return Bundle(root=root, manifest=manifest, signed_by=signer, absent=absent)


def signer_of(
    manifest: bytes,
    signature: bytes | None,
    keys: tuple[TrustedKey, ...],
    *,
    allow_unsigned: bool,
    root: Path,
) -> TrustedKey | None:
    """Return who signed the bytes of a manifest.json, None if nobody known and that is allowed.

    root: the folder they came from. Raises TrustError.
    """
    if signature is None:
        if allow_unsigned:
            return None
        raise TrustError(
            f"{root / SIGNATURE_NAME} is missing: the bundle is unsigned; sign it with "
            "`edge-kit sign`, or start with --allow-unsigned on a device where anyone may load "
            "anything"
        )
    try:
        return verify(manifest, signature, keys)
    except UnknownKeyError:
        if allow_unsigned:
            return None
        raise


def engine_paths(manifest: Manifest) -> frozenset[str]:
    """Return the artifacts that are engines and nothing else."""
    variants = [variant for model in manifest.models for variant in model.variants]
    engines = {v.files[0] for v in variants if v.engine is not None}
    others = {path for v in variants if v.engine is None for path in v.files}
    return frozenset(engines - others)


def blob_problems(root: Path, artifacts: tuple[Artifact, ...]) -> Iterator[str]:
    """Yield one sentence per artifact whose blob is missing, resized or altered."""
    workers = min(len(artifacts), os.cpu_count() or 1) or 1
    with ThreadPoolExecutor(workers, thread_name_prefix="digest") as pool:
        for problem in pool.map(lambda artifact: _blob_problem(root, artifact), artifacts):
            if problem is not None:
                yield problem


def _blob_problem(root: Path, artifact: Artifact) -> str | None:
    path = blob_path(root, artifact.sha256)
    name = f"{artifact.path} ({path.relative_to(root)})"
    try:
        digest, size = sha256_of(path, max_bytes=artifact.size)
    except StorageError as error:
        return f"{name}: {error}; fetch the bundle again"
    if size != artifact.size:
        return f"{name}: size differs from the manifest's {artifact.size}; fetch the bundle again"
    if digest != artifact.sha256:
        return f"{name}: content does not match its digest; fetch the bundle again"
    return None


def _absent(root: Path, manifest: Manifest) -> frozenset[str]:
    """Return the artifacts without a blob; raises BundleError if a model cannot do without."""
    absent = frozenset(
        artifact.path
        for artifact in manifest.artifacts
        if not os.path.lexists(blob_path(root, artifact.sha256))
    )
    variants = [variant for model in manifest.models for variant in model.variants]
    needed = absent - {path for variant in variants for path in variant.files}
    for model in manifest.models:
        if all(absent.intersection(variant.files) for variant in model.variants):
            needed |= absent.intersection(model.variants[0].files)
    if needed:
        raise BundleError(f"{min(needed)} is missing in {root}; install the bundle again")
    return absent


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        return read_capped(path, max_bytes=max_bytes)
    except StorageError as error:
        raise BundleError(f"{error}; fetch the bundle again") from error
