"""Engines that were built on this device: a directory of bounded size, each entry authenticated.

An engine is executable code and no bundle signature covers one that was built here, so every
entry carries an HMAC-SHA256 with a key that only this device has. An entry is two files, written
in this order: KEY.bin, then KEY.json, which holds its digest, facts about it, and the HMAC of all.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from edge.errors import BundleError, StorageError
from edge.files import atomic_write, read_capped, storage_errors
from edge.sealed import Sealed

KEY_NAME = "device.key"
_KEY_BYTES = 32
_MAX_RECORD_BYTES = 1 << 20
_NAME = re.compile(r"[0-9a-f]{64}")

_Facts = TypeVar("_Facts")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    size: int
    sha256: str
    facts: msgspec.Raw
    hmac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Generic[_Facts]):
    """The content of an entry, sealed, and what was written down about it."""

    content: Sealed
    facts: _Facts


def cache_key(*parts: object) -> str:
    """Return the name of an entry: a digest of everything that the content depends on."""
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


class EngineCache:
    """The directory; it is made, private to this user, on the first write.

    One process writes at a time: the agent, which holds the device.
    """

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self.root = root
        self._max_bytes = max_bytes

    def get(self, key: str, kind: type[_Facts]) -> Entry[_Facts] | None:
        """Return an entry, or None if there is none that this device wrote; marks it as used."""
        path = self._record(key)
        try:
            record = msgspec.json.decode(
                read_capped(path, max_bytes=_MAX_RECORD_BYTES), type=_Record
            )
            expected = self._hmac(key, record.size, record.sha256, bytes(record.facts))
            if not hmac.compare_digest(record.hmac, expected):
                logger.warning("cache entry ignored, this device did not write it: %s", path)
                return None
            facts = msgspec.json.decode(record.facts, type=kind)
            content = Sealed.from_file(self._content(key), size=record.size, sha256=record.sha256)
        except (StorageError, BundleError, msgspec.MsgspecError) as error:
            if path.exists():
                logger.warning("cache entry ignored path=%s: %s", path, error)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return Entry(content=content, facts=facts)

    def put(self, key: str, content: bytes, facts: object) -> None:
        """Write an entry, then remove the least recently used until the rest fits.

        Raises StorageError; no half-written entry is ever returned by `get`.
        """
        encoded = msgspec.json.encode(facts)
        digest = hashlib.sha256(content).hexdigest()
        with storage_errors("write", self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        record = _Record(
            size=len(content),
            sha256=digest,
            facts=msgspec.Raw(encoded),
            hmac=self._hmac(key, len(content), digest, encoded),
        )
        self._make_room(len(content), keep=key)
        atomic_write(self._content(key), content, mode=0o600)
        atomic_write(self._record(key), msgspec.json.encode(record), mode=0o600)

    def _make_room(self, size: int, *, keep: str) -> None:
        entries = []
        for path in self.root.glob("*.bin"):
            if _NAME.fullmatch(path.stem) is None or path.stem == keep:
                continue
            with contextlib.suppress(OSError):
                record = path.with_suffix(".json")
                used = record.stat().st_mtime if record.exists() else 0.0
                entries.append((used, path.stat().st_size, path))
        left = self._max_bytes - size - sum(size for _, size, _ in entries)
        for _, freed, path in sorted(entries):
            if left >= 0:
                break
            logger.info("cache entry evicted path=%s bytes=%d", path, freed)
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            left += freed

    def _hmac(self, key: str, size: int, sha256: str, facts: bytes) -> str:
        message = msgspec.json.encode((key, size, sha256)) + facts
        return hmac.new(self._device_key(), message, hashlib.sha256).hexdigest()

    def _device_key(self) -> bytes:
        path = self.root / KEY_NAME
        with contextlib.suppress(StorageError):
            key = read_capped(path, max_bytes=_KEY_BYTES)
            if len(key) == _KEY_BYTES:
                return key
        key = secrets.token_bytes(_KEY_BYTES)
        atomic_write(path, key, mode=0o600)
        return key

    def _content(self, key: str) -> Path:
        return self.root / f"{key}.bin"

    def _record(self, key: str) -> Path:
        return self.root / f"{key}.json"
