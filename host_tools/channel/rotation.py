"""New keys for a role of the channel, without a moment in which devices refuse it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from securesystemslib.signer import Key
from tuf.api.metadata import Root, Targets

from edge.errors import UsageError
from edge.update.channel_keys import ROOT_FIELD, BundleKey
from host_tools.channel.document import MIN_PREFIX
from host_tools.channel.repository import NEXT_ROOT, Change, Repository, days_of, renewed, root_path
from host_tools.channel.signing import Signers, role_keys, signed


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """What to change of a role; drop: key ids or their beginnings. Nothing at all renews the root.

    bundle_keys: further keys that may sign bundles. threshold: None keeps it.
    """

    role: str
    new: Sequence[Key] = ()
    bundle_keys: Sequence[BundleKey] = ()
    drop: Sequence[str] = ()
    threshold: int | None = None


def rotated(repository: Repository, wanted: Rotation, signers: Signers, now: datetime) -> Change:
    """Return the change that gives a role other keys.

    The new root is signed by the old root keys and the new ones. Everything below is signed anew
    first, by the keys of both roots at hand, so that a device believes it before and after. If a
    key is lost there is a moment in between: whoever is stopped then finishes by any other change.
    """
    if repository.root_is_pending:
        raise UsageError(
            f"a change of keys was interrupted in {repository.folder}; finish it with `edge-kit "
            "channel refresh`, then see what `edge-kit channel status` says"
        )
    before = repository.root.signed
    root = copy.deepcopy(before)
    root.version = before.version + 1
    root.expires = now + timedelta(days=days_of(before)["root"])
    for key in wanted.new:
        root.add_key(key, wanted.role)
    for text in wanted.drop:
        root.revoke_key(_keyid(root, wanted.role, text), wanted.role)
    _add_bundle_keys(root, repository, wanted.bundle_keys)
    entry = root.roles[wanted.role]
    entry.threshold = wanted.threshold or entry.threshold
    if not 0 < entry.threshold <= len(entry.keyids):
        raise UsageError(
            f"{wanted.role} would need {entry.threshold} signatures and have {len(entry.keyids)} "
            "keys; add keys with --new, or set --threshold"
        )
    content = signed(root, signers, role_keys(before, "root"), role_keys(root, "root")).to_bytes()
    new_root = {root_path(root.version): content}
    if wanted.role == "root":
        return Change(writes=new_root)
    targets: Targets | None = None
    if wanted.role == "targets":
        present = repository.targets.signed
        targets = Targets(
            version=present.version + 1, targets=present.targets, expires=present.expires
        )
    below = renewed(
        repository,
        signers,
        now,
        targets=targets,
        root=root,
        snapshot=wanted.role != "timestamp",
    )
    return Change(writes={NEXT_ROOT: content, **below, **new_root}, removes=(NEXT_ROOT,))


def _add_bundle_keys(root: Root, repository: Repository, keys: Sequence[BundleKey]) -> None:
    listed = list(repository.keys.listed)
    for key in keys:
        if key.keyid in repository.keys.revoked:
            raise UsageError(f"bundle key {key.name} was revoked; make another")
        if any(key.name == k.name or key.keyid == k.keyid for k in listed):
            raise UsageError(f"a bundle key {key.name} is listed; rename the .pub file")
        listed.append(key)
    root.unrecognized_fields[ROOT_FIELD] = [msgspec.to_builtins(key) for key in listed]


def _keyid(root: Root, role: str, text: str) -> str:
    found = [keyid for keyid in root.roles[role].keyids if keyid.startswith(text)]
    if len(found) != 1 or len(text) < MIN_PREFIX:
        known = ", ".join(keyid[:12] for keyid in root.roles[role].keyids)
        raise UsageError(f"{text!r} does not name one key of {role}; its keys are: {known}")
    return found[0]
