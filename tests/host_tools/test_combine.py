"""`edge-kit combine`: several verified bundles become one, and an agent serves all of it."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.model_file import load_model, save_model
from calibration.runtime import Runner
from edge.agent_process import agent_process
from edge.bundle import MANIFEST_NAME, SIGNATURE_NAME, open_bundle
from edge.errors import BundleError, EdgeError, StorageError, TrustError, UsageError
from edge.http_client import AgentClient
from edge.manifest import Manifest, bytes_from_manifest
from edge.oip_client import infer
from edge.trust import sign, trusted_keys_in
from host_tools.combine import CombineRequest, combine
from host_tools.keys import generate_keys, sign_bundle
from host_tools.pack import PackRequest, pack
from tests.bundles import affine_parts, make_key, write_bundle
from tests.calibration.nets import conv_net, write_samples
from tests.host_tools.commands import invoke
from tests.host_tools.killing import killed_at_every_step


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two nets, the bundles "first" and "second" of them, and the key of both."""
    folder = tmp_path_factory.mktemp("packed")
    private, _ = generate_keys("release", folder / "keys")
    samples = write_samples(folder / "samples.npz", 20)
    for seed, (name, version) in enumerate((("first", "1"), ("second", "2.0"))):
        save_model(conv_net(seed), folder / f"{name}.onnx")
        request = PackRequest(
            out=folder / name,
            name=name,
            version="7",
            model_version=version,
            fp32=folder / f"{name}.onnx",
            golden=samples,
            key=private,
            threads=1,
        )
        pack(request, say=lambda _: None)
    return folder


def request_for(folder: Path, out: Path, **changes: object) -> CombineRequest:
    values: dict[str, object] = {
        "bundles": (folder / "first", folder / "second"),
        "out": out,
        "name": "both",
        "key": folder / "keys" / "release.key",
        "trusted_keys": folder / "keys",
    }
    return CombineRequest(**{**values, **changes})  # type: ignore[arg-type]


def manifest_of(root: Path, keys: Path) -> Manifest:
    return open_bundle(root, trusted_keys_in(keys)).manifest


def test_the_models_keep_their_evidence_and_equal_files_are_stored_once(
    packed: Path, tmp_path: Path
) -> None:
    made = combine(request_for(packed, tmp_path / "both", version="2026.2"))
    manifest = manifest_of(tmp_path / "both", packed / "keys")
    assert made.manifest == manifest
    assert (manifest.name, manifest.version) == ("both", "2026.2")
    sources = [manifest_of(packed / name, packed / "keys") for name in ("first", "second")]
    assert manifest.models == tuple(source.models[0] for source in sources)
    listed = {artifact for source in sources for artifact in source.artifacts}
    assert set(manifest.artifacts) == listed
    blobs = list((tmp_path / "both" / "blobs" / "sha256").iterdir())
    assert {blob.name for blob in blobs} == {artifact.sha256 for artifact in listed}
    assert len(blobs) < len(listed)  # both were packed with the same golden inputs


def test_nothing_that_happens_to_a_source_reaches_the_combined_bundle(
    packed: Path, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        shutil.copytree(packed / name, tmp_path / name)
    sources = (tmp_path / "first", tmp_path / "second")
    combine(request_for(packed, tmp_path / "both", bundles=sources))
    for source in sources:
        for blob in (source / "blobs" / "sha256").iterdir():
            blob.write_bytes(b"altered in place")
    manifest_of(tmp_path / "both", packed / "keys")


def test_an_agent_answers_for_every_model_and_version_of_a_combined_bundle(
    packed: Path, tmp_path: Path
) -> None:
    combine(request_for(packed, tmp_path / "both"))
    flags = ["--bundle", "both", "--trusted-keys", str(packed / "keys"), "--port", "0"]
    images = np.load(packed / "samples.npz")["x"][:5]
    with agent_process(tmp_path, flags) as (url, _):
        for name, version in (("first", "1"), ("second", "2.0")):
            expected = Runner(load_model(packed / f"{name}.onnx")).run({"x": images})["logits"]
            for path in (name, f"{name}/versions/{version}"):
                with closing(AgentClient(url)) as client:
                    got = infer(client, path, {"x": images})["logits"]
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        index = urllib.request.Request(f"{url}/v2/repository/index", data=b"{}")
        entries = json.load(urllib.request.urlopen(index))
        assert [(e["name"], e["version"], e["state"]) for e in entries] == [
            ("first", "1", "READY"),
            ("second", "2.0", "READY"),
        ]
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}/v2/models/second/versions/1")
        assert caught.value.code == 404
        assert "this bundle has '2.0'" in json.load(caught.value)["error"]
        caught.value.close()


def test_a_combined_bundle_combines_further(packed: Path, tmp_path: Path) -> None:
    key = packed / "keys" / "release.key"
    manifest, files = affine_parts()
    write_bundle(tmp_path / "affine", manifest, files, None)
    sign_bundle(tmp_path / "affine", key)
    combine(request_for(packed, tmp_path / "both"))
    three = (tmp_path / "both", tmp_path / "affine")
    made = combine(request_for(packed, tmp_path / "three", bundles=three))
    assert [model.name for model in made.manifest.models] == ["first", "second", "affine"]


def test_an_unsigned_bundle_needs_the_flag_and_a_key_then_vouches_for_it(
    packed: Path, tmp_path: Path
) -> None:
    shutil.copytree(packed / "first", tmp_path / "unsigned")
    (tmp_path / "unsigned" / SIGNATURE_NAME).unlink()
    bundles = (tmp_path / "unsigned", packed / "second")
    request = request_for(packed, tmp_path / "both", bundles=bundles)
    with pytest.raises(TrustError, match=r"unsigned/manifest\.sig is missing"):
        combine(request)
    with pytest.raises(UsageError, match="give --trusted-keys"):
        combine(replace(request, trusted_keys=None))
    assert not request.out.exists()
    combine(replace(request, trusted_keys=None, allow_unsigned=True))
    manifest_of(request.out, packed / "keys")
    made = combine(replace(request, out=tmp_path / "none", key=None, allow_unsigned=True))
    assert made.signed_by is None
    assert not (tmp_path / "none" / SIGNATURE_NAME).exists()


def alter_a_blob(root: Path) -> None:
    blob = max((root / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)


def alter_the_manifest(root: Path) -> None:
    path = root / MANIFEST_NAME
    path.write_bytes(path.read_bytes().replace(b'"second"', b'"zecond"'))


def sign_by_a_stranger(root: Path) -> None:
    content = (root / MANIFEST_NAME).read_bytes()
    (root / SIGNATURE_NAME).write_bytes(sign(content, make_key().private_pem, name="stranger"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (alter_a_blob, "content does not match its digest"),
        (alter_the_manifest, "does not match its signature"),
        (sign_by_a_stranger, "made by the unknown key"),
    ],
)
def test_a_bundle_that_does_not_verify_is_named_and_nothing_is_written(
    packed: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(packed / "second", bad)
    change(bad)
    with pytest.raises(BundleError, match=message) as caught:
        combine(request_for(packed, tmp_path / "both", bundles=(packed / "first", bad)))
    assert str(caught.value).startswith(f"{bad}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_models_of_one_name_are_refused_with_both_bundles_named(
    packed: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(packed / "first", again)
    with pytest.raises(UsageError) as caught:
        combine(request_for(packed, tmp_path / "both", bundles=(packed / "first", again)))
    assert str(caught.value) == (
        f"{packed / 'first'} and {again} both have a model 'first', and clients ask for models by "
        "name; pack one of them under another --name"
    )


def test_two_files_of_one_path_are_refused_unless_they_are_equal(
    packed: Path, tmp_path: Path
) -> None:
    key = packed / "keys" / "release.key"
    manifest, files = affine_parts()
    write_bundle(tmp_path / "one", manifest, files, None)
    model = replace(manifest.models[0], name="other")
    for name, content in (("equal", files), ("unlike", {**files, "affine/int8.onnx": b"another"})):
        write_bundle(tmp_path / name, replace(manifest, models=(model,)), content, None)
    for name in ("one", "equal", "unlike"):
        sign_bundle(tmp_path / name, key)
    request = request_for(packed, tmp_path / "both", bundles=(tmp_path / "one", tmp_path / "equal"))
    assert len(combine(request).manifest.artifacts) == len(files)
    with pytest.raises(UsageError, match=r"one and .*unlike both have a file 'affine/int8.onnx'"):
        combine(
            replace(request, out=tmp_path / "no", bundles=(tmp_path / "one", tmp_path / "unlike"))
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "--name 'a/b'"),
        ({"name": "x" * 129}, "1 to 128 letters"),
        ({"version": ""}, "--bundle-version is empty"),
        ({"version": "x" * 201}, "--bundle-version has 201 characters"),
        ({"version": "\udcff"}, "--bundle-version has a character that cannot be printed"),
        ({"key": Path("gone.key")}, "no key at gone.key"),
        ({"bundles": (Path("gone"),)}, "no bundle at gone"),
    ],
)
def test_bad_arguments_are_told_and_leave_nothing(
    packed: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(EdgeError, match=message):
        combine(request_for(packed, tmp_path / "both", **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_cannot_sign_and_a_folder_that_exists_leave_nothing(
    packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrustError, match="not an unencrypted PEM private key"):
        combine(request_for(packed, tmp_path / "both", key=packed / "keys" / "release.pub"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "both").mkdir()
    with pytest.raises(StorageError, match="it exists"):
        combine(request_for(packed, tmp_path / "both"))


def test_a_source_that_changes_while_it_is_copied_is_noticed(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_something_else(source: object, sink: object) -> None:
        sink.write(b"not what was verified")  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "copyfileobj", copy_something_else)
    with pytest.raises(BundleError, match="fetch the bundle again"):
        combine(request_for(packed, tmp_path / "both"))
    assert list(tmp_path.iterdir()) == []


COMBINE = """
    from host_tools.combine import CombineRequest, combine

    def write():
        combine(CombineRequest(
            bundles=(folder / "first", folder / "second"), out=out, name="both",
            key=folder / "keys" / "release.key", trusted_keys=folder / "keys"))
"""


def test_kill_9_at_any_step_of_combine_leaves_no_half_bundle(packed: Path, tmp_path: Path) -> None:
    # Every file is opened to write, to check and to sync.
    assert killed_at_every_step(COMBINE, packed, tmp_path / "both") > 30
    manifest_of(tmp_path / "both", packed / "keys")
    assert [path.name for path in tmp_path.iterdir()] == ["both"]


def test_the_command_says_what_it_wrote_and_inspect_shows_every_model_in_80_columns(
    packed: Path, tmp_path: Path
) -> None:
    made = invoke(
        "combine", packed / "first", packed / "second", "--out", tmp_path / "both",
        "--name", "both", "--trusted-keys", packed / "keys", "--key", packed / "keys/release.key",
    ).stdout  # fmt: skip
    manifest = manifest_of(tmp_path / "both", packed / "keys")
    stored = sum(path.stat().st_size for path in (tmp_path / "both/blobs/sha256").iterdir())
    assert made == (
        f"wrote {tmp_path / 'both'}: first 1, second 2.0; {len(manifest.artifacts)} files, "
        f"{stored:,} bytes, signed\n"
    )
    text = invoke("inspect", tmp_path / "both").stdout
    assert "2 models: first 1, second 2.0" in text
    for model in manifest.models:
        assert f"model {model.name}, version {model.version}" in text
        assert f"{model.variants[0].memory_bytes / 1e6:.1f} MB" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    document = invoke("inspect", tmp_path / "both", "--json").stdout
    assert document.encode() == bytes_from_manifest(manifest)
