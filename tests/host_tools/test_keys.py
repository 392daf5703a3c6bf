from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edge.bundle import open_bundle
from edge.errors import StorageError, TrustError, UsageError
from edge.trust import trusted_keys_in
from host_tools.keys import generate_keys, sign_bundle
from tests.bundles import affine_parts, write_bundle


def bundle(folder: Path) -> Path:
    manifest, files = affine_parts()
    return write_bundle(folder / "bundle", manifest, files, None)


def test_openssl_accepts_the_signature_and_the_keys(tmp_path: Path) -> None:
    import json

    private, public = generate_keys("release", tmp_path)
    root = bundle(tmp_path)
    sign_bundle(root, private)
    signature = bytes.fromhex(json.loads((root / "manifest.sig").read_bytes())["sig"])
    (tmp_path / "raw.sig").write_bytes(signature)
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(public)]
    files = ["-in", str(root / "manifest.json"), "-sigfile", str(tmp_path / "raw.sig")]
    result = subprocess.run([*command, *files], capture_output=True, text=True)
    assert "Signature Verified Successfully" in result.stdout


def test_the_private_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    private, public = generate_keys("release", tmp_path)
    assert private.stat().st_mode & 0o777 == 0o600
    assert public.stat().st_mode & 0o777 == 0o644


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    private, _ = generate_keys("release", tmp_path)
    before = private.read_bytes()
    with pytest.raises(StorageError, match="never overwritten"):
        generate_keys("release", tmp_path)
    assert private.read_bytes() == before


def test_signing_again_with_another_key_replaces_the_signature(tmp_path: Path) -> None:
    root = bundle(tmp_path)
    for name in ("old", "new"):
        private, _ = generate_keys(name, tmp_path / name)
        sign_bundle(root, private)
    assert open_bundle(root, trusted_keys_in(tmp_path / "new")).signed_by is not None
    with pytest.raises(TrustError, match="unknown key"):
        open_bundle(root, trusted_keys_in(tmp_path / "old"))


def test_a_public_key_or_a_missing_one_cannot_sign(tmp_path: Path) -> None:
    _, public = generate_keys("release", tmp_path)
    with pytest.raises(TrustError, match="not an unencrypted PEM private key"):
        sign_bundle(bundle(tmp_path), public)
    with pytest.raises(UsageError, match="no key at"):
        sign_bundle(tmp_path / "bundle", tmp_path / "none.key")


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    from edge.errors import StorageError
    from host_tools.keys import generate_keys

    # The public PEM has 113 bytes, the private one 119.
    resource.setrlimit(resource.RLIMIT_FSIZE, (116, 116))
    try:
        generate_keys("release", Path(sys.argv[1]))
    except StorageError as error:
        print(error)
"""


def test_a_disk_too_full_for_both_files_is_left_with_neither(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"cannot write {tmp_path}/release.key: file too large\n"
    assert list(tmp_path.iterdir()) == []


def test_keys_may_be_reached_through_links(tmp_path: Path) -> None:
    private, public = generate_keys("release", tmp_path / "real")
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    (trusted / "release.pub").symlink_to(public)
    (tmp_path / "link.key").symlink_to(private)
    root = bundle(tmp_path)
    sign_bundle(root, tmp_path / "link.key")
    assert open_bundle(root, trusted_keys_in(trusted)).signed_by is not None
