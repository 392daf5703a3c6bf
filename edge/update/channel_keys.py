"""The keys that may sign bundles: the channel's root lists them, its document takes them back.

So a new one needs the threshold of root keys, and a revocation only who publishes. The folder of
trusted keys follows: new keys come, revoked ones go (the one of the bundle in service as soon as
another bundle is). It stays the only place that says who may
sign bundles, for `serve`, `verify` and `install` alike; keys that an operator put there, and that
the channel does not name, are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.errors import ChannelError, TrustError
from edge.files import atomic_write, storage_errors
from edge.trust import TrustedKey, public_key_from_pem, trusted_keys_in

# In the root's signed part, beside what TUF puts there: a list of BundleKey.
ROOT_FIELD = "x-edge-bundle-keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleKey:
    """A key that may sign bundles; public_pem: as `edge-kit keygen` wrote it."""

    keyid: str
    name: str
    public_pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelKeys:
    """Who may sign bundles, as the channel says. revoked: key ids with the reason."""

    listed: tuple[BundleKey, ...]
    revoked: Mapping[str, str]

    @property
    def trusted(self) -> tuple[TrustedKey, ...]:
        """The keys that are listed and not revoked."""
        return tuple(
            public_key_from_pem(key.public_pem.encode(), name=f"channel key {key.name}")
            for key in self.listed
            if key.keyid not in self.revoked
        )

    def name(self, keyid: str) -> str:
        """Return what people call a key."""
        return next((key.name for key in self.listed if key.keyid == keyid), keyid[:12])


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChanges:
    """What the folder lacks, and which of its files hold revoked keys."""

    added: tuple[BundleKey, ...]
    removed: tuple[Path, ...]


def bundle_keys_in(root_fields: Mapping[str, object]) -> tuple[BundleKey, ...]:
    """Return the keys among the further fields of a root; raises ChannelError if one is none."""
    try:
        keys = msgspec.convert(root_fields.get(ROOT_FIELD, []), tuple[BundleKey, ...])
        for key in keys:
            if public_key_from_pem(key.public_pem.encode(), name=key.name).keyid != key.keyid:
                raise ChannelError(f"the root lists key {key.name!r} under the id of another key")
    except (msgspec.ValidationError, TrustError) as error:
        raise ChannelError(f"the root lists a bundle key that is none: {error}") from error
    return keys


def key_changes(keys: ChannelKeys, folder: Path, *, in_use: str | None) -> KeyChanges:
    """Return what must change in the folder of trusted keys.

    in_use: id of the key that signed the bundle in service. It stays although it was revoked, or
    the device could not start again; nothing new that it signed is taken.
    """
    here = trusted_keys_in(folder)
    known = {key.keyid for key in here} | set(keys.revoked)
    return KeyChanges(
        added=tuple(key for key in keys.listed if key.keyid not in known),
        removed=tuple(
            Path(key.name) for key in here if key.keyid in keys.revoked and key.keyid != in_use
        ),
    )


def add_keys(changes: KeyChanges, folder: Path) -> None:
    """Write the new keys; raises StorageError."""
    for key in changes.added:
        with storage_errors("create", folder):
            folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / f"channel-{key.keyid[:16]}.pub", key.public_pem.encode())


def remove_keys(changes: KeyChanges) -> None:
    """Remove the revoked keys; raises StorageError."""
    for path in changes.removed:
        with storage_errors("remove", path):
            path.unlink(missing_ok=True)
