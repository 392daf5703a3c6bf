import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edge.bundle import MANIFEST_NAME, SIGNATURE_NAME, open_bundle
from edge.cli import cli
from edge.errors import (
    BundleError,
    EdgeError,
    RefusedBundleError,
    SlotsError,
    TrustError,
    UsageError,
)
from edge.slots.layout import state_in
from edge.slots.state import MAX_ATTEMPTS
from edge.slots.store import Store
from tests.bundles import make_key
from tests.edge.slots.slot_bundles import KEY, TRUSTED, packed

COLUMNS = 80


class Device:
    """A folder of slots, keys, and bundles "old" and "new"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "edge"
        self.keys = folder / "keys"
        self.keys.mkdir()
        (self.keys / "site.pub").write_bytes(KEY.public_pem)
        self.bundles = {name: packed(folder / name, name) for name in ("old", "new")}

    def run(self, *arguments: str) -> Result:
        words = [*arguments, "--slots", str(self.root)]
        if arguments[0] == "install":
            words[1] = str(self.folder / words[1])
        if arguments[0] in {"install", "rollback"}:
            words += ["--trusted-keys", str(self.keys)]
        return CliRunner().invoke(cli, words, standalone_mode=False)

    def told(self, *arguments: str, status: int = 0) -> str:
        result = self.run(*arguments)
        assert result.exception is None, result.exception
        assert (result.return_value or 0) == status
        return result.stdout

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self.told(*arguments, "--json", status=status))

    def error(self, *arguments: str) -> EdgeError:
        error = self.run(*arguments).exception
        assert isinstance(error, EdgeError)
        assert "\n" not in str(error)
        return error

    def begin_trial(self, name: str) -> None:
        self.told("install", name, "--stage-only")
        Store.open(self.root).begin_trial()

    def commit(self, name: str) -> None:
        self.begin_trial(name)
        Store.open(self.root).commit(self.bundles[name].id)

    def served(self) -> str | None:
        """The version that an agent would serve, verified as it would."""
        slot = state_in(self.root).serving
        if slot is None:
            return None
        folder = Store.seen(self.root).slot_path(slot)
        return open_bundle(folder, TRUSTED, is_slot=True).manifest.version


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_a_bundle_is_staged_and_not_served_yet(device: Device) -> None:
    told = device.json("install", "old", "--stage-only")
    assert told["result"] == "staged"
    assert told["fetched_files"] == len(device.bundles["old"].blobs)
    status = device.json("slots", "status")
    assert status["serving"] is None
    assert status["state"]["candidate"] == {"phase": "staged", "slot": "a", "starts": 0}


def test_a_bundle_in_service_is_left_alone(device: Device) -> None:
    device.commit("old")
    told = device.json("install", "old")
    assert (told["result"], told["fetched_bytes"]) == ("unchanged", 0)
    assert device.served() == "old"


def test_a_damaged_file_of_the_bundle_in_service_is_brought_again(device: Device) -> None:
    device.commit("old")
    blob = next(path for path in (device.root / "blobs/sha256").iterdir())
    blob.chmod(0o644)
    blob.write_bytes(bytes(len(blob.read_bytes())))
    with pytest.raises(BundleError):
        device.served()
    told = device.json("install", "old")
    assert (told["result"], told["fetched_files"]) == ("unchanged", 1)
    assert device.served() == "old"


def test_a_dry_run_needs_no_files_and_makes_nothing(device: Device) -> None:
    shutil.rmtree(device.folder / "new" / "blobs")
    plan = device.json("install", "new", "--dry-run")
    blobs = device.bundles["new"].blobs
    assert {file["sha256"]: file["size"] for file in plan["missing"]} == {
        digest: len(content) for digest, content in blobs.items()
    }
    assert plan["problem"] is None
    assert plan["needed_bytes"] >= sum(map(len, blobs.values()))
    assert not device.root.exists()


def test_a_dry_run_beside_another_bundle_lists_what_they_do_not_share(device: Device) -> None:
    device.commit("old")
    plan = device.json("install", "new", "--dry-run")
    new, old = (set(device.bundles[name].blobs) for name in ("new", "old"))
    assert old & new
    assert {file["sha256"] for file in plan["missing"]} == new - old
    assert device.json("install", "new", "--stage-only")["fetched_files"] == len(new - old)


def test_a_dry_run_of_a_refused_bundle_says_so(device: Device) -> None:
    device.commit("old")
    device.begin_trial("new")
    device.told("rollback", "--reason", "too slow")
    plan = device.json("install", "new", "--dry-run", status=1)
    assert "too slow" in plan["problem"]
    assert device.json("install", "new", "--dry-run", "--again")["problem"] is None


def test_what_was_rolled_back_is_not_installed_again_unless_asked(device: Device) -> None:
    device.commit("old")
    device.begin_trial("new")
    assert device.served() == "new"
    told = device.json("rollback", "--reason", "too slow")
    assert (told["from"]["version"], told["serves"]["version"]) == ("new", "old")
    assert device.served() == "old"
    error = device.error("install", "new", "--stage-only")
    assert isinstance(error, RefusedBundleError)
    assert "too slow" in str(error)
    assert device.json("install", "new", "--stage-only", "--again")["result"] == "staged"


@pytest.mark.parametrize("words", [("--dry-run", "--json"), ("--json",)])
def test_a_reason_that_is_no_utf8_is_kept_as_far_as_it_is(
    device: Device, words: tuple[str, ...]
) -> None:
    device.commit("old")
    device.begin_trial("new")
    told = device.json("rollback", "--reason", "\udcff slow", *words[:-1])
    assert told["reason"] == "? slow"


def test_a_rollback_by_hand_goes_to_the_previous_bundle_once(device: Device) -> None:
    device.commit("old")
    device.commit("new")
    assert "the device serves affine-bundle old" in device.told("rollback", "--dry-run")
    assert device.served() == "new"
    assert "the device serves affine-bundle old" in device.told("rollback")
    assert device.served() == "old"
    assert isinstance(device.error("rollback"), SlotsError)


@pytest.mark.parametrize("damage", ["file", "key"])
def test_a_previous_bundle_that_could_not_be_served_is_not_gone_back_to(
    device: Device, damage: str
) -> None:
    device.commit("old")
    device.commit("new")
    if damage == "key":  # revoked meanwhile; "new" would have been signed by another
        (device.keys / "site.pub").write_bytes(make_key().public_pem)
    else:
        others = {a.sha256 for a in device.bundles["new"].parsed.artifacts}
        blob = next(sha for sha in device.bundles["old"].blobs if sha not in others)
        path = device.root / "blobs/sha256" / blob
        path.chmod(0o644)
        path.write_bytes(b"\0" * path.stat().st_size)
    before = state_in(device.root)
    for words in (["rollback", "--dry-run"], ["rollback"]):
        assert isinstance(device.error(*words), BundleError)
    assert state_in(device.root) == before


@pytest.mark.parametrize("installed", ["old", "new"])
def test_a_damaged_manifest_in_service_keeps_no_bundle_out(device: Device, installed: str) -> None:
    device.commit("old")
    manifest = Store.seen(device.root).slot_path("a") / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"2", b"3", 1))
    device.told("install", installed, "--stage-only")
    if installed == "old":
        assert device.served() == "old"
        return
    Store.open(device.root).begin_trial()
    assert device.served() == "new"


def test_a_rollback_needs_no_room_for_its_report(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.commit("old")
    device.begin_trial("new")
    reports = device.root / "reports"
    shutil.rmtree(reports)
    reports.write_text("a file where the folder should be")
    device.told("rollback")
    assert device.served() == "old"
    assert any("no report" in record.getMessage() for record in caplog.records)


def test_a_trial_that_starts_too_often_is_rolled_back(device: Device) -> None:
    device.commit("old")
    device.begin_trial("new")
    for starts in range(1, MAX_ATTEMPTS + 1):
        assert device.json("slots", "begin")["starts"] == starts
        assert device.served() == "new"
    result = device.run("slots", "begin")
    assert "rolled back affine-bundle new" in result.stderr
    assert device.served() == "old"


def test_a_first_bundle_that_never_starts_leaves_nothing_served(device: Device) -> None:
    device.begin_trial("new")
    for _ in range(MAX_ATTEMPTS + 1):
        device.told("slots", "begin")
    assert device.served() is None
    assert "nothing is served" in device.told("slots", "status")


def test_a_start_without_a_trial_writes_nothing(device: Device) -> None:
    device.commit("old")
    before = (device.root / "state.json").stat()
    device.told("slots", "begin")
    assert (device.root / "state.json").stat().st_mtime_ns == before.st_mtime_ns


def test_a_start_that_cannot_be_counted_lets_the_agent_start(device: Device) -> None:
    device.begin_trial("new")
    (device.root / "state.json").write_bytes(b"{}")
    result = device.run("slots", "begin")
    assert result.exception is None
    assert "warning: this start is not counted" in result.stderr


def test_cleaning_removes_what_no_slot_names(device: Device) -> None:
    device.commit("old")
    stray = device.root / "blobs/sha256" / ("0" * 64)
    stray.write_bytes(b"x" * 1000)
    assert device.json("slots", "clean", "--dry-run")["freed_bytes"] == 1000
    assert stray.exists()
    assert device.json("slots", "clean")["freed_bytes"] == 1000
    assert not stray.exists()
    assert device.served() == "old"


def test_nothing_is_removed_when_a_manifest_is_not_the_one_that_the_state_names(
    device: Device,
) -> None:
    device.commit("old")
    device.commit("new")
    (device.root / "slots/a" / MANIFEST_NAME).write_bytes(b"{}")
    before = sorted((device.root / "blobs/sha256").iterdir())
    assert "nothing is removed" in str(device.error("slots", "clean"))
    assert sorted((device.root / "blobs/sha256").iterdir()) == before


def test_another_process_at_work_is_named(device: Device) -> None:
    device.commit("old")
    with Store.open(device.root).changing("edge-agent update"):
        for words in (("install", "new", "--stage-only"), ("slots", "clean")):
            assert "edge-agent update" in str(device.error(*words))


def test_a_rollback_does_not_wait_for_another_process(device: Device) -> None:
    device.commit("old")
    device.begin_trial("new")
    with Store.open(device.root).changing("edge-agent gate"):
        device.told("rollback")
    assert device.served() == "old"


def test_an_unsigned_or_altered_bundle_changes_nothing(device: Device) -> None:
    device.commit("old")
    signature = device.folder / "new" / SIGNATURE_NAME
    signature.rename(signature.with_name("away"))
    assert isinstance(device.error("install", "new", "--stage-only"), TrustError)
    signature.with_name("away").rename(signature)
    manifest = device.folder / "new" / MANIFEST_NAME
    manifest.write_bytes(manifest.read_bytes().replace(b"2026", b"2027"))
    assert isinstance(device.error("install", "new", "--stage-only"), TrustError)
    assert state_in(device.root).coming is None
    assert device.served() == "old"


def test_a_damaged_file_of_the_bundle_is_refused_and_the_old_one_serves(device: Device) -> None:
    device.commit("old")
    digest = next(iter(set(device.bundles["new"].blobs) - set(device.bundles["old"].blobs)))
    blob = device.folder / "new/blobs/sha256" / digest
    content = blob.read_bytes()
    blob.write_bytes(bytes(len(content)))
    assert "does not match its digest" in str(device.error("install", "new", "--stage-only"))
    assert device.served() == "old"
    blob.write_bytes(content)
    assert device.json("install", "new", "--stage-only")["result"] == "staged"


def test_without_a_folder_of_slots_a_command_says_how_to_name_one(tmp_path: Path) -> None:
    for words in (["slots", "status"], ["rollback"], ["slots", "clean"], ["slots", "begin"]):
        result = CliRunner().invoke(cli, words, standalone_mode=False)
        assert "--slots DIR" in str(result.exception)


@pytest.mark.parametrize("words", [("rollback",), ("gate",), ("gate", "--dry-run")])
def test_a_folder_that_is_not_there_is_no_device(tmp_path: Path, words: tuple[str, ...]) -> None:
    gone = tmp_path / "gone"
    result = CliRunner().invoke(cli, [*words, "--slots", str(gone)], standalone_mode=False)
    assert isinstance(result.exception, UsageError)
    assert f"there are no slots at {gone}" in str(result.exception)
    assert not gone.exists()


def test_dry_runs_of_the_judge_and_of_a_start_change_nothing(device: Device) -> None:
    device.commit("old")
    assert device.json("gate", "--dry-run")["verdict"] == "nothing-on-trial"
    assert "nothing to count" in device.told("slots", "begin", "--dry-run")
    device.begin_trial("new")
    before = state_in(device.root)
    assert device.json("gate", "--dry-run")["bundle"]["id"] == device.bundles["new"].id
    assert "would judge affine-bundle new" in device.told("gate", "--dry-run")
    assert device.json("slots", "begin", "--dry-run") == {
        "counted": False, "starts": 1, "serving": before.serving,
    }  # fmt: skip
    assert "would count start 1" in device.told("slots", "begin", "--dry-run")
    assert state_in(device.root) == before
    for _ in range(MAX_ATTEMPTS):
        device.told("slots", "begin")
    result = device.run("slots", "begin", "--dry-run")
    assert "would roll back affine-bundle new" in result.stderr
    assert device.served() == "new"


def test_the_status_fits_eighty_columns(device: Device) -> None:
    device.commit("old")
    device.begin_trial("new")
    for words in (("slots", "status"), ("slots", "clean"), ("rollback",), ("slots", "status")):
        for line in device.told(*words).splitlines():
            assert len(line) <= COLUMNS
