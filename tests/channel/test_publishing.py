"""The repository: read by a client that is not ours, and valid whenever its maker was stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata
from tuf.ngclient import Updater

from edge.errors import ChannelError, EdgeError, StorageError, TrustError, UsageError
from edge.update.channel import METADATA_FOLDER, Offer
from host_tools.channel.operations import published, redocumented
from host_tools.channel.repository import (
    LOCK_NAME,
    NEXT_ROOT,
    Change,
    changing,
    read_repository,
    write,
)
from host_tools.channel.rotation import Rotation, rotated
from host_tools.channel.signing import public_key, signers_in
from tests.channel.sites import Site
from tests.edge.update.file_server import serving

NOW = datetime.now(tz=timezone.utc)


class StoppedError(Exception):
    """The maker was killed here."""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "\udcff", "x" * 129])
def test_nothing_is_promoted_to_a_name_that_no_device_could_read(site: Site, name: str) -> None:
    site.change("publish", site.bundle("1.0"))
    before = tree(site.channel)
    ran = site.run("promote", site.channel, "1.0", "--to", name, "--keys", site.keys)
    assert isinstance(ran.error, UsageError)
    assert "is no name to follow" in str(ran.error)
    assert tree(site.channel) == before
    site.change("promote", "1.0", "--to", "stable")


@pytest.mark.parametrize(
    "wrong",
    [
        {"product": "../x"},
        {"offers": {"a/b": Offer(release="0" * 64, waves=(100.0,), wave=0)}},
        {"offers": {"stable": Offer(release="0" * 64, waves=(100.0,), wave=0)}},
        {"revoked_keys": {"0" * 64: "\udcff"}},
    ],
)
def test_a_document_that_no_device_could_read_is_not_signed(
    site: Site, wrong: dict[str, object]
) -> None:
    repository = read_repository(site.channel)
    document = replace(repository.channel, **wrong)
    with pytest.raises(UsageError, match="nothing is signed"):
        redocumented(repository, document, signers_in([site.keys]), NOW)


def test_a_reason_of_a_revocation_that_is_no_utf8_is_a_clear_error(site: Site) -> None:
    site.change("publish", site.bundle("1.0"))
    ran = site.run("revoke", site.channel, "1.0", "--reason", "\udcff", "--keys", site.keys)
    assert isinstance(ran.error, UsageError)
    site.change("refresh")


def fetch_all(channel: Path, anchor: Path, scratch: Path) -> dict[str, bytes]:
    """Return every target, as python-tuf's own client with its own fetcher gets it over HTTP."""
    for name in ("metadata", "targets"):
        (scratch / name).mkdir(parents=True)
    with serving(channel) as server:
        updater = Updater(
            str(scratch / "metadata"),
            f"{server.url}/metadata/",
            str(scratch / "targets"),
            f"{server.url}/targets/",
            bootstrap=anchor.read_bytes(),
        )
        updater.refresh()
        listed = Metadata.from_file(str(scratch / "metadata/targets.json")).signed.targets
        found = {}
        for name in listed:
            target = updater.get_targetinfo(name)
            assert target is not None
            found[name] = Path(updater.download_target(target)).read_bytes()
    return found


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_client_that_is_not_ours_reads_every_target(site: Site, tmp_path: Path) -> None:
    release = site.release("1")
    bundle = next(tmp_path.glob("bundle-1-*"))
    found = fetch_all(site.channel, site.anchor, tmp_path / "client")
    assert found[f"releases/{release}/manifest.json"] == (bundle / "manifest.json").read_bytes()
    assert found[f"releases/{release}/manifest.sig"] == (bundle / "manifest.sig").read_bytes()
    blobs = {path.name: path.read_bytes() for path in (bundle / "blobs/sha256").iterdir()}
    assert {f"blobs/{name}": content for name, content in blobs.items()}.items() <= found.items()
    assert json.loads(found["channel.json"])["offers"]["stable"]["release"] == release


def test_what_two_releases_share_is_stored_once(site: Site) -> None:
    shared = b"backbone" * 10_000
    for version in ("1", "2"):
        site.release(version, files={"backbone.bin": shared})
    digest = hashlib.sha256(shared).hexdigest()
    assert len(list(site.channel.rglob(f"*{digest}*"))) == 1


def test_a_change_stopped_before_any_file_leaves_the_old_or_the_new_repository(
    site: Site, tmp_path: Path
) -> None:
    site.release("1")
    before = fetch_all(site.channel, site.anchor, tmp_path / "before")
    bundle = site.bundle("2")
    signers = signers_in([site.keys])
    change, release = published(read_repository(site.channel), bundle, signers, NOW)
    steps = [*change.writes, *change.removes]
    assert len(steps) > 5
    for stop, last in enumerate(steps):
        copy = tmp_path / f"stopped-{stop}"
        shutil.copytree(site.channel, copy)

        def step(name: str, last: str = last) -> None:
            if name == last:
                raise StoppedError

        with pytest.raises(StoppedError):
            write(copy, change, step=step)
        found = fetch_all(copy, site.anchor, tmp_path / f"client-{stop}")
        if last in change.writes:  # timestamp.json is the last that is written
            assert found == before
        else:
            assert f"releases/{release.id}/manifest.json" in found
        again, _ = published(read_repository(copy), bundle, signers, NOW)
        write(copy, again)
        found = fetch_all(copy, site.anchor, tmp_path / f"again-{stop}")
        assert f"releases/{release.id}/manifest.json" in found


def test_a_change_of_the_online_keys_stopped_anywhere_leaves_a_repository_that_clients_read(
    site: Site, tmp_path: Path
) -> None:
    site.release("1")
    signers = None
    for role in ("timestamp", "snapshot", "targets"):
        new = public_key(site.new_role_key(f"new-{role}"))
        signers = signers_in([site.keys])
        repository = read_repository(site.channel)
        (old,) = repository.root.signed.roles[role].keyids
        wanted = Rotation(role=role, new=[new], drop=[old])
        change: Change = rotated(repository, wanted, signers, NOW)
        for stop, last in enumerate(change.writes):
            copy = tmp_path / f"{role}-{stop}"
            shutil.copytree(site.channel, copy)

            def step(name: str, last: str = last) -> None:
                if name == last:
                    raise StoppedError

            with pytest.raises(StoppedError):
                write(copy, change, step=step)
            assert fetch_all(copy, site.anchor, tmp_path / f"client-{role}-{stop}")
        write(site.channel, change)
        assert fetch_all(site.channel, site.anchor, tmp_path / f"client-{role}")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_lost_key_is_replaced_whenever_the_command_was_interrupted(
    site: Site, tmp_path: Path, role: str
) -> None:
    site.release("1")
    (old,) = read_repository(site.channel).root.signed.roles[role].keyids
    (site.keys / f"{role}.key").unlink()
    new = site.new_role_key(f"{role}-2")
    wanted = Rotation(role=role, new=[public_key(new)], drop=[old])
    change = rotated(read_repository(site.channel), wanted, signers_in([site.keys]), NOW)
    words = ("rotate", role, "--new", new, "--drop", old, "--keys", site.keys)
    pending = []
    for stop, last in enumerate((*change.writes, *change.removes, None)):
        copy = tmp_path / f"stopped-{stop}"
        shutil.copytree(site.channel, copy)

        def step(name: str, last: str | None = last) -> None:
            if name == last:
                raise StoppedError

        with contextlib.suppress(StoppedError):
            write(copy, change, step=step)
        found = read_repository(copy)
        pending.append(found.root_is_pending)
        ran = site.run(words[0], copy, *words[1:])
        if found.root.signed.version == 1:
            assert ran.code == 0, ran.error
        else:
            assert isinstance(ran.error, UsageError)
            assert found.root_is_pending == ("refresh" in str(ran.error))
            assert site.run("refresh", copy, "--keys", site.keys).code == 0
        assert fetch_all(copy, site.anchor, tmp_path / f"client-{stop}")
        assert not read_repository(copy).root_is_pending
    assert pending.count(True) == 1  # between timestamp.json and the root


def test_a_root_that_waits_is_not_believed_without_the_signatures_of_the_one_before(
    site: Site,
) -> None:
    (old,) = read_repository(site.channel).root.signed.roles["timestamp"].keyids
    (site.keys / "timestamp.key").unlink()
    new = public_key(site.new_role_key("timestamp-2"))
    wanted = Rotation(role="timestamp", new=[new], drop=[old])
    change = rotated(read_repository(site.channel), wanted, signers_in([site.keys]), NOW)
    for name in (NEXT_ROOT, f"{METADATA_FOLDER}/timestamp.json"):
        (site.channel / name).write_bytes(change.writes[name])  # type: ignore[arg-type] # bytes
    assert read_repository(site.channel).root_is_pending
    waiting = json.loads((site.channel / NEXT_ROOT).read_bytes())
    waiting["signatures"] = waiting["signatures"][:1]  # of the two that a root takes
    (site.channel / NEXT_ROOT).write_text(json.dumps(waiting))
    with pytest.raises(ChannelError, match="altered"):
        read_repository(site.channel)


def test_files_that_nothing_names_go_with_the_change_after_next(site: Site) -> None:
    site.release("1", files={"only-1.bin": b"one" * 1000})
    digest = hashlib.sha256(b"one" * 1000).hexdigest()
    place = site.channel / f"targets/blobs/{digest}.{digest}"
    site.release("2")
    site.change("revoke", "1", "--reason", "it is blind")
    assert place.exists()  # a device may be fetching it
    site.change("publish", site.bundle("3"))
    assert not place.exists()


def test_a_dry_run_of_every_verb_changes_nothing(site: Site, tmp_path: Path) -> None:
    site.release("1", "--waves", "1,100")
    bundle, key = site.bundle("2"), site.new_role_key("spare")
    site.new_bundle_key("other")
    (site.channel / LOCK_NAME).unlink()
    before = tree(tmp_path)
    for words in (
        ("publish", bundle), ("promote", "1"), ("revoke", "1", "--reason", "x"),
        ("rotate", "root", "--new", key), ("rotate", "bundle", "--new", tmp_path / "other.pub"),
        ("refresh",),
    ):  # fmt: skip
        ran = site.change(words[0], *words[1:], "--dry-run")
        assert ran.said["dry_run"] is True
        assert ran.said["writes"]
    made = site.run("init", tmp_path / "new", "--product", "x", "--keys", tmp_path / "k",
                    "--dry-run")  # fmt: skip
    assert made.code == 0
    assert tree(tmp_path) == before
    assert not list(tmp_path.rglob(LOCK_NAME))


def test_a_file_of_the_right_size_that_was_damaged_is_published_again(
    site: Site, tmp_path: Path
) -> None:
    shared = b"backbone" * 10_000
    site.release("1", files={"backbone.bin": shared})
    digest = hashlib.sha256(shared).hexdigest()
    (path,) = site.channel.rglob(f"*{digest}*")
    path.write_bytes(shared[::-1])
    site.release("2", files={"backbone.bin": shared})
    assert fetch_all(site.channel, site.anchor, tmp_path / "client")[f"blobs/{digest}"] == shared


def test_a_person_may_keep_a_root_of_his_own_beside_the_others(site: Site) -> None:
    shutil.copy(site.anchor, site.channel / "metadata/old.root.json")
    site.change("refresh")


@pytest.mark.parametrize("epoch", ["", "soon", "9" * 30])
def test_a_date_that_is_none_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch, epoch: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    error = site.run("refresh", site.channel, "--keys", site.keys).error
    assert isinstance(error, UsageError)


def test_one_root_key_of_three_is_not_enough_to_change_the_root(site: Site, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(site.keys / "root-1.key", alone)
    ran = site.run("rotate", site.channel, "root", "--keys", alone)
    assert isinstance(ran.error, UsageError)
    assert "needs 2 of the keys" in str(ran.error)


def test_a_bundle_of_an_unlisted_key_or_one_that_is_not_whole_is_not_published(site: Site) -> None:
    evil = site.bundle("1", key=site.new_bundle_key("evil"))
    torn = site.bundle("2")
    next((torn / "blobs/sha256").iterdir()).unlink()
    for bundle in (evil, torn):
        error = site.run("publish", site.channel, bundle, "--keys", site.keys).error
        assert isinstance(error, EdgeError)
        assert error.code in {"unknown-key", "bundle"}


def test_the_key_of_what_is_offered_is_not_revoked(site: Site) -> None:
    site.release("1")
    ran = site.run("revoke", site.channel, "--key", "release", "--reason", "x", "--keys", site.keys)
    assert isinstance(ran.error, UsageError)
    assert "publish it again" in str(ran.error)


def test_an_older_release_is_not_promoted_by_accident(site: Site) -> None:
    site.release("1")
    site.release("2")
    ran = site.run("promote", site.channel, "1", "--keys", site.keys)
    assert isinstance(ran.error, UsageError)
    assert "--allow-downgrade" in str(ran.error)


def test_waves_grow_one_by_one_and_end(site: Site) -> None:
    site.release("1", "--waves", "1,10%,100")
    assert [site.change("promote", "1").said["percent"] for _ in range(2)] == [10.0, 100.0]
    assert site.run("promote", site.channel, "1", "--keys", site.keys).code == 2
    for waves in ("10,1", "0,10", "1,101", "x"):
        ran = site.run("promote", site.channel, "1", "--waves", waves, "--keys", site.keys)
        assert ran.code == 2, waves


def test_a_channel_that_was_altered_is_not_built_upon(site: Site) -> None:
    site.release("1")
    (path,) = site.channel.glob("metadata/3.targets.json")
    path.write_text(path.read_text().replace('"length":', '"length":1'))
    assert site.run("status", site.channel).error is not None


def test_two_makers_at_once_are_one_too_many(site: Site) -> None:
    with changing(site.channel):
        error = site.run("refresh", site.channel, "--keys", site.keys).error
    assert isinstance(error, StorageError)


def test_refresh_needs_the_timestamps_key_alone_until_more_is_half_expired(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = tmp_path / "online"
    online.mkdir()
    shutil.copy(site.keys / "timestamp.key", online)
    said = site.run("refresh", site.channel, "--keys", online).said
    assert said["writes"] == ["metadata/timestamp.json"]
    later = datetime.now(tz=timezone.utc) + timedelta(days=100)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(later.timestamp())))
    status = site.run("status", site.channel)
    assert (status.code, set(status.said["expiring"])) == (1, {"snapshot", "timestamp"})
    assert len(site.change("refresh").said["writes"]) == 3
    assert site.run("status", site.channel).code == 0


def test_init_overwrites_no_channel_and_no_key(site: Site, tmp_path: Path) -> None:
    again = site.run("init", site.channel, "--product", "x", "--keys", tmp_path / "k")
    assert isinstance(again.error, StorageError)
    keys = site.run("init", tmp_path / "other", "--product", "x", "--keys", site.keys)
    assert isinstance(keys.error, StorageError)
    assert not (tmp_path / "other").exists()


def test_a_key_that_is_none_says_so(site: Site, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x.key").write_text("hello")
    error = site.run("refresh", site.channel, "--keys", bad).error
    assert isinstance(error, TrustError)


def test_a_channel_that_devices_would_refuse_for_its_size_is_not_made(
    site: Site,
) -> None:
    site.release("1")
    words = ("revoke", site.channel, "1", "--keys", site.keys, "--reason")
    assert isinstance(site.run(*words, "x" * (1 << 20)).error, UsageError)
    assert site.run(*words, "x" * 1000).code == 0
