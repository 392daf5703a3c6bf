import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge.bundle import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Bundle,
    blob_path,
    blob_problems,
    open_bundle,
)
from edge.errors import BundleError, StorageError, TrustError, UnknownKeyError
from edge.manifest import MAX_MANIFEST_BYTES, Artifact
from edge.trust import MAX_SIGNATURE_BYTES, public_key_from_pem, sign
from tests.bundles import affine_parts, make_key, write_bundle

KEY, OTHER = make_key(), make_key()
TRUSTED = (public_key_from_pem(KEY.public_pem, name="site.pub"),)
MANIFEST, FILES = affine_parts()
BLOB = "affine/golden/0/in/x.bin"
BLOB_BYTES = FILES[BLOB]
DIGEST = hashlib.sha256(BLOB_BYTES).hexdigest()

Damage = Callable[[Path], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", MANIFEST, FILES, KEY)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened, each as often as it is."""
    names: list[str] = []
    real = os.open

    def recorded(path: Path, *arguments: int, **options: int) -> int:
        names.append(Path(path).name)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", recorded)
    return names


def refused(root: Path, *, allow_unsigned: bool = False) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(root, TRUSTED, allow_unsigned=allow_unsigned)
    return str(caught.value)


def xor_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def replace_by(kind: str, path: Path) -> None:
    """Put something else in the place of a file; a link leads to the same content."""
    path.rename(path.with_name("moved"))
    if kind == "link":
        path.symlink_to("moved")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        assert kind == "nothing"


NOT_FILES = ("link", "dangling link", "directory", "pipe", "nothing")


def test_a_good_bundle_opens_with_its_signer_and_files(root: Path) -> None:
    bundle = open_bundle(root, TRUSTED)
    assert bundle.signed_by is TRUSTED[0]
    assert replace(bundle.manifest, artifacts=()) == MANIFEST
    for path, content in FILES.items():
        assert bundle.path(path).read_bytes() == content


def test_a_known_signer_is_kept_when_unsigned_is_allowed(root: Path) -> None:
    assert open_bundle(root, TRUSTED, allow_unsigned=True).signed_by is TRUSTED[0]


def test_a_blob_lies_under_its_digest(root: Path) -> None:
    assert blob_path(root, DIGEST) == root / "blobs" / "sha256" / DIGEST
    with pytest.raises(StorageError, match="not a plain path"):
        blob_path(root, "../../../etc/passwd")


def test_an_unsigned_bundle_is_refused_and_says_how_to_go_on(root: Path) -> None:
    (root / SIGNATURE_NAME).unlink()
    message = refused(root)
    assert message.startswith(f"{root / SIGNATURE_NAME} is missing: the bundle is unsigned")
    assert "`edge-kit sign`" in message
    assert "--allow-unsigned" in message


def test_an_unsigned_bundle_is_accepted_on_request(root: Path) -> None:
    (root / SIGNATURE_NAME).unlink()
    bundle = open_bundle(root, TRUSTED, allow_unsigned=True)
    assert bundle.signed_by is None


def test_a_bundle_of_an_unknown_key_is_refused(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle", MANIFEST, FILES, OTHER)
    for keys in (TRUSTED, ()):
        with pytest.raises(UnknownKeyError):
            open_bundle(root, keys)


def test_a_bundle_of_an_unknown_key_is_unsigned_on_request(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle", MANIFEST, FILES, OTHER)
    for keys in (TRUSTED, ()):
        assert open_bundle(root, keys, allow_unsigned=True).signed_by is None


def alter_manifest(root: Path) -> None:
    path = root / MANIFEST_NAME
    path.write_bytes(path.read_bytes().replace(b"2026.1", b"2026.2"))


def sign_something_else(root: Path) -> None:
    signature = sign(b"something else", KEY.private_pem, name="site.key")
    (root / SIGNATURE_NAME).write_bytes(signature)


BROKEN: dict[str, Damage] = {
    "manifest altered": alter_manifest,
    "manifest emptied": lambda root: (root / MANIFEST_NAME).write_bytes(b""),
    "manifest is no JSON": lambda root: (root / MANIFEST_NAME).write_bytes(b"[" * 9999),
    "signature of something else": sign_something_else,
    "signature altered": lambda root: xor_byte(root / SIGNATURE_NAME, -10),
    "signature cut": lambda root: os.truncate(root / SIGNATURE_NAME, 100),
    "signature emptied": lambda root: os.truncate(root / SIGNATURE_NAME, 0),
    "signature too large": lambda root: os.truncate(root / SIGNATURE_NAME, MAX_SIGNATURE_BYTES + 1),
    "signature is no file": lambda root: replace_by("directory", root / SIGNATURE_NAME),
    "signature is a pipe": lambda root: replace_by("pipe", root / SIGNATURE_NAME),
    "signature is a link": lambda root: replace_by("link", root / SIGNATURE_NAME),
    "signature leads nowhere": lambda root: replace_by("dangling link", root / SIGNATURE_NAME),
}
each_break = pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)


@each_break
@pytest.mark.parametrize("allow_unsigned", [False, True])
def test_a_broken_signature_is_never_the_same_as_none(
    root: Path, damage: Damage, allow_unsigned: bool
) -> None:
    damage(root)
    assert "manifest.sig" in refused(root, allow_unsigned=allow_unsigned)


@each_break
def test_no_blob_is_opened_before_the_signature_holds(
    root: Path, opened: list[str], damage: Damage
) -> None:
    damage(root)
    refused(root)
    assert set(opened) <= {MANIFEST_NAME, SIGNATURE_NAME}


def test_no_blob_of_an_unsigned_or_unknown_bundle_is_opened(
    tmp_path: Path, opened: list[str]
) -> None:
    for name, key in (("unsigned", None), ("unknown", OTHER)):
        refused(write_bundle(tmp_path / name, MANIFEST, FILES, key))
    assert set(opened) <= {MANIFEST_NAME, SIGNATURE_NAME}


def test_every_listed_blob_is_opened_and_nothing_else(root: Path, opened: list[str]) -> None:
    open_bundle(root, TRUSTED)
    digests = [hashlib.sha256(content).hexdigest() for content in FILES.values()]
    assert sorted(opened) == sorted([MANIFEST_NAME, SIGNATURE_NAME, *digests])


def test_the_signature_is_judged_before_the_manifest_is_parsed(root: Path) -> None:
    (root / MANIFEST_NAME).write_bytes(b"{}")
    with pytest.raises(TrustError, match=r"manifest\.json does not match its signature"):
        open_bundle(root, TRUSTED)


def test_a_signed_manifest_is_parsed_all_the_same(root: Path) -> None:
    (root / MANIFEST_NAME).write_bytes(b"{}")
    (root / SIGNATURE_NAME).write_bytes(sign(b"{}", KEY.private_pem, name="site.key"))
    assert refused(root).startswith("manifest.json is malformed")


@pytest.mark.parametrize("allow_unsigned", [False, True])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            lambda path: os.truncate(path, len(BLOB_BYTES) - 1),
            "size differs from the manifest's 32",
        ),
        (lambda path: os.truncate(path, 0), "size differs from the manifest's 32"),
        (
            lambda path: os.truncate(path, len(BLOB_BYTES) + 1),
            "size differs from the manifest's 32",
        ),
        (lambda path: xor_byte(path, 0), "content does not match its digest"),
        (lambda path: xor_byte(path, -1), "content does not match its digest"),
        *((lambda path, kind=kind: replace_by(kind, path), "cannot read") for kind in NOT_FILES),
    ],
)
def test_a_damaged_blob_is_named(
    root: Path, damage: Damage, problem: str, allow_unsigned: bool
) -> None:
    if allow_unsigned:
        (root / SIGNATURE_NAME).unlink()
    damage(blob_path(root, DIGEST))
    message = refused(root, allow_unsigned=allow_unsigned)
    assert message.startswith(f"{BLOB} (blobs/sha256/{DIGEST}): {problem}")
    assert message.endswith("; fetch the bundle again")


def test_a_blob_that_grew_is_refused_without_reading_it_all(root: Path) -> None:
    os.truncate(blob_path(root, DIGEST), 1 << 33)
    started = time.process_time()
    assert "size differs from the manifest's 32" in refused(root)
    # 8 GiB take seconds to digest, 33 bytes do not.
    assert time.process_time() - started < 1.0


def test_an_unreadable_blob_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def denied(path: Path, *arguments: int) -> int:
        if Path(path).name == DIGEST:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", denied)  # the tests may run as root, who may read anything
    assert refused(root).startswith(f"{BLOB} (blobs/sha256/{DIGEST}): cannot read")


def test_every_damaged_blob_is_told_in_the_order_of_the_manifest(root: Path) -> None:
    artifacts = open_bundle(root, TRUSTED).manifest.artifacts
    shutil.rmtree(root / "blobs")
    problems = list(blob_problems(root, artifacts))
    assert [problem.split(" ")[0] for problem in problems] == [a.path for a in artifacts]
    assert list(blob_problems(root, ())) == []


def test_a_size_that_the_blob_does_not_have_is_refused(root: Path) -> None:
    for size in (0, len(BLOB_BYTES) - 1, len(BLOB_BYTES) + 1, 2**63 - 1):
        wrong = Artifact(path=BLOB, size=size, sha256=DIGEST)
        (problem,) = blob_problems(root, (wrong,))
        assert f"size differs from the manifest's {size}" in problem


def test_files_that_the_manifest_does_not_list_are_ignored(root: Path, opened: list[str]) -> None:
    blobs = root / "blobs" / "sha256"
    extra = {blobs / ("0" * 64): b"unlisted", blobs / "..x": b"", root / "readme.txt": b"hello"}
    for path, content in extra.items():
        path.write_bytes(content)
    os.mkfifo(blobs / "pipe")
    (blobs / "link").symlink_to("/dev/zero")
    (root / "folder").mkdir()
    open_bundle(root, TRUSTED)
    assert not {path.name for path in (*extra, blobs / "pipe", blobs / "link")} & set(opened)


@pytest.mark.parametrize("allow_unsigned", [False, True])
def test_a_manifest_over_the_cap_is_refused(root: Path, allow_unsigned: bool) -> None:
    os.truncate(root / MANIFEST_NAME, MAX_MANIFEST_BYTES + 1)
    message = refused(root, allow_unsigned=allow_unsigned)
    assert f"{root / MANIFEST_NAME}: larger than the cap of {MAX_MANIFEST_BYTES}" in message


@pytest.mark.parametrize("kind", NOT_FILES)
def test_a_manifest_that_is_no_file_is_refused(root: Path, kind: str) -> None:
    replace_by(kind, root / MANIFEST_NAME)
    for allow_unsigned in (False, True):
        message = refused(root, allow_unsigned=allow_unsigned)
        assert message.startswith(f"cannot read {root / MANIFEST_NAME}: ")


@pytest.mark.parametrize("kind", ["dangling link", "pipe", "nothing"])
def test_a_bundle_that_is_no_directory_is_refused(root: Path, kind: str) -> None:
    replace_by(kind, root)
    assert refused(root).startswith(f"no bundle at {root}: not a directory")


def test_a_bundle_out_of_reach_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*: file name too long"):
        open_bundle(tmp_path / ("x" * 300), TRUSTED)


def test_the_bundle_itself_may_be_reached_through_a_link(root: Path) -> None:
    link = root.with_name("current")
    link.symlink_to(root)
    assert isinstance(open_bundle(link, TRUSTED), Bundle)
