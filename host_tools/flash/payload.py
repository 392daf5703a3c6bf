"""A payload: all that `device_setup` needs to set up one device, as files by their path there.

payload.json           what is wanted; lists every other file with its digest
device_setup.pyz       the script that makes it so
keys/ wheels/          who may sign, and the agent
bundle/                manifest, signature, and blobs where a device lacks them
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.bundle import MANIFEST_NAME, SIGNATURE_NAME, blob_path, engine_paths, open_bundle
from edge.config_sources import MAX_CONFIG_BYTES, load_config
from edge.errors import ConfigError, UsageError
from edge.files import (
    CHUNK_BYTES,
    atomic_file,
    atomic_write,
    open_regular,
    read_capped,
    sha256_of,
    storage_errors,
)
from edge.trust import MAX_KEY_BYTES, public_key_from_pem
from host_tools.flash.device.facts import SCHEMA
from host_tools.flash.device.steps import DOCUMENT_NAME
from host_tools.flash.script import SCRIPT_NAME, device_script
from host_tools.flash.wheelhouse import Wheelhouse, open_wheelhouse

Source = Path | bytes
# The device script writes these itself, below the root that it is given.
OWN_KEYS = ("slots", "trusted_keys")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a payload, as payload.json lists it."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One blob of the bundle. always: every device needs it, whatever GPU it has."""

    size: int
    sha256: str
    always: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleName:
    """Which bundle is wanted: id is the digest of its manifest."""

    id: str
    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The content of payload.json. agent: names the agent that the wheels make."""

    schema: int
    agent: str
    arch: str
    python: str
    glibc: str
    config: Mapping[str, object]
    bundle: BundleName
    files: tuple[File, ...]
    blobs: tuple[Blob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """What is to be sent: payload.json, and where each other file lies here."""

    document: Document
    sources: Mapping[str, Source]

    @property
    def content(self) -> bytes:
        """Return the bytes of payload.json."""
        return msgspec.json.encode(self.document, order="sorted") + b"\n"

    def write(
        self, folder: Path, names: Iterable[str] | None = None, *, links: bool = False
    ) -> None:
        """Write the payload, or the files with these names, into a folder; what is there stays.

        links: lead to the files here instead of copying them.
        """
        with storage_errors("write", folder):
            for name in self.sources if names is None else names:
                _place(self.sources[name], folder / name, is_link=links)
        atomic_write(folder / DOCUMENT_NAME, self.content)


def make_payload(
    bundle: Path, *, wheelhouse: Path, keys: tuple[Path, ...], config: Mapping[str, object]
) -> Payload:
    """Return the payload of a bundle, after everything in it was verified here.

    keys: .pub files that the devices shall trust; one of them must have signed the bundle.
    """
    for key in sorted(set(config) & set(OWN_KEYS)):
        raise UsageError(f"the configuration sets {key}, which flashing sets itself; leave it out")
    if len({key.name for key in keys}) < len(keys) or not keys:
        raise UsageError("give --key NAME.pub, the public key of `edge-kit keygen`, each name once")
    trusted = tuple(
        public_key_from_pem(
            read_capped(key, max_bytes=MAX_KEY_BYTES, follow_links=True), name=str(key)
        )
        for key in keys
    )
    opened = open_bundle(bundle, trusted)
    house = open_wheelhouse(wheelhouse)
    manifest = opened.manifest
    sources: dict[str, Source] = {
        f"bundle/{name}": bundle / name for name in (MANIFEST_NAME, SIGNATURE_NAME)
    }
    sources |= {f"keys/{key.stem}.pub": key for key in keys}
    sources |= {f"wheels/{wheel.name}": wheelhouse / wheel.name for wheel in house.wheels}
    sources[SCRIPT_NAME] = device_script()
    files = tuple(_file(name, path) for name, path in sorted(sources.items()))
    engines = engine_paths(manifest)
    always = {a.sha256 for a in manifest.artifacts if a.path not in engines}
    blobs = {a.sha256: a.size for a in manifest.artifacts}
    document = Document(
        schema=SCHEMA,
        agent=house.agent,
        **_machine(house),
        config=config,
        bundle=BundleName(
            id=next(f.sha256 for f in files if f.path == f"bundle/{MANIFEST_NAME}"),
            name=manifest.name,
            version=manifest.version,
        ),
        files=files,
        blobs=tuple(
            Blob(size=size, sha256=digest, always=digest in always)
            for digest, size in sorted(blobs.items())
        ),
    )
    for digest in blobs:
        sources[f"bundle/blobs/sha256/{digest}"] = blob_path(bundle, digest)
    return Payload(document=document, sources=sources)


def config_from_file(path: Path | None) -> dict[str, object]:
    """Return the keys of a configuration file for devices; raises UsageError if it is none."""
    if path is None:
        return {}
    content = read_capped(path, max_bytes=MAX_CONFIG_BYTES, follow_links=True)
    load_config({"config": str(path)}, {}, lambda _: content)
    config = json.loads(content)
    if not isinstance(config, dict):
        raise ConfigError(f"{path} does not hold an object with keys of the configuration")
    return config


def _machine(house: Wheelhouse) -> dict[str, str]:
    return {"arch": house.arch, "python": house.python, "glibc": house.glibc}


def _file(name: str, source: Source) -> File:
    digest, size = _digest(source)
    return File(path=name, size=size, sha256=digest)


def _digest(source: Source) -> tuple[str, int]:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest(), len(source)
    return sha256_of(source, follow_links=True)


def chunks_of(source: Source, *, offset: int = 0) -> Iterator[bytes]:
    """Yield a file of a payload from offset on."""
    if isinstance(source, bytes):
        yield source[offset:]
        return
    with storage_errors("read", source), open_regular(source, follow_links=True) as file:
        file.seek(offset)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _place(source: Source, path: Path, *, is_link: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_link and isinstance(source, Path):
        path.symlink_to(source.absolute())
        return
    if path.is_file() and sha256_of(path) == _digest(source):
        return
    with atomic_file(path) as file:
        for chunk in chunks_of(source):
            file.write(chunk)
