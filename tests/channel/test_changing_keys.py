"""Devices that follow a channel whose keys change: which they come to trust, and cease to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edge.bundle import open_bundle
from edge.errors import TrustError
from edge.slots.store import Store
from edge.trust import public_key_from_pem, sign, trusted_keys_in
from tests.channel.sites import Device, Site

MIB = 1 << 20


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def device(site: Site, name: str = "device", channel: str | Path | None = None) -> Device:
    return Device(site.root / name, site.anchor, channel or site.channel)


def test_root_keys_are_replaced_one_threshold_after_another(site: Site, tmp_path: Path) -> None:
    """A device that slept through it all still follows, from the root that it was born with."""
    site.release("1")
    awake, asleep = device(site, "awake"), device(site, "asleep")
    for follower in (awake, asleep):
        assert follower.install().code == 0
    for generation in ("b", "c"):
        root = max(
            site.channel.glob("metadata/*.root.json"), key=lambda p: int(p.name.split(".")[0])
        )
        old = json.loads(root.read_bytes())["signed"]["roles"]["root"]["keyids"]
        new = [site.new_role_key(f"root-{generation}-{n}") for n in (1, 2, 3)]
        words = [word for key in new for word in ("--new", key)]
        words += [word for key in old for word in ("--drop", key)]
        only_new = tmp_path / f"only-{generation}"
        only_new.mkdir()
        for path in new:
            shutil.copy(path.with_suffix(".key"), only_new)
        assert site.run("rotate", site.channel, "root", *words, "--keys", only_new).code == 2
        site.change("rotate", "root", *words)
        assert awake.update("--stage-only").said["verdict"] == "current"
    site.release("2")
    for follower in (awake, asleep):
        assert follower.install().code == 0
        assert follower.served == "2"


def test_a_new_bundle_key_reaches_a_device_and_takes_the_roots_threshold(
    site: Site, tmp_path: Path
) -> None:
    site.release("1")
    follower = device(site)
    assert follower.install().code == 0
    second = site.new_bundle_key("second")
    publisher = tmp_path / "publisher"
    publisher.mkdir()
    for role in ("targets", "snapshot", "timestamp"):
        shutil.copy(site.keys / f"{role}.key", publisher)
    words = ("rotate", site.channel, "bundle", "--new", tmp_path / "second.pub", "--keys")
    assert site.run(*words, publisher).code == 2
    assert site.run(*words, site.keys).code == 0
    site.release("2", key=second)
    ran = follower.install()
    assert ran.said["keys_added"] == ["second"]
    assert follower.served == "2"


def test_the_revocation_of_a_bundle_key_reaches_a_device_which_then_refuses_its_bundles(
    site: Site, tmp_path: Path
) -> None:
    second = site.new_bundle_key("second")
    site.change("rotate", "bundle", "--new", tmp_path / "second.pub")
    site.release("1")
    follower = device(site)
    assert follower.install().code == 0
    stolen = site.bundle("3")  # signed by the key that is about to be revoked
    site.release("2", key=second)
    site.change("revoke", "--key", "release", "--reason", "it was on a lost laptop")
    assert isinstance(
        site.run("publish", site.channel, stolen, "--keys", site.keys).error, TrustError
    )
    ran = follower.install()
    assert "lost laptop" in ran.said["warning"]  # 1 was in service until the very end
    assert len(trusted_keys_in(follower.keys)) == 2
    ran = follower.install()
    assert (ran.code, follower.served) == (0, "2")
    (left,) = trusted_keys_in(follower.keys)
    assert left.keyid == public_key_from_pem(second.public_pem, name="second").keyid
    with pytest.raises(TrustError, match="unknown key"):
        open_bundle(stolen, trusted_keys_in(follower.keys))


def test_a_release_that_was_signed_anew_reaches_devices_without_a_trial(
    site: Site, tmp_path: Path
) -> None:
    """So a key can be revoked although its bundle is the one in service."""
    site.release("1")
    follower = device(site)
    assert follower.install().code == 0
    second = site.new_bundle_key("second")
    site.change("rotate", "bundle", "--new", tmp_path / "second.pub")
    bundle = next(tmp_path.glob("bundle-1-*"))
    manifest = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.sig").write_bytes(sign(manifest, second.private_pem, name="second"))
    site.change("publish", bundle)
    site.change("revoke", "--key", "release", "--reason", "it is old")
    changes = Store.open(follower.slots).state.changes
    ran = follower.install()
    assert (ran.code, ran.said["verdict"], ran.said["warning"]) == (0, "current", None)
    assert follower.served == "1"
    assert Store.open(follower.slots).state.changes == changes
