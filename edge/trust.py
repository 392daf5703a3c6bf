"""Who may be loaded: Ed25519 signatures over the exact bytes of a Manifest.

Keys at rest are PEM files (PKCS#8, SubjectPublicKeyInfo), so `openssl` reads them too; the key
id is securesystemslib's, so that update channels can list the same keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, SSlibKey
from securesystemslib.signer import Signature as SSlibSignature

from edge.errors import TrustError, UnknownKeyError
from edge.files import read_capped, storage_errors

MAX_KEY_BYTES = 16 << 10
MAX_SIGNATURE_BYTES = 4 << 10
_SIGNATURE = re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The content of manifest.sig: id of the signing key, signature in lower-case hex."""

    keyid: str
    sig: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A public key that may sign bundles, and the file it came from."""

    name: str
    key: SSlibKey

    @property
    def keyid(self) -> str:
        """The securesystemslib key id: sha256 of the canonical public key."""
        return str(self.key.keyid)


def public_key_from_pem(content: bytes, *, name: str) -> TrustedKey:
    """Return the Ed25519 public key in a PEM file's content; raises TrustError naming it."""
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{name} is not a PEM public key; use the .pub file of keygen") from error
    if not isinstance(key, Ed25519PublicKey):
        raise TrustError(f"{name} is not an Ed25519 key; make one with `edge-kit keygen`")
    return TrustedKey(name=name, key=SSlibKey.from_crypto(key))


def public_key_from_private(private_key_pem: bytes, *, name: str) -> TrustedKey:
    """Return the public half of a private key; raises TrustError if the key is unusable."""
    key = _private_key(private_key_pem, name=name)
    return TrustedKey(name=name, key=SSlibKey.from_crypto(key.public_key()))


def trusted_keys_in(directory: Path) -> tuple[TrustedKey, ...]:
    """Return the keys in directory/*.pub, sorted by name; none if there is no such directory.

    Raises StorageError if the directory or a file cannot be read, TrustError if a file is no key.
    """
    with storage_errors("read", directory):
        paths = sorted(directory.glob("*.pub")) if directory.is_dir() else []
    return tuple(
        public_key_from_pem(
            read_capped(path, max_bytes=MAX_KEY_BYTES, follow_links=True), name=str(path)
        )
        for path in paths
    )


def sign(content: bytes, private_key_pem: bytes, *, name: str) -> bytes:
    """Return the bytes of manifest.sig for content; raises TrustError if the key is unusable."""
    signed = CryptoSigner(_private_key(private_key_pem, name=name)).sign(content)
    return _bytes_from_signature(Signature(keyid=signed.keyid, sig=signed.signature))


def signature_from_bytes(content: bytes) -> Signature:
    """Return the content of manifest.sig, unjudged; raises TrustError if it is not canonical."""
    try:
        parsed = msgspec.json.decode(content, type=Signature)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise TrustError(f"manifest.sig is malformed: {error}; sign the bundle again") from error
    if _bytes_from_signature(parsed) != content or not _SIGNATURE.fullmatch(parsed.sig):
        raise TrustError("manifest.sig is not in canonical form; sign the bundle again")
    return parsed


def verify(content: bytes, signature: bytes, keys: tuple[TrustedKey, ...]) -> TrustedKey:
    """Return the trusted key that signed content.

    Pure: bytes in, verdict out. Raises TrustError, naming manifest.sig or manifest.json, if the
    signature file is not canonical, its key is not among keys, or it does not match content.
    """
    parsed = signature_from_bytes(signature)
    key = next((key for key in keys if key.keyid == parsed.keyid), None)
    if key is None:
        known = ", ".join(f"{key.keyid[:12]} ({key.name})" for key in keys) or "none"
        raise UnknownKeyError(
            f"manifest.sig was made by the unknown key {parsed.keyid[:12]!r}; trusted keys: "
            f"{known}; install the signer's .pub file or sign with a trusted key"
        )
    try:
        key.key.verify_signature(SSlibSignature(parsed.keyid, parsed.sig), content)
    except UnverifiedSignatureError as error:
        raise TrustError(
            "manifest.json does not match its signature in manifest.sig: one of them was altered; "
            "fetch the bundle again, or sign it again if you changed it"
        ) from error
    return key


def _private_key(content: bytes, *, name: str) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{name} is not an unencrypted PEM private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError(f"{name} is not an Ed25519 key; make one with `edge-kit keygen`")
    return key


def _bytes_from_signature(signature: Signature) -> bytes:
    return msgspec.json.encode(signature, order="sorted") + b"\n"
