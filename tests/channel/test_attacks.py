"""The attacks that TUF names, and others: refused, and service goes on; see docs/trust.md.

Whoever attacks here owns the server: `mirror` is a copy of the channel that they alter at will.
Where they hold stolen keys as well, it says so.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, MetaFile

from edge.errors import BundleError, EdgeError, FreshnessError, TrustError, UsageError
from edge.trust import public_key_from_pem
from edge.update.http_origin import HttpOrigin, Patience
from tests.channel.scenes import Scene, attacked, sign_again
from tests.channel.sites import Site, content_gate, passed
from tests.edge.slots.slot_bundles import CPU
from tests.edge.update.file_server import Handler, answer, serving
from tests.fakes import DEADLINE_S, FakeClock

ENDLESS_CAP = 64 << 20  # a device that takes this much has been attacked with success


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with attacked(tmp_path) as scene:
        yield scene


# Those that TUF names.


def test_arbitrary_installation_a_server_without_keys_cannot_bring_software_of_its_own(
    scene: Scene, tmp_path: Path
) -> None:
    (tmp_path / "evil").mkdir()
    evil = Site(tmp_path / "evil")
    evil.release("666")
    evil.change("refresh")  # its numbers are larger than those of the true channel
    shutil.rmtree(scene.mirror)
    shutil.copytree(evil.channel, scene.mirror)
    scene.refused()
    assert not [path for path in scene.server.paths if "releases/" in path and "666" in path]


@pytest.mark.parametrize(
    "pattern",
    [
        r"timestamp\.json$",
        r"\.snapshot\.json$",
        r"\.targets\.json$",
        r"\.channel\.json$",
        r"\.manifest\.json$",
        r"targets/blobs/",
    ],
)
def test_endless_data_is_cut_off(scene: Scene, pattern: str) -> None:
    took_all = []

    def endless(handler: Handler, content: bytes) -> None:
        answer(handler, 200, {}, content)
        for _ in range(ENDLESS_CAP >> 16):
            handler.wfile.write(b" " * (1 << 16))
        took_all.append(handler.path)

    scene.site.release("2")
    scene.copy_channel()
    scene.server.tricks = {pattern: endless}
    scene.refused()
    assert took_all == []
    assert re.search(pattern, scene.server.paths[-1])
    scene.server.tricks = {}
    assert scene.device.install().code == 0
    assert scene.device.served == "2"


def test_extraneous_dependencies_a_server_cannot_add_files_to_a_release(scene: Scene) -> None:
    release = scene.site.release("2")
    scene.copy_channel()
    (manifest,) = scene.mirror.glob(f"targets/releases/{release}/*.manifest.json")
    document = json.loads(manifest.read_bytes())
    document["artifacts"].append({"path": "extra.bin", "size": 4, "sha256": "e" * 64})
    manifest.write_bytes(json.dumps(document).encode())
    scene.refused()
    assert not [path for path in scene.server.paths if "eeee" in path]


def test_fast_forward_numbers_of_stolen_keys_stop_updates_until_the_keys_are_rotated(
    scene: Scene,
) -> None:
    """The stolen keys are those that lie online: of timestamp and snapshot."""
    huge = 2**31
    keys = scene.site.keys

    def forward(signed: Any) -> None:
        signed.version = huge

    snapshot = sign_again(scene.newest("snapshot"), forward, keys / "snapshot.key").to_bytes()
    (scene.mirror / f"metadata/{huge}.snapshot.json").write_bytes(snapshot)

    def point(signed: Any) -> None:
        signed.version = huge
        signed.snapshot_meta = MetaFile.from_data(huge, snapshot, ["sha256"])

    timestamp = sign_again(scene.mirror / "metadata/timestamp.json", point, keys / "timestamp.key")
    (scene.mirror / "metadata/timestamp.json").write_bytes(timestamp.to_bytes())
    assert scene.device.install().said["verdict"] == "current"  # it learnt the huge numbers

    scene.site.release("2")
    scene.copy_channel()
    scene.refused()
    for role in ("timestamp", "snapshot"):
        (old,) = Metadata.from_file(str(scene.site.anchor)).signed.roles[role].keyids
        scene.site.change("rotate", role, "--new", scene.site.new_role_key(f"{role}-2"),
                          "--drop", old)  # fmt: skip
    scene.copy_channel()
    assert scene.device.install().code == 0
    assert scene.device.served == "2"


def test_fast_forward_of_a_releases_number_is_healed_by_new_keys_for_who_publishes(
    scene: Scene,
) -> None:
    """All keys but those of the root and of bundles are stolen, and a genuine bundle is offered."""
    scene.site.release("2")
    scene.copy_channel()
    (listed,) = scene.mirror.glob(f"targets/{scene.target('channel.json')}.channel.json")
    document = json.loads(listed.read_bytes())
    document["releases"][-1]["sequence"] = 2**53
    scene.offer({"channel.json": json.dumps(document).encode()})
    assert scene.device.install().code == 0
    assert scene.device.served == "2"
    for role in ("targets", "snapshot", "timestamp"):
        (old,) = Metadata.from_file(str(scene.site.anchor)).signed.roles[role].keyids
        scene.site.change("rotate", role, "--new", scene.site.new_role_key(f"{role}-2"),
                          "--drop", old)  # fmt: skip
    scene.site.release("3")
    scene.copy_channel()
    assert scene.device.install().code == 0
    assert scene.device.served == "3"


def test_indefinite_freeze_a_server_that_holds_back_is_found_out_when_signatures_expire(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    days_ago = datetime.now(tz=timezone.utc) - timedelta(days=20)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(days_ago.timestamp())))
    scene.site.change("refresh")  # signed twenty days ago, for fourteen
    scene.copy_channel()
    error = scene.refused(FreshnessError)
    assert error.exit_code == 3
    assert "expired" in str(error)


def test_indefinite_freeze_a_clock_that_jumped_back_does_not_hide_it(scene: Scene) -> None:
    path = scene.device.slots / "channel/memory.json"
    memory = json.loads(path.read_bytes())
    later = datetime.now(tz=timezone.utc) + timedelta(days=400)
    path.write_text(json.dumps({**memory, "seen": later.strftime("%Y-%m-%dT%H:%M:%SZ")}))
    assert "clock" in str(scene.refused(FreshnessError))


def test_mix_and_match_files_of_two_times_are_not_taken_together(scene: Scene) -> None:
    """Each file is validly signed, for another time."""
    for role in ("snapshot", "targets"):
        old = scene.newest(role).read_bytes()
        scene.site.change("publish", scene.site.bundle(f"for-{role}"))
        scene.copy_channel()
        scene.newest(role).write_bytes(old)
        scene.refused()


def test_rollback_the_whole_channel_as_it_was_is_refused(scene: Scene, tmp_path: Path) -> None:
    shutil.copytree(scene.site.channel, tmp_path / "yesterday")
    scene.site.change("refresh")
    scene.copy_channel()
    assert scene.device.install().code == 0
    shutil.rmtree(scene.mirror)
    shutil.copytree(tmp_path / "yesterday", scene.mirror)
    assert "version" in str(scene.refused())


def test_slow_retrieval_a_server_that_drips_is_left_by_the_clock(scene: Scene) -> None:
    clock, weights = FakeClock(), b"w" * 400_000  # more than is received at once

    def drip(handler: Handler, content: bytes) -> None:
        answer(handler, 200, {"Content-Length": len(content)})
        for at in range(len(content)):
            handler.wfile.write(content[at : at + 1])
            clock.advance(1.0)

    scene.site.release("2", files={"weights.bin": weights})
    scene.copy_channel()
    scene.server.tricks = {hashlib.sha256(weights).hexdigest(): drip}
    with pytest.raises(FreshnessError, match="too slowly"):
        passed(scene.device, CPU, content_gate, HttpOrigin(scene.server.url, clock=clock))
    assert scene.device.served == "1"


def test_slow_retrieval_metadata_that_never_ends_to_come_is_left_at_the_deadline(
    scene: Scene,
) -> None:
    def stall(handler: Handler, content: bytes) -> None:
        answer(handler, 200, {"Content-Length": len(content)}, content[: len(content) // 2])
        scene.server.stopped.wait(DEADLINE_S)

    scene.server.tricks = {r"timestamp\.json$": stall}
    impatient = HttpOrigin(scene.server.url, patience=Patience(window_s=0.1))
    with pytest.raises(FreshnessError, match="too slowly"):
        passed(scene.device, CPU, content_gate, impatient)
    assert scene.device.served == "1"


def test_key_compromise_one_of_the_root_keys_can_change_nothing(scene: Scene) -> None:
    """Two of three must sign, and the thief has one."""

    def trust_me(signed: Any) -> None:
        signed.version += 1
        signed.unrecognized_fields["x-edge-bundle-keys"] = []

    forged = sign_again(scene.newest("root"), trust_me, scene.site.keys / "root-1.key")
    (scene.mirror / f"metadata/{forged.signed.version}.root.json").write_bytes(forged.to_bytes())
    scene.refused()


def test_wrong_software_installation_whoever_publishes_cannot_sign_bundles(scene: Scene) -> None:
    """All keys but those of the root and of bundles are stolen."""
    bundle = scene.site.bundle("666", key=scene.site.new_bundle_key("evil"))
    manifest = (bundle / "manifest.json").read_bytes()
    forged_id = hashlib.sha256(manifest).hexdigest()
    (listed,) = scene.mirror.glob(f"targets/{scene.target('channel.json')}.channel.json")
    true_id = json.loads(listed.read_bytes())["offers"]["stable"]["release"]
    files = {
        "channel.json": listed.read_bytes().replace(true_id.encode(), forged_id.encode()),
        f"releases/{forged_id}/manifest.json": manifest,
        f"releases/{forged_id}/manifest.sig": (bundle / "manifest.sig").read_bytes(),
    }
    scene.offer(files)
    assert scene.refused(EdgeError).code == "unknown-key"


# And others.


def test_a_stolen_timestamp_key_alone_brings_nothing_in(scene: Scene) -> None:
    snapshot = scene.newest("snapshot")
    forged = Metadata.from_bytes(snapshot.read_bytes())
    forged.signed.version += 1
    content = forged.to_bytes()  # its signature does not match any more
    (scene.mirror / f"metadata/{forged.signed.version}.snapshot.json").write_bytes(content)

    def point(signed: Any) -> None:
        signed.version += 1
        signed.snapshot_meta = MetaFile.from_data(forged.signed.version, content, ["sha256"])

    path = scene.mirror / "metadata/timestamp.json"
    path.write_bytes(sign_again(path, point, scene.site.keys / "timestamp.key").to_bytes())
    scene.refused()


def test_an_older_release_is_not_taken_again_even_from_who_publishes(scene: Scene) -> None:
    first = scene.site.release("1b")
    scene.site.release("2")
    scene.copy_channel()
    assert scene.device.install().code == 0
    (listed,) = scene.mirror.glob(f"targets/{scene.target('channel.json')}.channel.json")
    document = json.loads(listed.read_bytes())
    document["offers"]["stable"]["release"] = first
    scene.offer({"channel.json": json.dumps(document).encode()})
    ran = scene.device.install()
    assert (ran.code, ran.said["verdict"]) == (1, "refused")
    assert "older" in ran.said["reason"]
    assert scene.device.served == "2"


def test_swapped_blobs_are_refused_and_fetched_again_from_an_honest_server(scene: Scene) -> None:
    scene.site.release("2", files={"a.bin": b"a" * 5000, "b.bin": b"b" * 5000})
    scene.copy_channel()
    one, other = (
        scene.mirror / f"targets/blobs/{digest}.{digest}"
        for digest in (hashlib.sha256(letter * 5000).hexdigest() for letter in (b"a", b"b"))
    )
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    scene.refused(BundleError)
    scene.copy_channel()
    assert scene.device.install().code == 0
    assert scene.device.served == "2"


def test_a_manifest_for_another_product_is_refused_though_its_signer_is_trusted(
    scene: Scene,
) -> None:
    bundle = scene.site.bundle("2", name="camera")
    assert isinstance(
        scene.site.run("publish", scene.site.channel, bundle, "--keys", scene.site.keys).error,
        UsageError,
    )
    manifest = (bundle / "manifest.json").read_bytes()
    other_id = hashlib.sha256(manifest).hexdigest()
    (listed,) = scene.mirror.glob(f"targets/{scene.target('channel.json')}.channel.json")
    true_id = json.loads(listed.read_bytes())["offers"]["stable"]["release"]
    scene.offer(
        {
            "channel.json": listed.read_bytes().replace(true_id.encode(), other_id.encode()),
            f"releases/{other_id}/manifest.json": manifest,
            f"releases/{other_id}/manifest.sig": (bundle / "manifest.sig").read_bytes(),
        }
    )
    assert "product 'camera'" in str(scene.refused())


def test_a_channel_of_another_product_is_refused(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "cameras").mkdir()
    cameras = Site(tmp_path / "cameras", product="camera")
    cameras.release("7")
    scene.device.anchor, scene.device.channel = cameras.anchor, cameras.channel
    assert "product 'camera'" in str(scene.refused())


def test_a_redirect_is_not_followed_anywhere(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with serving(tmp_path / "elsewhere") as elsewhere:

        def redirect(handler: Handler, content: bytes) -> None:
            answer(handler, 302, {"Location": elsewhere.url + handler.path, "Content-Length": 0})

        scene.server.tricks = {"": redirect}
        assert "redirect" in str(scene.refused(FreshnessError))
        assert elsewhere.asked == []


def test_an_oversized_document_is_refused_before_it_is_fetched(scene: Scene) -> None:
    scene.offer({"channel.json": b"{" + b" " * (2 << 20) + b"}"})
    assert "larger" in str(scene.refused())
    assert not any(scene.target("channel.json") in path for path in scene.server.paths)


def test_a_server_that_is_away_changes_nothing(scene: Scene) -> None:
    scene.device.channel = "http://127.0.0.1:9"  # the discard port: nobody listens
    assert scene.refused(FreshnessError).exit_code == 3


def test_a_release_of_a_revoked_key_is_refused_though_who_publishes_offers_it(
    scene: Scene, tmp_path: Path
) -> None:
    second = scene.site.new_bundle_key("second")
    scene.site.change("rotate", "bundle", "--new", tmp_path / "second.pub")
    scene.site.release("2", key=second)
    scene.copy_channel()
    (listed,) = scene.mirror.glob(f"targets/{scene.target('channel.json')}.channel.json")
    document = json.loads(listed.read_bytes())
    keyid = public_key_from_pem(second.public_pem, name="second").keyid
    scene.offer({"channel.json": json.dumps({**document, "revoked_keys": {keyid: "x"}}).encode()})
    assert "revoked" in str(scene.refused(TrustError))
