"""The files of a channel, read with their signatures checked and changed in one atomic step.

    metadata/N.root.json N.targets.json N.snapshot.json timestamp.json
    targets/...                          what `edge.update.channel` names, with digests in the names
    metadata/next.root.json              of a change of keys that was interrupted; nobody fetches it
    audit.jsonl                          who changed what, each line with the digest of the one
                                         before; for its owner, devices never read it

A change writes files that nothing names yet, then replaces timestamp.json: until then, and if it
never comes to that, a reader sees the repository as it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from edge.errors import ChannelError, StorageError, UsageError, first_line
from edge.files import atomic_file, open_regular, read_capped, safe_join, sha256_of, storage_errors
from edge.update.channel import (
    CHANNEL_TARGET,
    MAX_CHANNEL_BYTES,
    MAX_TARGETS_BYTES,
    METADATA_FOLDER,
    TARGETS_FOLDER,
    Channel,
    bytes_from_channel,
    channel_from_bytes,
    stored_path,
)
from edge.update.channel_keys import ChannelKeys, bundle_keys_in
from host_tools.channel.signing import Role, Signers, role_keys, signed

MAX_METADATA_BYTES = 8 << 20
LOCK_NAME = ".lock"
# With the new root in its final place last, this one tells who signed what is below meanwhile.
NEXT_ROOT = f"{METADATA_FOLDER}/next.root.json"
# In the root, so that it is signed: for how many days each role's signature is good.
DAYS_FIELD = "x-edge-expiry-days"

Content = bytes | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A channel as it is now.

    root_is_pending: keys were being changed, and the root is not in its place yet, so that devices
    refuse the channel until the next change puts it there.
    """

    folder: Path
    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    channel: Channel
    root_is_pending: bool = False

    @property
    def keys(self) -> ChannelKeys:
        """Who may sign bundles."""
        listed = bundle_keys_in(self.root.signed.unrecognized_fields)
        return ChannelKeys(listed=listed, revoked=self.channel.revoked_keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a change writes, in this order, and removes afterwards; names below the folder."""

    writes: Mapping[str, Content]
    removes: tuple[str, ...] = ()

    @property
    def bytes_written(self) -> int:
        """How much a web server has to be sent."""
        return sum(
            len(content) if isinstance(content, bytes) else content.stat().st_size
            for content in self.writes.values()
        )


@dataclass(slots=True, kw_only=True)
class TargetChanges:
    """Targets to list, with their content, and targets to list no longer."""

    added: dict[str, Content] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)


def read_repository(folder: Path) -> Repository:
    """Return the repository in a folder; raises ChannelError if its own keys do not vouch for it.

    Expired metadata is read: renewing it is what a change is for.
    """
    metadata = folder / METADATA_FOLDER
    if not (metadata / "1.root.json").is_file():
        raise UsageError(f"no channel at {folder}; make one with `edge-kit channel init`")
    # Not what a person kept beside them, such as old.root.json.
    numbers = (path.name.partition(".")[0] for path in metadata.glob("*.root.json"))
    newest = max(int(number) for number in numbers if number.isdecimal())
    root: Metadata[Root] = _read(metadata / f"{newest}.root.json", Root)
    timestamp: Metadata[Timestamp] = _read(metadata / "timestamp.json", Timestamp)
    version = timestamp.signed.snapshot_meta.version
    snapshot: Metadata[Snapshot] = _read(metadata / f"{version}.snapshot.json", Snapshot)
    version = snapshot.signed.meta["targets.json"].version
    targets: Metadata[Targets] = _read(metadata / f"{version}.targets.json", Targets)
    below = (timestamp, snapshot, targets)
    pending = None
    try:
        _verify(root, root, *below)
    except RepositoryError as error:
        pending = _pending_root(folder, root, below)
        if pending is None:
            raise ChannelError(
                f"{folder}: {first_line(error)}; somebody altered the files: restore them from a "
                "copy of the channel"
            ) from error
    listed = targets.signed.targets.get(CHANNEL_TARGET)
    if listed is None:
        raise ChannelError(
            f"{folder} is a TUF repository, but no channel: it lists no channel.json"
        )
    content = target_content(folder, listed)
    return Repository(
        folder=folder,
        root=pending or root,
        root_is_pending=pending is not None,
        targets=targets,
        snapshot=snapshot,
        timestamp=timestamp,
        channel=channel_from_bytes(content),
    )


def target_content(folder: Path, listed: TargetFile) -> bytes:
    """Return the bytes of a small target, verified; raises ChannelError."""
    path = safe_join(folder, stored_path(listed.path, listed.hashes["sha256"]))
    content = read_capped(path, max_bytes=MAX_METADATA_BYTES)
    try:
        listed.verify_length_and_hashes(content)
    except RepositoryError as error:
        raise ChannelError(f"{path} was altered; restore it from a copy of the channel") from error
    return content


def next_change(
    repository: Repository, signers: Signers, now: datetime, channel: Channel, wanted: TargetChanges
) -> Change:
    """Return the change that lists other targets and another channel.json."""
    writes: dict[str, Content] = {}
    document = readable_document(channel)
    entries = {
        p: t for p, t in repository.targets.signed.targets.items() if p not in wanted.removed
    }
    added = {**wanted.added, CHANNEL_TARGET: document}
    for path, content in added.items():
        entry = _target(path, content, wanted.digests.get(path))
        entries[path] = entry
        stored = stored_path(path, entry.hashes["sha256"])
        if not _is_there(repository.folder / stored, entry):
            writes[stored] = content
    targets = Targets(version=repository.targets.signed.version + 1, expires=None, targets=entries)
    writes |= renewed(repository, signers, now, targets=targets)
    unused = tuple(name for name in _unused(repository, targets) if name not in writes)
    return Change(writes=writes, removes=unused)


def readable_document(channel: Channel) -> bytes:
    """Return the bytes of channel.json, read as a device will before anybody signs them.

    Raises UsageError if no device could: with its signature such a document would be there to stay.
    """
    try:
        document = bytes_from_channel(channel)
        _check_size(CHANNEL_TARGET, document, MAX_CHANNEL_BYTES)
        channel_from_bytes(document)
    except (ChannelError, UnicodeEncodeError) as error:
        raise UsageError(
            f"no device could read the channel any more ({error}), so nothing is signed; give "
            "other words"
        ) from error
    return document


def renewed(
    repository: Repository,
    signers: Signers,
    now: datetime,
    *,
    targets: Targets | None = None,
    root: Root | None = None,
    snapshot: bool = True,
) -> dict[str, Content]:
    """Return new files of metadata, timestamp.json last: targets if given, snapshot and timestamp.

    root: the one that says whose signatures count, if it is not the repository's own; keys of the
    latter sign too, so that devices that know either root believe the files.
    snapshot: False leaves it as it is and renews the timestamp alone.
    """
    rules, before = root or repository.root.signed, repository.root.signed
    days = days_of(rules)
    writes: dict[str, Content] = {}
    if repository.root_is_pending:
        writes[root_path(before.version)] = repository.root.to_bytes()

    def sign(content: Role) -> bytes:
        role = content.type
        content.expires = now + timedelta(days=days[role])
        also = before.roles[role].keyids
        return signed(content, signers, role_keys(rules, role), also=also).to_bytes()

    kept = repository.snapshot.signed
    if targets is not None or snapshot:
        meta = kept.meta["targets.json"]
        if targets is not None:
            content = sign(targets)
            _check_size("the list of targets", content, MAX_TARGETS_BYTES)
            writes[f"{METADATA_FOLDER}/{targets.version}.targets.json"] = content
            meta = MetaFile.from_data(targets.version, content, ["sha256"])
        kept = Snapshot(version=kept.version + 1, expires=None, meta={"targets.json": meta})
        content = sign(kept)
        writes[f"{METADATA_FOLDER}/{kept.version}.snapshot.json"] = content
        reference = MetaFile.from_data(kept.version, content, ["sha256"])
    else:
        reference = repository.timestamp.signed.snapshot_meta
    version = repository.timestamp.signed.version + 1
    timestamp = Timestamp(version=version, expires=None, snapshot_meta=reference)
    writes[f"{METADATA_FOLDER}/timestamp.json"] = sign(timestamp)
    return writes


def root_path(version: int) -> str:
    """Return where a root is published."""
    return f"{METADATA_FOLDER}/{version}.root.json"


def days_of(root: Root) -> dict[str, int]:
    """Return for how many days the signatures of each role are good."""
    days: dict[str, int] = root.unrecognized_fields[DAYS_FIELD]
    return days


def write(
    folder: Path,
    change: Change,
    *,
    step: Callable[[str], None] = lambda name: None,
) -> None:
    """Write the files of a change in their order, each one whole or not at all.

    step: called before each file, for progress. Raises StorageError.
    """
    for name, content in change.writes.items():
        step(name)
        path = safe_join(folder, name)
        with storage_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                _copy(content, file)
    for name in change.removes:
        step(name)
        with storage_errors("remove", folder / name):
            safe_join(folder, name).unlink(missing_ok=True)


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Keep others from changing the channel; raises StorageError if somebody is."""
    with storage_errors("lock", folder), (folder / LOCK_NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"{folder} is being changed by another command; wait for it"
            ) from error
        yield


def _read(path: Path, role: type) -> Metadata:  # type: ignore[type-arg] # the caller knows which
    content = read_capped(path, max_bytes=MAX_METADATA_BYTES)
    try:
        metadata = Metadata.from_bytes(content)
    except RepositoryError as error:
        raise ChannelError(f"{path} is malformed: {first_line(error)}") from error
    if not isinstance(metadata.signed, role):
        raise ChannelError(f"{path} holds metadata of another role")
    return metadata


def _verify(root: Metadata[Root], *roles: Metadata[Any]) -> None:
    for role in roles:
        root.signed.verify_delegate(role.signed.type, role.signed_bytes, role.signatures)


def _pending_root(
    folder: Path, root: Metadata[Root], below: tuple[Metadata[Any], ...]
) -> Metadata[Root] | None:
    """Return the root after `root`, if what is below is signed by its keys already."""
    path = folder / NEXT_ROOT
    if not path.is_file():
        return None
    pending: Metadata[Root] = _read(path, Root)
    try:
        _verify(root, pending)
        _verify(pending, pending, *below)
    except RepositoryError:
        return None
    return pending if pending.signed.version == root.signed.version + 1 else None


def _target(path: str, content: Content, digest: str | None) -> TargetFile:
    if isinstance(content, bytes):
        return TargetFile(len(content), {"sha256": hashlib.sha256(content).hexdigest()}, path)
    assert digest is not None  # noqa: S101 - the Manifest has it, and the bundle was verified
    return TargetFile(content.stat().st_size, {"sha256": digest}, path)


def _check_size(what: str, content: bytes, max_bytes: int) -> None:
    if len(content) > max_bytes:
        raise UsageError(
            f"{what} would have {len(content):,} bytes, and devices read {max_bytes:,}; revoke "
            "releases that nobody needs any more"
        )


def _is_there(path: Path, entry: TargetFile) -> bool:
    """Return whether the file need not be written: a damaged one of the same size must."""
    if not path.is_file() or path.stat().st_size != entry.length:
        return False
    return sha256_of(path)[0] == entry.hashes["sha256"]


def _unused(repository: Repository, targets: Targets) -> tuple[str, ...]:
    """Return files that neither the new nor the present metadata names.

    Those of the present stay until the next change: devices may be in the middle of them.
    """
    named = {
        stored_path(path, entry.hashes["sha256"])
        for listed in (targets, repository.targets.signed)
        for path, entry in listed.targets.items()
    }
    named |= {
        f"{METADATA_FOLDER}/{version}.{role}.json"
        for role, version in (
            ("targets", repository.targets.signed.version),
            ("snapshot", repository.snapshot.signed.version),
        )
    }
    folder = repository.folder
    found = [
        path.relative_to(folder).as_posix()
        for pattern in (
            f"{TARGETS_FOLDER}/**/*",
            f"{METADATA_FOLDER}/*.targets.json",
            f"{METADATA_FOLDER}/*.snapshot.json",
        )
        for path in folder.glob(pattern)
        if path.is_file()
    ]
    return tuple(sorted(name for name in found if name not in named))


def _copy(content: Content, file: BinaryIO) -> None:
    if isinstance(content, bytes):
        file.write(content)
        return
    with open_regular(content) as source:
        shutil.copyfileobj(source, file, 1 << 20)
