"""Devices that follow a channel: what they fetch, from where, and when."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edge import manifest as m
from edge.errors import FreshnessError, InstallCancelledError
from edge.slots.store import Store
from edge.target import Target
from edge.update.status import read_status
from tests.bundles import affine_parts, write_bundle
from tests.channel.sites import Device, Site, content_gate, passed
from tests.edge.slots.slot_bundles import AGX_ORIN, RTX_4060
from tests.edge.update.file_server import Handler, answer, serving

MIB = 1 << 20


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def device(site: Site, name: str = "device", channel: str | Path | None = None) -> Device:
    return Device(site.root / name, site.anchor, channel or site.channel)


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_everything_works_from_a_stick_without_a_network(site: Site, tmp_path: Path) -> None:
    site.release("1")
    stick = tmp_path / "stick"
    shutil.copytree(site.channel, stick)
    follower = device(site, channel=f"file://{stick}")
    assert follower.install().said["verdict"] == "staged"
    assert follower.served == "1"
    assert follower.update("--stage-only").said["verdict"] == "current"
    site.release("2")
    shutil.rmtree(stick)
    shutil.copytree(site.channel, stick)
    assert follower.install().said["verdict"] == "staged"
    assert follower.served == "2"
    shutil.rmtree(stick)
    assert isinstance(follower.update("--stage-only").error, FreshnessError)
    assert follower.served == "2"


def test_a_dry_run_says_what_is_missing_and_changes_nothing(site: Site, tmp_path: Path) -> None:
    site.release("1")
    follower = device(site)
    said = follower.update("--dry-run").said
    assert said["verdict"] == "would-install"
    assert not follower.slots.exists()
    assert follower.install().code == 0
    before = tree(follower.root)
    site.release("2", files={"new.bin": b"n" * 3000})
    said = follower.update("--dry-run").said
    assert said["verdict"] == "would-install"
    assert {"path": "new.bin", "size": 3000} in [
        {"path": a["path"], "size": a["size"]} for a in said["needed"]
    ]
    assert tree(follower.root) == before


def test_two_kinds_of_devices_store_their_own_engine_and_the_shared_graph(site: Site) -> None:
    def engine(name: str, content: bytes, **facts: object) -> tuple[m.Variant, dict[str, bytes]]:
        values: dict[str, object] = {
            "device": name, "runtime": "10.3.0", "portable": False, "memory_bytes": 0, **facts,
        }  # fmt: skip
        variant = m.Variant(
            id=f"trt-{name}", backend="trt-rtx" if name == "rtx-4060" else "trt", precision="int8",
            files=(f"{name}.engine",), engine=m.EngineFacts(**values),  # type: ignore[arg-type]
        )  # fmt: skip
        return variant, {f"{name}.engine": content}

    rtx, rtx_file = engine("rtx-4060", b"R" * 50_000, kind="desktop", arch="x86_64",
                           runtime="1.2.0.54", sms=("8.9",), sm_count=24)  # fmt: skip
    orin, orin_file = engine("agx-orin-64gb", b"O" * 60_000, kind="jetson", arch="aarch64",
                             runtime="10.3.0", sms=("8.7",), sm_count=16)  # fmt: skip
    manifest, files = affine_parts()
    model = manifest.models[0]
    model = replace(model, variants=(*model.variants, rtx, orin))
    bundle = write_bundle(
        site.root / "engines",
        replace(manifest, models=(model,), version="1"),
        {**files, **rtx_file, **orin_file},
        site.release_key,
    )
    site.change("promote", site.change("publish", bundle).said["release"])
    graph = hashlib.sha256(files["affine/int8.onnx"]).hexdigest()
    for name, target, own, other in (
        ("a-desktop", RTX_4060, rtx_file, orin_file),
        ("a-jetson", AGX_ORIN, orin_file, rtx_file),
    ):
        with serving(site.channel) as server:
            follower = device(site, name, server.url)
            assert passed(follower, target, content_gate).verdict == "installed"
            assert follower.served == "1"
            here = {path.name for path in (follower.slots / "blobs/sha256").iterdir()}
            (mine,) = (hashlib.sha256(content).hexdigest() for content in own.values())
            (others,) = (hashlib.sha256(content).hexdigest() for content in other.values())
            assert {mine, graph} <= here
            assert others not in here
            assert not [path for path in server.paths if others in path]


def test_resuming_after_fifty_cuts_repeats_at_most_a_mebibyte_each(site: Site) -> None:
    size, draw = 24 * MIB, random.Random(11)
    content = draw.randbytes(size)
    digest = hashlib.sha256(content).hexdigest()
    site.release("1", files={"weights.bin": content})
    cuts = sorted(draw.sample(range(1, size), 50))
    sent: list[tuple[int, int]] = []  # from, to: of the file's bytes that went out

    def cut(handler: Handler, whole: bytes) -> None:
        found = handler.headers.get("Range", "bytes=0-")
        begin = int(found.removeprefix("bytes=").removesuffix("-"))
        end = next((at for at in cuts if at > begin), size)
        headers: dict[str, object] = {"Content-Length": size - begin}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{size - 1}/{size}"
        sent.append((begin, end))
        answer(handler, 206 if begin else 200, headers, whole[begin:end])

    with serving(site.channel) as server:
        server.tricks = {digest: cut}
        follower = device(site, channel=server.url)
        for _ in range(60):  # a pass goes on by itself where enough came
            ran = follower.install()
            if ran.error is None:
                break
            assert isinstance(ran.error, FreshnessError)
        assert follower.served == "1"
    assert len(sent) == 51
    repeated = [before[1] - after[0] for before, after in itertools.pairwise(sent)]
    assert all(0 <= again <= MIB for again in repeated), max(repeated)


def test_a_file_that_came_whole_before_the_power_went_is_not_fetched_again(site: Site) -> None:
    content = b"w" * (2 * MIB)
    digest = hashlib.sha256(content).hexdigest()
    site.release("1", files={"weights.bin": content})
    with serving(site.channel) as server:
        follower = device(site, channel=server.url)
        Store.open(follower.slots)  # makes the folders
        server.tricks = {digest: lambda handler, whole: answer(handler, 503, {})}
        assert isinstance(follower.install().error, FreshnessError)
        (follower.slots / f"incoming/{digest}.part").write_bytes(content)
        assert follower.install().code == 0
        assert follower.served == "1"


@pytest.mark.parametrize("altered", [b"x" * MIB, b"x" * (2 * MIB)], ids=["part", "whole"])
def test_what_came_is_not_believed_when_it_was_altered(site: Site, altered: bytes) -> None:
    content = b"w" * (2 * MIB)
    digest = hashlib.sha256(content).hexdigest()
    site.release("1", files={"weights.bin": content})
    with serving(site.channel) as server:
        follower = device(site, channel=server.url)
        server.tricks = {digest: lambda handler, whole: answer(handler, 503, {})}
        assert isinstance(follower.install().error, FreshnessError)
        server.tricks = {}
        (follower.slots / f"incoming/{digest}.part").write_bytes(altered)
        assert follower.install().code == 0
        assert follower.served == "1"


def test_a_device_without_a_root_to_begin_with_is_told_what_to_do(site: Site) -> None:
    follower = device(site)
    follower.anchor = site.root / "none"
    ran = follower.update("--stage-only")
    assert ran.code == 2
    assert "1.root.json" in str(ran.error)


def test_a_server_without_ranges_serves_as_well(site: Site) -> None:
    content = random.Random(3).randbytes(3 * MIB)
    digest = hashlib.sha256(content).hexdigest()
    site.release("1", files={"weights.bin": content})

    def cut_once(handler: Handler, whole: bytes) -> None:
        answer(handler, 200, {"Content-Length": len(whole)}, whole[:MIB])
        server.tricks = {}

    with serving(site.channel, has_ranges=False) as server:
        server.tricks = {digest: cut_once}
        follower = device(site, channel=server.url)
        assert follower.install().code == 0
        assert follower.served == "1"
        assert [offset > 0 for path, offset in server.asked if digest in path] == [False, True]


def test_a_device_learns_that_the_release_in_service_was_revoked(site: Site) -> None:
    site.release("1")
    follower = device(site)
    assert follower.install().code == 0
    site.release("2")
    assert follower.install().code == 0
    site.change("revoke", "2", "--reason", "it is blind at night")
    ran = follower.install()
    assert ran.code == 1
    assert "blind at night" in ran.said["warning"]
    assert follower.served == "2"
    site.change("promote", "1", "--allow-downgrade", "2 is blind at night", "--by", "kim")
    ran = follower.install()
    assert ran.said["verdict"] == "staged"
    assert "kim" in ran.said["override"]
    assert follower.served == "1"

    def told() -> str | None:
        status = read_status(follower.slots)
        assert status is not None
        return status.override

    assert told() == ran.said["override"]
    assert follower.install().said["verdict"] == "current"
    assert told() == ran.said["override"]  # who looks later sees it as well
    there, follower.channel = follower.channel, "http://127.0.0.1:9"  # nobody listens
    assert follower.install().code == 3
    follower.channel = there
    assert follower.install().said["verdict"] == "current"
    assert told() == ran.said["override"]
    site.release("3")
    follower.install()
    assert told() is None


def test_a_wave_takes_the_devices_it_should_and_the_others_follow_later(site: Site) -> None:
    site.release("1")
    followers = [device(site, f"device-{n}") for n in range(8)]
    for follower in followers:
        assert follower.install().code == 0
    release = site.release("2", "--waves", "50,100")

    def is_early(name: str) -> bool:
        digest = hashlib.sha256(f"{release}\n{name}".encode()).hexdigest()
        return int(digest[:16], 16) < 2**63

    for follower in followers:
        follower.install()
        assert follower.served == ("2" if is_early(follower.root.name) else "1")
    site.change("promote", "2")
    for follower in followers:
        follower.install()
        assert follower.served == "2"


def test_a_release_that_was_rolled_back_is_not_taken_again_unless_asked(site: Site) -> None:
    site.release("1")
    follower = device(site)
    assert follower.install().code == 0
    site.release("2")
    assert follower.update("--stage-only").said["verdict"] == "staged"
    follower.roll_back()
    ran = follower.install()
    assert (ran.code, ran.said["verdict"], follower.served) == (1, "refused", "1")
    assert follower.install("--again").said["verdict"] == "staged"
    assert follower.served == "2"


def test_a_gate_that_says_no_leaves_the_bundle_in_service(site: Site) -> None:
    site.release("1")
    follower = device(site)
    assert follower.install().code == 0
    site.release("2")

    def stern_gate(store: Store) -> bool:
        store.begin_trial()
        assert store.state.coming is not None
        store.fail(store.state.coming.id, "p95 is three times what it was")
        return False

    target = Target(kind="cpu", arch="x86_64", name="cpu", onnxruntime="1.31.1")
    outcome = passed(follower, target, stern_gate)
    assert (outcome.verdict, outcome.is_good) == ("rolled-back", False)
    assert "p95" in outcome.reason
    assert follower.served == "1"


def test_a_rollback_by_hand_ends_a_download_under_way(site: Site) -> None:
    site.release("1")
    follower = device(site)
    assert follower.install().code == 0
    content = random.Random(5).randbytes(12 * MIB)
    digest = hashlib.sha256(content).hexdigest()
    site.release("2", files={"weights.bin": content})

    def roll_back_meanwhile(handler: Handler, whole: bytes) -> None:
        answer(handler, 200, {"Content-Length": len(whole)}, whole[:MIB])
        Store.open(follower.slots).roll_back("not now")
        handler.wfile.write(whole[MIB:])

    with serving(site.channel) as server:
        server.tricks = {digest: roll_back_meanwhile}
        follower.channel = server.url
        assert isinstance(follower.install().error, InstallCancelledError)
    assert follower.served == "1"
    assert list((follower.slots / "incoming").iterdir()) == []


def test_settings_come_from_the_file_and_flags_win(site: Site, tmp_path: Path) -> None:
    site.release("1", "--to", "beta")
    settings = tmp_path / "update.json"
    settings.write_text(json.dumps({"channel": "/nowhere", "follow": "beta"}))
    follower = device(site)
    ran = follower.update("--settings", settings, "--stage-only")
    assert ran.said["verdict"] == "staged"
    for text in ('{"chanel": "/x"}', '{"bytes_per_s": 1}', "[]", "{"):
        settings.write_text(text)
        assert follower.update("--settings", settings).code == 2, text
    assert follower.update("--settings", tmp_path / "none").code == 2
