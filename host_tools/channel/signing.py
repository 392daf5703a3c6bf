"""The keys of a channel's roles: where their private parts lie, and signatures by them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from edge.errors import TrustError, UsageError
from edge.files import read_capped
from edge.trust import MAX_KEY_BYTES, public_key_from_pem

ROLES = ("root", "targets", "snapshot", "timestamp")
Role = TypeVar("Role", Root, Targets, Snapshot, Timestamp)
Signers = dict[str, CryptoSigner]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleKeys:
    """Who may sign for a role: any `threshold` of `keys`."""

    keys: tuple[Key, ...]
    threshold: int


def signers_in(folders: Iterable[Path]) -> Signers:
    """Return the private keys in the folders' *.key files, by key id.

    Raises UsageError if a folder is missing, TrustError if a file is no unencrypted Ed25519 key.
    """
    found: Signers = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"no folder of keys at {folder}; give the one that `init` wrote to")
        for path in sorted(folder.glob("*.key")):
            signer = CryptoSigner(_private_key(path))
            found[signer.public_key.keyid] = signer
    return found


def public_key(path: Path) -> SSlibKey:
    """Return the key of a .pub file."""
    content = read_capped(path, max_bytes=MAX_KEY_BYTES, follow_links=True)
    return public_key_from_pem(content, name=str(path)).key


def role_keys(root: Root, role: str) -> RoleKeys:
    """Return who may sign for a role, as a root says."""
    entry = root.roles[role]
    return RoleKeys(
        keys=tuple(root.keys[keyid] for keyid in entry.keyids), threshold=entry.threshold
    )


def has_enough(signers: Signers, keys: RoleKeys) -> bool:
    """Whether the private keys at hand can sign for a role."""
    return len({key.keyid for key in keys.keys} & set(signers)) >= keys.threshold


def signed(
    content: Role, signers: Signers, *keys: RoleKeys, also: Iterable[str] = ()
) -> Metadata[Role]:
    """Return content with the signatures of every key at hand that may sign it.

    keys: each must reach its threshold; a new root needs its own and those of the one before.
    also: further key ids, whose signature is welcome but not needed.
    Raises UsageError that says which keys are missing.
    """
    for group in keys:
        if not has_enough(signers, group):
            here = {key.keyid for key in group.keys} & set(signers)
            wanted = ", ".join(key.keyid[:12] for key in group.keys)
            raise UsageError(
                f"{content.type} needs {group.threshold} of the keys {wanted}, and {len(here)} "
                "are here; give more folders with --keys"
            )
    allowed = {key.keyid for group in keys for key in group.keys} | set(also)
    metadata: Metadata[Role] = Metadata(content)
    for keyid in sorted(allowed & set(signers)):
        metadata.sign(signers[keyid], append=True)
    return metadata


def _private_key(path: Path) -> Ed25519PrivateKey:
    content = read_capped(path, max_bytes=MAX_KEY_BYTES, follow_links=True)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{path} is not an unencrypted PEM private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError(f"{path} is not an Ed25519 key; make one with `edge-kit keygen`")
    return key
