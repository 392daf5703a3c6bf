"""A payload lists what a device gets, by digest, and nothing goes in that was not verified."""

import hashlib
import json

import pytest

from edge.errors import BundleError, ConfigError, EdgeError, StorageError, TrustError, UsageError
from host_tools.flash.payload import chunks_of, config_from_file, make_payload
from host_tools.flash.wheelhouse import WheelhouseError
from tests.bundles import affine_parts, make_key, write_bundle
from tests.host_tools.flash.devices import files_in
from tests.host_tools.flash.payloads import small_payload, write_key, write_wheelhouse


def test_the_list_names_every_file_with_its_size_and_digest(tmp_path):
    payload = small_payload(tmp_path / "here")
    payload.write(tmp_path / "payload")
    written = files_in(tmp_path / "payload")
    listed = json.loads(written.pop("payload.json"))
    blobs = {name: content for name, content in written.items() if "/blobs/" in name}
    others = {
        name: {"path": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in written.items()
        if name not in blobs
    }
    assert {file["path"]: file for file in listed["files"]} == others
    assert {(b["sha256"], b["size"]) for b in listed["blobs"]} == {
        (hashlib.sha256(content).hexdigest(), len(content)) for content in blobs.values()
    }
    assert {name.partition("/")[0] for name in others} == {
        "bundle", "device_setup.pyz", "keys", "wheels",
    }  # fmt: skip
    manifest = written["bundle/manifest.json"]
    assert listed["bundle"]["id"] == hashlib.sha256(manifest).hexdigest()


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    payload = small_payload(tmp_path / "here")
    again = make_payload(
        tmp_path / "here/bundle",
        wheelhouse=tmp_path / "here/wheelhouse",
        keys=(tmp_path / "here/release.pub",),
        config={"port": 8123},
    )
    assert again.content == payload.content


def test_writing_twice_leaves_every_file_as_it_is(tmp_path):
    payload = small_payload(tmp_path / "here")
    folder = tmp_path / "payload"
    payload.write(folder)
    before = {path: path.stat().st_ino for path in folder.rglob("*") if path.name != "payload.json"}
    payload.write(folder)
    assert before == {p: p.stat().st_ino for p in folder.rglob("*") if p.name != "payload.json"}


def test_a_file_is_read_from_an_offset_on(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert b"".join(chunks_of(tmp_path / "file", offset=1_234_567)) == content[1_234_567:]
    assert b"".join(chunks_of(content, offset=7)) == content[7:]


def parts(tmp_path):
    """Return what make_payload takes, all good."""
    key, public = write_key(tmp_path)
    bundle = write_bundle(tmp_path / "bundle", *affine_parts(), key)
    house = write_wheelhouse(tmp_path / "wheelhouse")
    return bundle, {"wheelhouse": house, "keys": (public,), "config": {}}


def spoil_nothing_there(bundle, given):
    return bundle.parent / "nothing", given


def spoil_no_manifest(bundle, given):
    (bundle / "manifest.json").unlink()
    return bundle, given


def spoil_signature(bundle, given):
    (bundle / "manifest.sig").unlink()
    return bundle, given


def spoil_blob(bundle, given):
    blob = next((bundle / "blobs/sha256").iterdir())
    blob.write_bytes(blob.read_bytes() + b"x")
    return bundle, given


def spoil_signer(bundle, given):
    given["keys"][0].write_bytes(make_key().public_pem)
    return bundle, given


def spoil_key(bundle, given):
    given["keys"][0].write_bytes(b"no key")
    return bundle, given


def spoil_no_key(bundle, given):
    return bundle, {**given, "keys": ()}


def spoil_wheel(bundle, given):
    next(given["wheelhouse"].glob("pip-*")).write_bytes(b"other")
    return bundle, given


def spoil_wheelhouse(bundle, given):
    return bundle, {**given, "wheelhouse": bundle}


def spoil_config(bundle, given):
    return bundle, {**given, "config": {"slots": "/elsewhere"}}


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (spoil_nothing_there, BundleError, "no bundle at"),
        (spoil_no_manifest, BundleError, "manifest.json"),
        (spoil_signature, TrustError, "unsigned"),
        (spoil_blob, BundleError, "size differs"),
        (spoil_signer, TrustError, "unknown key"),
        (spoil_key, TrustError, "not a PEM public key"),
        (spoil_no_key, UsageError, "--key"),
        (spoil_wheel, (WheelhouseError, StorageError), "pip-1"),
        (spoil_wheelhouse, WheelhouseError, "no wheelhouse"),
        (spoil_config, UsageError, "sets slots"),
    ],
)
def test_what_is_no_good_is_refused_here(tmp_path, spoil, error, words):
    bundle, given = spoil(*parts(tmp_path))
    with pytest.raises(error, match=words) as caught:
        make_payload(bundle, **given)
    assert isinstance(caught.value, EdgeError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"prot": 8000}', '{"port": 70000}', '{"port": "x"}'])
def test_a_bad_configuration_is_refused_here_and_not_by_the_device(tmp_path, text):
    path = tmp_path / "agent.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        config_from_file(path)


def test_a_good_configuration_is_taken_as_it_is(tmp_path):
    path = tmp_path / "agent.json"
    path.write_text('{"port": 8123, "warm_up": false}')
    assert config_from_file(path) == {"port": 8123, "warm_up": False}
    assert config_from_file(None) == {}
