"""Signing keys: make a pair, sign a bundle."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge.bundle import MANIFEST_NAME, SIGNATURE_NAME
from edge.errors import StorageError, UsageError
from edge.files import atomic_write, read_capped, storage_errors
from edge.manifest import MAX_MANIFEST_BYTES, is_plain_name
from edge.manifest_reading import manifest_from_bytes
from edge.trust import MAX_KEY_BYTES, public_key_from_pem, sign


def generate_keys(name: str, folder: Path) -> tuple[Path, Path]:
    """Write folder/NAME.key (private, mode 0600) and folder/NAME.pub; return both paths.

    Raises StorageError if either exists, because a key is never overwritten, or cannot be
    written; then neither is left behind.
    """
    if not is_plain_name(name):
        raise UsageError(f"key name {name!r}: use letters, digits, '.', '-' and '_' only")
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    for path in (private, public):
        if path.exists():
            raise StorageError(f"{path} exists; a key is never overwritten, choose another name")
    with storage_errors("create", folder):
        folder.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    atomic_write(public, public_pem)
    try:
        atomic_write(private, pem, mode=0o600)
    except StorageError:
        public.unlink()
        raise
    return private, public


def read_private_key(path: Path) -> bytes:
    """Return the PEM content of a private key file; raises UsageError if there is none."""
    if not path.is_file():
        raise UsageError(f"no key at {path}; make one with `edge-kit keygen`")
    return read_capped(path, max_bytes=MAX_KEY_BYTES, follow_links=True)


def sign_bundle(root: Path, key: Path) -> None:
    """Write manifest.sig over the exact bytes of root/manifest.json, replacing an earlier one.

    Raises BundleError if the manifest is malformed, TrustError if the key cannot sign.
    """
    pem = read_private_key(key)
    if not (root / MANIFEST_NAME).is_file():
        raise UsageError(f"no bundle at {root}: it has no {MANIFEST_NAME}")
    content = read_capped(root / MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
    manifest_from_bytes(content)
    atomic_write(root / SIGNATURE_NAME, sign(content, pem, name=str(key)))


def key_id(public: Path) -> str:
    """Return the id of a public key file."""
    content = read_capped(public, max_bytes=MAX_KEY_BYTES, follow_links=True)
    return public_key_from_pem(content, name=str(public)).keyid
