"""What a boot goes on with after a cut, and what it leaves alone."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.host_tools.flash.conftest import second

pytestmark = pytest.mark.slow


def test_a_switch_that_was_cut_is_left_to_a_boot_when_the_next_try_is_refused(bench, first):
    bench.set_up(first)
    ill = second(bench, fault="doctor")
    ill.write(bench.payload)
    (bench.payload / "pending").write_text("{}")
    (bench.payload / "before.json").write_text('{"target": null, "config": null, "ready": false}')
    assert bench.apply()[1]["state"] == "refused"
    assert (bench.payload / "pending").exists()


def test_the_first_boot_finishes_what_was_placed(bench, first):
    first.write(bench.payload)
    command = [sys.executable, "-I", str(bench.script), "place", str(bench.payload)]
    placed = subprocess.run([*command, "--root", str(bench.root), "--json"], capture_output=True)
    assert json.loads(placed.stdout)["state"] == "placed"
    unit = (bench.root / "etc/systemd/system/edge-setup.service").read_text()
    assert "ConditionPathExists=/var/lib/edge-kit/payload/pending" in unit
    assert (bench.payload / "pending").exists()
    assert not (bench.root / "opt").exists()
    assert bench.apply()[0] == 0
    assert (bench.served(), bench.agent()) == ("1", "1")
    assert not (bench.payload / "pending").exists()


def test_systemd_reads_the_boot_unit_without_a_complaint(bench, first):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing: THE UNIT WAS NOT JUDGED; install systemd")
    bench.set_up(first)
    unit = bench.root / "etc/systemd/system/edge-setup.service"
    judged = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True
    )
    assert (judged.returncode, judged.stderr) == (0, "")


NEWER = "n" * 64


def is_cut_before_it_installs(bench, payload, *words):
    """Set a device up until its first installation, as a power cut would leave it."""
    payload.write(bench.payload)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import os\n"
        "from host_tools.flash.device import main, steps\n"
        "steps.Setup._switch = lambda *words: os._exit(9)\n"
        "sys.exit(main.main(sys.argv[2:]))"
    )
    command = [sys.executable, "-I", "-c", code, str(bench.script), "apply", str(bench.payload)]
    result = subprocess.run([*command, "--root", str(bench.root), *words], capture_output=True)
    assert result.returncode == 9, result.stderr
    assert (bench.payload / "pending").exists()


def newer_comes(bench, **changes):
    """Let another bundle be committed, as an update does."""
    path = bench.root / "var/lib/edge/state.json"
    state = {"committed": "a", "a": {"id": NEWER, "version": "9"}, "refused": [], **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(state))


def test_a_boot_goes_on_with_a_setup_that_was_cut(bench, first):
    is_cut_before_it_installs(bench, first)
    assert bench.apply("--boot")[0] == 0
    assert (bench.served(), bench.agent()) == ("1", "1")
    assert not (bench.payload / "pending").exists()


def test_a_boot_does_not_install_over_a_bundle_that_came_since(bench, first):
    is_cut_before_it_installs(bench, first)
    newer_comes(bench)
    status, report = bench.apply("--boot")
    assert (status, report["state"]) == (1, "refused")
    assert "nnnnnnnnnnnn came to this device since" in report["reason"]
    assert bench.served() == "9"
    assert not (bench.payload / "pending").exists()


def test_a_boot_does_not_install_over_a_bundle_that_is_on_trial_since(bench, first):
    is_cut_before_it_installs(bench, first)
    newer_comes(bench, committed=None, candidate={"slot": "a", "phase": "trial"})
    status, report = bench.apply("--boot")
    assert (status, report["state"]) == (1, "refused")
    assert "came to this device since" in report["reason"]


def test_a_boot_does_not_take_up_files_that_came_after_the_cut(bench, first):
    is_cut_before_it_installs(bench, first)
    second(bench, version="1").write(bench.payload)
    status, report = bench.apply("--boot")
    assert (status, report["state"]) == (1, "refused")
    assert "run edge-kit flash again" in report["reason"]
    assert not (bench.root / "var/lib/edge/state.json").exists()


def test_a_boot_keeps_the_flags_of_the_setup_that_was_cut(bench):
    ill = second(bench, fault="doctor")
    is_cut_before_it_installs(bench, ill, "--ignore-doctor")
    assert bench.apply("--boot")[0] == 0
    assert bench.agent() == "2"


def test_a_setup_that_failed_and_said_so_is_not_repeated_by_a_boot(bench, first):
    is_cut_before_it_installs(bench, first)
    status, report = bench.set_up(second(bench, fault="doctor"))
    assert (status, report["state"]) == (1, "refused")
    assert not (bench.payload / "pending").exists()
