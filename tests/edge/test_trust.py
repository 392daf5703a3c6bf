import base64
import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import StorageError, TrustError, UnknownKeyError
from edge.trust import (
    TrustedKey,
    public_key_from_pem,
    sign,
    signature_from_bytes,
    trusted_keys_in,
    verify,
)
from tests.bundles import make_key

# Order of the base point, RFC 8032 section 5.1.
ORDER = 2**252 + 27742317777372353535851937790883648493
KEY = make_key()
TRUSTED = public_key_from_pem(KEY.public_pem, name="site.pub")
CONTENT = b'{"name": "net"}\n'
SIGNATURE = sign(CONTENT, KEY.private_pem, name="site.key")


@dataclass(frozen=True)
class Vector:
    """A test vector of RFC 8032, section 7.1, in hex."""

    secret: str
    public: str
    message: str
    signature: str


VECTORS = {
    "TEST 1": Vector(
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
        "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    "TEST 2": Vector(
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da0"
        "85ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    "TEST 3": Vector(
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac1"
        "8ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    "TEST SHA(abc)": Vector(
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        hashlib.sha512(b"abc").hexdigest(),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b5890"
        "9351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
}
each_vector = pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)


def pem(kind: str, der: bytes) -> bytes:
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN {kind}-----\n{body}-----END {kind}-----\n".encode()


def vector_key(vector: Vector) -> TrustedKey:
    # SubjectPublicKeyInfo of RFC 8410: a fixed head, then the 32 bytes of the key.
    der = bytes.fromhex("302a300506032b6570032100" + vector.public)
    return public_key_from_pem(pem("PUBLIC KEY", der), name="rfc.pub")


def key_id(public_hex: str) -> str:
    """Return the key id by its definition: the digest of the canonical JSON of the key."""
    key = {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": public_hex}}
    return hashlib.sha256(
        json.dumps(key, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def signature_file(keyid: str, sig: str) -> bytes:
    return f'{{"keyid":"{keyid}","sig":"{sig}"}}\n'.encode()


def public_pem(key: object) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, form)  # type: ignore[attr-defined]


def private_pem(key: object, password: bytes | None = None) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, encryption)  # type: ignore[attr-defined]


def other_keys() -> dict[str, object]:
    return {
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "ed448": ed448.Ed448PrivateKey.generate(),
        "x25519": x25519.X25519PrivateKey.generate(),
    }


OTHER_KEYS = other_keys()
each_other_key = pytest.mark.parametrize("key", OTHER_KEYS.values(), ids=OTHER_KEYS)


def refused(signature: bytes, content: bytes = CONTENT) -> str:
    with pytest.raises(TrustError) as caught:
        verify(content, signature, (TRUSTED,))
    return str(caught.value)


@each_vector
def test_the_vectors_of_rfc_8032_verify(vector: Vector) -> None:
    key = vector_key(vector)
    content = bytes.fromhex(vector.message)
    signature = signature_file(key_id(vector.public), vector.signature)
    assert verify(content, signature, (key,)) is key
    with pytest.raises(TrustError, match="does not match"):
        verify(content + b"\0", signature, (key,))


@each_vector
def test_the_vectors_of_rfc_8032_are_what_sign_writes(vector: Vector) -> None:
    # PKCS#8 of RFC 8410: a fixed head, then the 32 bytes of the seed.
    der = bytes.fromhex("302e020100300506032b657004220420" + vector.secret)
    signed = sign(bytes.fromhex(vector.message), pem("PRIVATE KEY", der), name="rfc.key")
    assert signed == signature_file(key_id(vector.public), vector.signature)


def test_a_signature_with_a_second_scalar_is_refused() -> None:
    # s + L satisfies the equation too; RFC 8032 asks for s < L, or a signature has many spellings.
    vector = VECTORS["TEST 2"]
    r, s = bytes.fromhex(vector.signature)[:32], bytes.fromhex(vector.signature)[32:]
    second = r + (int.from_bytes(s, "little") + ORDER).to_bytes(32, "little")
    with pytest.raises(TrustError, match="does not match"):
        verify(
            bytes.fromhex(vector.message),
            signature_file(key_id(vector.public), second.hex()),
            (vector_key(vector),),
        )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_key_and_a_signature_of_openssl_are_accepted(tmp_path: Path) -> None:
    def openssl(*arguments: str) -> bytes:
        return subprocess.run(
            ["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True
        ).stdout

    openssl("genpkey", "-algorithm", "ED25519", "-out", "key.pem")
    key = public_key_from_pem(openssl("pkey", "-in", "key.pem", "-pubout"), name="key.pub")
    (tmp_path / "content").write_bytes(CONTENT)
    raw = openssl("pkeyutl", "-sign", "-rawin", "-inkey", "key.pem", "-in", "content")
    assert verify(CONTENT, signature_file(key.keyid, raw.hex()), (key,)) is key
    # Ed25519 is deterministic: two signers of one key write the same bytes.
    ours = sign(CONTENT, (tmp_path / "key.pem").read_bytes(), name="key.pem")
    assert ours == signature_file(key.keyid, raw.hex())


@each_other_key
def test_a_public_key_of_another_kind_is_refused(key: object) -> None:
    with pytest.raises(TrustError) as caught:
        public_key_from_pem(public_pem(key), name="/keys/a.pub")
    assert str(caught.value) == (
        "/keys/a.pub is not an Ed25519 key; make one with `edge-kit keygen`"
    )


@each_other_key
def test_a_private_key_of_another_kind_cannot_sign(key: object) -> None:
    with pytest.raises(TrustError, match=r"a\.key is not an Ed25519 key; make one with"):
        sign(CONTENT, private_pem(key), name="a.key")


GARBAGE = {
    "nothing": b"",
    "text": b"ssh-ed25519 AAAA user@host\n",
    "binary": bytes(range(256)),
    "empty body": b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
    "no end": KEY.public_pem[:-20],
    "not base64": KEY.public_pem.replace(b"M", b"!", 1),
    "short key": pem("PUBLIC KEY", bytes.fromhex("302a300506032b6570032100") + bytes(31)),
    "the wrong label": KEY.public_pem.replace(b"PUBLIC", b"PRIVATE"),
    "the other half": KEY.private_pem,
    "utf-16": KEY.public_pem.decode().encode("utf-16"),
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_public_key_is_refused_by_its_name(content: bytes) -> None:
    with pytest.raises(TrustError) as caught:
        public_key_from_pem(content, name="a.pub")
    assert str(caught.value) == "a.pub is not a PEM public key; use the .pub file of keygen"


def test_a_public_key_cut_at_any_length_is_refused() -> None:
    whole = KEY.public_pem.rstrip(b"\n")
    for length in range(len(whole)):
        with pytest.raises(TrustError):
            public_key_from_pem(whole[:length], name="a.pub")


@given(st.binary(max_size=80))
def test_any_bytes_in_pem_armour_are_a_key_or_a_trust_error(der: bytes) -> None:
    for label in ("PUBLIC KEY", "CERTIFICATE", "RSA PUBLIC KEY"):
        with pytest.raises(TrustError, match=r"^a\.pub is not"):
            public_key_from_pem(pem(label, der), name="a.pub")


@pytest.mark.parametrize("content", [b"", KEY.public_pem, KEY.private_pem[:-30], bytes(range(256))])
def test_what_is_no_private_key_cannot_sign(content: bytes) -> None:
    with pytest.raises(TrustError, match=r"^a\.key is not an unencrypted PEM private key$"):
        sign(CONTENT, content, name="a.key")


def test_an_encrypted_private_key_cannot_sign() -> None:
    encrypted = private_pem(ed25519.Ed25519PrivateKey.generate(), b"password")
    with pytest.raises(TrustError, match=r"^a\.key is not an unencrypted PEM private key$"):
        sign(CONTENT, encrypted, name="a.key")


def test_a_signature_cut_at_any_length_is_refused() -> None:
    for length in range(len(SIGNATURE)):
        assert "manifest.sig" in refused(SIGNATURE[:length]), length


def test_a_signature_with_any_byte_changed_added_or_taken_is_refused() -> None:
    for position in range(len(SIGNATURE)):
        head, tail = SIGNATURE[:position], SIGNATURE[position:]
        for content in (
            *(head + bytes([tail[0] ^ 1 << bit]) + tail[1:] for bit in range(8)),
            *(head + extra + tail for extra in (b" ", b"\n", b"0", b"\0", b"\xff")),
            head + tail[1:],
        ):
            if content != SIGNATURE:
                assert "manifest.sig" in refused(content), (position, content)


PARSED = json.loads(SIGNATURE)
RESPELLED = {
    "upper case": signature_file(PARSED["keyid"], PARSED["sig"].upper()),
    "one digit less": signature_file(PARSED["keyid"], PARSED["sig"][:-1]),
    "one byte less": signature_file(PARSED["keyid"], PARSED["sig"][:-2]),
    "one byte more": signature_file(PARSED["keyid"], PARSED["sig"] + "00"),
    "no signature": signature_file(PARSED["keyid"], ""),
    "not hex": signature_file(PARSED["keyid"], "g" * 128),
    "wide digits": signature_file(PARSED["keyid"], "\N{FULLWIDTH DIGIT ONE}" * 128),
    "with prefix": signature_file(PARSED["keyid"], "0x" + PARSED["sig"][2:]),
    "with spaces": json.dumps(PARSED).encode() + b"\n",
    "no line end": SIGNATURE[:-1],
    "two line ends": SIGNATURE + b"\n",
    "another order": f'{{"sig":"{PARSED["sig"]}","keyid":"{PARSED["keyid"]}"}}\n'.encode(),
    "an unknown field": SIGNATURE.replace(b"}", b',"x":1}'),
    "a key twice": SIGNATURE.replace(b"{", b'{"keyid":"0",'),
    "an escape": SIGNATURE.replace(b'"sig"', b'"\\u0073ig"'),
}


@pytest.mark.parametrize("signature", RESPELLED.values(), ids=RESPELLED)
def test_a_signature_has_one_spelling(signature: bytes) -> None:
    assert refused(signature) == "manifest.sig is not in canonical form; sign the bundle again"


MALFORMED = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "no field": b"{}\n",
    "a number": b'{"keyid":1,"sig":2}\n',
    "two documents": SIGNATURE + SIGNATURE,
    "raw bytes": bytes.fromhex(PARSED["sig"]),
    "not utf-8": b'{"keyid":"\xff","sig":""}\n',
    "a surrogate": b'{"keyid":"\\ud800","sig":""}\n',
    "deep": b'{"x":' + b"[" * 2000 + b"]" * 2000 + b"}",
    "deep objects": b'{"x":' * 800,
}


@pytest.mark.parametrize("signature", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_signature_is_refused(signature: bytes) -> None:
    message = refused(signature)
    assert message.startswith("manifest.sig is malformed: ")
    assert message.endswith("; sign the bundle again")
    with pytest.raises(TrustError):
        signature_from_bytes(signature)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_as_a_signature(signature: bytes) -> None:
    assert "manifest.sig" in refused(signature)


def test_altered_content_is_refused() -> None:
    for position in range(len(CONTENT)):
        altered = CONTENT[:position] + bytes([CONTENT[position] ^ 1]) + CONTENT[position + 1 :]
        message = refused(SIGNATURE, altered)
        assert message.startswith("manifest.json does not match its signature in manifest.sig")


def test_the_key_that_signed_is_found_among_many() -> None:
    others = tuple(public_key_from_pem(make_key().public_pem, name=f"{i}") for i in range(3))
    assert verify(CONTENT, SIGNATURE, (*others, TRUSTED)) is TRUSTED


def test_an_unknown_key_is_named_with_the_known_ones() -> None:
    other = public_key_from_pem(make_key().public_pem, name="other.pub")
    with pytest.raises(UnknownKeyError) as caught:
        verify(CONTENT, SIGNATURE, (other,))
    message = str(caught.value)
    assert f"unknown key '{TRUSTED.keyid[:12]}'" in message
    assert f"trusted keys: {other.keyid[:12]} (other.pub);" in message


def test_without_trusted_keys_every_signature_is_unknown() -> None:
    with pytest.raises(UnknownKeyError, match="trusted keys: none; install the signer's"):
        verify(CONTENT, SIGNATURE, ())


def test_a_signature_under_the_id_of_another_trusted_key_is_refused() -> None:
    other_pair = make_key()
    other = public_key_from_pem(other_pair.public_pem, name="other.pub")
    swapped = signature_file(other.keyid, PARSED["sig"])
    with pytest.raises(TrustError, match="does not match") as caught:
        verify(CONTENT, swapped, (TRUSTED, other))
    assert not isinstance(caught.value, UnknownKeyError)


def test_the_trusted_keys_are_the_pub_files_by_name(tmp_path: Path) -> None:
    first, second = make_key(), make_key()
    (tmp_path / "b.pub").write_bytes(first.public_pem)
    (tmp_path / "a.pub").write_bytes(second.public_pem)
    (tmp_path / "a.key").write_bytes(b"never read")
    (tmp_path / "a.pub.bak").write_bytes(b"never read")
    names = [key.name for key in trusted_keys_in(tmp_path)]
    assert names == [str(tmp_path / "a.pub"), str(tmp_path / "b.pub")]


def test_no_directory_or_an_empty_one_trusts_nobody(tmp_path: Path) -> None:
    assert trusted_keys_in(tmp_path) == ()
    assert trusted_keys_in(tmp_path / "none") == ()


def test_one_bad_key_file_is_named_not_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_bytes(KEY.public_pem)
    (tmp_path / "b.pub").write_bytes(b"garbage")
    with pytest.raises(TrustError, match=r"b\.pub is not a PEM public key"):
        trusted_keys_in(tmp_path)


def test_a_key_file_that_is_no_small_regular_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pub"
    path.write_bytes(KEY.public_pem + b"\n" * (16 << 10))
    with pytest.raises(StorageError, match=r"a\.pub: larger than the cap of 16384 bytes"):
        trusted_keys_in(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(StorageError, match=r"cannot read .*a\.pub"):
        trusted_keys_in(tmp_path)


def test_a_key_directory_out_of_reach_is_an_error_not_an_empty_list(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*: file name too long"):
        trusted_keys_in(tmp_path / ("x" * 300))
