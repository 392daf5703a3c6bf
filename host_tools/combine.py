"""Combine bundles: their models under one Manifest and one signature, every file stored once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from edge.bundle import MANIFEST_NAME, Bundle, blob_path, open_bundle
from edge.errors import BundleError, UsageError
from edge.files import atomic_directory, open_regular, storage_errors
from edge.manifest import (
    SCHEMA_VERSION,
    Artifact,
    Manifest,
    Model,
    bytes_from_manifest,
)
from edge.trust import TrustedKey, public_key_from_private, trusted_keys_in
from host_tools.keys import read_private_key, sign_bundle
from host_tools.naming import check_names


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineRequest:
    """What becomes one bundle.

    trusted_keys: folder of the .pub files that may have signed the bundles. allow_unsigned: also
    take bundles that are unsigned or signed by somebody else; a key then vouches for them anew.
    """

    bundles: tuple[Path, ...]
    out: Path
    name: str
    version: str = "1"
    key: Path | None = None
    trusted_keys: Path | None = None
    allow_unsigned: bool = False


def combine(request: CombineRequest) -> Bundle:
    """Write the bundle at request.out, whole or not at all, and return it as a device opens it.

    Files are copied, never linked: who may write a source must not be able to alter the result.
    Raises UsageError for arguments that cannot work or two models of one name, TrustError or
    BundleError if a bundle does not verify, StorageError if the folder cannot be written or exists.
    """
    _check(request)
    signers = _signers(request.key)
    keys = () if request.trusted_keys is None else trusted_keys_in(request.trusted_keys)
    sources = tuple(_opened(root, request, keys) for root in request.bundles)
    models = _models(sources)
    origins = _origins(sources)
    manifest = Manifest(
        schema=SCHEMA_VERSION,
        name=request.name,
        version=request.version,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        artifacts=tuple(origins[path].artifact for path in sorted(origins)),
        models=models,
    )
    with storage_errors("write", request.out), atomic_directory(request.out) as scratch:
        blob_path(scratch, "0" * 64).parent.mkdir(parents=True)
        for origin in {origin.artifact.sha256: origin for origin in origins.values()}.values():
            _copy(origin, scratch)
        (scratch / MANIFEST_NAME).write_bytes(bytes_from_manifest(manifest))
        if request.key is not None:
            sign_bundle(scratch, request.key)
        # The copies are read again: a source may have changed since it was verified.
        made = open_bundle(scratch, signers, allow_unsigned=not signers)
    return Bundle(root=request.out, manifest=made.manifest, signed_by=made.signed_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    artifact: Artifact
    root: Path


def _check(request: CombineRequest) -> None:
    check_names(request.name, request.version)
    if request.trusted_keys is None and not request.allow_unsigned:
        raise UsageError(
            "give --trusted-keys, a folder of the .pub files that may have signed the bundles; "
            "--allow-unsigned takes bundles of anybody"
        )


def _signers(key: Path | None) -> tuple[TrustedKey, ...]:
    """Return who will have signed: the public half of key, or nobody."""
    if key is None:
        return ()
    return (public_key_from_private(read_private_key(key), name=str(key)),)


def _opened(root: Path, request: CombineRequest, keys: tuple[TrustedKey, ...]) -> Bundle:
    try:
        return open_bundle(root, keys, allow_unsigned=request.allow_unsigned)
    except BundleError as error:
        if str(root) in str(error):
            raise
        raise type(error)(f"{root}: {error}") from error


def _models(sources: tuple[Bundle, ...]) -> tuple[Model, ...]:
    holders: dict[str, Path] = {}
    for source in sources:
        for model in source.manifest.models:
            if model.name in holders:
                raise UsageError(
                    f"{holders[model.name]} and {source.root} both have a model {model.name!r}, "
                    "and clients ask for models by name; pack one of them under another --name"
                )
            holders[model.name] = source.root
    return tuple(model for source in sources for model in source.manifest.models)


def _origins(sources: tuple[Bundle, ...]) -> dict[str, _Origin]:
    """Return where every artifact comes from, by path."""
    origins: dict[str, _Origin] = {}
    for source in sources:
        for artifact in source.manifest.artifacts:
            other = origins.setdefault(artifact.path, _Origin(artifact=artifact, root=source.root))
            if other.artifact != artifact:
                raise UsageError(
                    f"{other.root} and {source.root} both have a file {artifact.path!r}, with "
                    "different content; pack one of them under another --name"
                )
    return origins


def _copy(origin: _Origin, scratch: Path) -> None:
    source = blob_path(origin.root, origin.artifact.sha256)
    with storage_errors("read", source):
        file = open_regular(source)
    target = blob_path(scratch, origin.artifact.sha256)
    with file, target.open("xb") as sink:
        shutil.copyfileobj(file, sink)
