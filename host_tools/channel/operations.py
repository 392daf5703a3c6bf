"""What `edge-kit channel` does: each operation returns the change it would make, unwritten."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from tuf.api.metadata import MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from edge.bundle import MANIFEST_NAME, SIGNATURE_NAME, open_bundle
from edge.errors import UsageError
from edge.files import read_capped
from edge.manifest import MAX_MANIFEST_BYTES, is_plain_name
from edge.manifest_reading import manifest_from_bytes
from edge.trust import MAX_KEY_BYTES, MAX_SIGNATURE_BYTES, public_key_from_pem
from edge.update.channel import (
    CHANNEL_SCHEMA,
    CHANNEL_TARGET,
    METADATA_FOLDER,
    Channel,
    Release,
    blob_target,
    manifest_target,
    signature_target,
    stored_path,
)
from edge.update.channel_keys import ROOT_FIELD, BundleKey
from host_tools.channel.document import (
    find_release,
    with_release,
    with_revoked_release,
)
from host_tools.channel.repository import (
    DAYS_FIELD,
    Change,
    Content,
    Repository,
    TargetChanges,
    days_of,
    next_change,
    readable_document,
    renewed,
    target_content,
)
from host_tools.channel.signing import ROLES, Role, RoleKeys, Signers, has_enough, role_keys, signed

# USB sticks travel slower than a web server answers: a timestamp is good for two weeks.
DEFAULT_DAYS: Mapping[str, int] = {"root": 365, "targets": 180, "snapshot": 90, "timestamp": 14}
RENEW_BELOW = 0.5  # of a role's days


@dataclass(frozen=True, slots=True, kw_only=True)
class Founding:
    """What a new channel is made of."""

    product: str
    roles: Mapping[str, RoleKeys]
    bundle_keys: tuple[BundleKey, ...]
    days: Mapping[str, int]


def bundle_key_from_file(path: Path) -> BundleKey:
    """Return the key of a .pub file, named as the file."""
    content = read_capped(path, max_bytes=MAX_KEY_BYTES, follow_links=True)
    key = public_key_from_pem(content, name=str(path))
    return BundleKey(keyid=key.keyid, name=path.stem, public_pem=content.decode("ascii"))


def founded(founding: Founding, signers: Signers, now: datetime) -> Change:
    """Return the files of a new channel, without releases."""
    if not is_plain_name(founding.product):
        raise UsageError(
            f"product {founding.product!r}: give the --name that its bundles are packed with"
        )
    root = Root(
        version=1,
        expires=now + timedelta(days=founding.days["root"]),
        consistent_snapshot=True,
        unrecognized_fields={
            DAYS_FIELD: dict(founding.days),
            ROOT_FIELD: [msgspec.to_builtins(key) for key in founding.bundle_keys],
        },
    )
    for role in ROLES:
        for key in founding.roles[role].keys:
            root.add_key(key, role)
        root.roles[role].threshold = founding.roles[role].threshold
    channel = Channel(
        schema=CHANNEL_SCHEMA,
        product=founding.product,
        revoked_keys={},
        releases=(),
        offers={},
    )
    content = readable_document(channel)
    digest = hashlib.sha256(content).hexdigest()

    def expiry(role: str) -> datetime:
        return now + timedelta(days=founding.days[role])

    def sign(item: Role) -> bytes:
        return signed(item, signers, founding.roles[item.type]).to_bytes()

    entry = TargetFile(len(content), {"sha256": digest}, CHANNEL_TARGET)
    targets = sign(Targets(expires=expiry("targets"), targets={CHANNEL_TARGET: entry}))
    listed = {"targets.json": MetaFile.from_data(1, targets, ["sha256"])}
    snapshot = sign(Snapshot(expires=expiry("snapshot"), meta=listed))
    reference = MetaFile.from_data(1, snapshot, ["sha256"])
    timestamp = sign(Timestamp(expires=expiry("timestamp"), snapshot_meta=reference))
    return Change(
        writes={
            stored_path(CHANNEL_TARGET, digest): content,
            f"{METADATA_FOLDER}/1.targets.json": targets,
            f"{METADATA_FOLDER}/1.snapshot.json": snapshot,
            f"{METADATA_FOLDER}/timestamp.json": timestamp,
            f"{METADATA_FOLDER}/1.root.json": sign(root),
        }
    )


def published(
    repository: Repository, bundle: Path, signers: Signers, now: datetime
) -> tuple[Change, Release]:
    """Return the change that adds a bundle, and its release.

    Raises TrustError unless a trusted key of the channel signed it, BundleError if it is not whole,
    UsageError if it is for another product.
    """
    channel = repository.channel
    opened = open_bundle(bundle, repository.keys.trusted)
    manifest = opened.manifest
    if manifest.name != channel.product:
        raise UsageError(
            f"the bundle is called {manifest.name!r} and the channel is for {channel.product!r}; "
            "give every product a channel of its own"
        )
    content = read_capped(bundle / MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
    signature = read_capped(bundle / SIGNATURE_NAME, max_bytes=MAX_SIGNATURE_BYTES)
    assert opened.signed_by is not None  # noqa: S101 - unsigned ones were refused
    release_id = hashlib.sha256(content).hexdigest()
    channel = with_release(
        channel,
        Release(
            id=release_id,
            name=manifest.name,
            version=manifest.version,
            sequence=1,
            published=text_from_time(now),
            signed_by=opened.signed_by.keyid,
        ),
    )
    added: dict[str, Content] = {
        blob_target(artifact.sha256): opened.path(artifact.path) for artifact in manifest.artifacts
    }
    digests = {blob_target(artifact.sha256): artifact.sha256 for artifact in manifest.artifacts}
    added |= {manifest_target(release_id): content, signature_target(release_id): signature}
    release = channel.release(release_id)
    assert release is not None  # noqa: S101 - it was just added
    wanted = TargetChanges(added=added, digests=digests)
    return next_change(repository, signers, now, channel, wanted), release


def redocumented(
    repository: Repository, channel: Channel, signers: Signers, now: datetime
) -> Change:
    """Return the change that replaces channel.json alone."""
    return next_change(repository, signers, now, channel, TargetChanges())


def release_revoked(
    repository: Repository, wanted: str, reason: str, signers: Signers, now: datetime
) -> Change:
    """Return the change that revokes a release and lists its files no longer."""
    release = find_release(repository.channel, wanted)
    channel = with_revoked_release(repository.channel, release.id, reason)
    kept = {
        digest
        for other in channel.releases
        if other.revoked is None
        for digest in _blobs_of(repository, other.id)
    }
    gone = {blob_target(digest) for digest in _blobs_of(repository, release.id) - kept}
    gone |= {manifest_target(release.id), signature_target(release.id)}
    return next_change(repository, signers, now, channel, TargetChanges(removed=gone))


def refreshed(repository: Repository, signers: Signers, now: datetime) -> Change:
    """Return the change that renews the timestamp, and the other roles that are half expired.

    Roles whose keys are not here are left as they are; only the timestamp's must be.
    """
    root = repository.root.signed
    days = days_of(root)

    def is_due(content: Targets | Snapshot) -> bool:
        left = content.expires - now
        due = left < timedelta(days=days[content.type]) * RENEW_BELOW
        return due and has_enough(signers, role_keys(root, content.type))

    targets: Targets | None = None
    present = repository.targets.signed
    if is_due(present) and has_enough(signers, role_keys(root, "snapshot")):
        targets = Targets(
            version=present.version + 1, targets=present.targets, expires=present.expires
        )
    snapshot = targets is not None or is_due(repository.snapshot.signed)
    return Change(writes=renewed(repository, signers, now, targets=targets, snapshot=snapshot))


def text_from_time(when: datetime) -> str:
    """Return a UTC time as the channel spells it."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _blobs_of(repository: Repository, release_id: str) -> set[str]:
    listed = repository.targets.signed.targets.get(manifest_target(release_id))
    if listed is None:
        return set()
    manifest = manifest_from_bytes(target_content(repository.folder, listed))
    return {artifact.sha256 for artifact in manifest.artifacts}
