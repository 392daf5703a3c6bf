"""The units of the gate and the updater: judged by systemd itself, shipped and installed."""

import shlex
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from click.testing import CliRunner

from edge.cli import cli
from edge.slots.state import Candidate, Phase, SlotBundle, SlotsState, bytes_from_state
from edge.unit import FURTHER_UNITS, further_unit, shipped_unit
from tests.edge.test_unit import MAX_EXPOSURE, REPOSITORY, judge, needs_systemd


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with both units, for an executable that exists."""
    executable = tmp_path / "edge-agent"
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    for name in FURTHER_UNITS:
        (tmp_path / name).write_text(further_unit(name, PurePosixPath(executable)))
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("name", FURTHER_UNITS)
def test_systemd_accepts_the_units_without_a_word(units: Path, name: str) -> None:
    verdict = judge("verify", str(units / name))
    assert (verdict.returncode, verdict.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", ["edge-update.service", "edge-gate.service"])
def test_the_exposure_of_a_writer_of_slots_is_at_most_two(units: Path, name: str) -> None:
    path = str(units / name)
    verdict = judge("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", path)
    assert verdict.returncode == 0, verdict.stdout


@pytest.mark.parametrize("name", FURTHER_UNITS)
def test_the_package_carries_the_units_of_the_repository(name: str) -> None:
    assert shipped_unit(name) == (REPOSITORY / "systemd" / name).read_text()


def test_the_updater_starts_the_executable_that_the_agent_starts() -> None:
    text = further_unit("edge-update.service", PurePosixPath("/opt/edge-kit/bin/edge-agent"))
    assert "ExecStart=/opt/edge-kit/bin/edge-agent update --slots /var/lib/edge\n" in text


def test_the_gate_is_started_for_a_trial_alone(tmp_path: Path) -> None:
    """The condition of its unit, against what the store writes in each phase."""
    (line,) = [
        line for line in shipped_unit("edge-gate.service").splitlines() if "ExecCondition=" in line
    ]
    words = shlex.split(line.partition("=")[2])
    bundle = SlotBundle(id="0" * 64, name="net", version='"phase": "trial"')
    phases: tuple[Phase, ...] = ("fetching", "staged", "trial")
    candidates = (None, *(Candidate(slot="a", phase=phase) for phase in phases))
    for candidate in candidates:
        file = tmp_path / "state.json"
        file.write_bytes(bytes_from_state(SlotsState(a=bundle, candidate=candidate)))
        status = subprocess.run([*words[:-1], str(file)], check=False).returncode
        assert (status == 0) == (candidate is not None and candidate.phase == "trial")


def test_install_unit_installs_the_units_of_the_updater_too(tmp_path: Path) -> None:
    words = ["install-unit", "--yes", "--root", str(tmp_path), "--executable", "/opt/x/edge-agent"]
    for said in ("installed", "unchanged"):
        result = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert result.exit_code == 0
        places = [line for line in result.stdout.splitlines() if line.startswith(said)]
        assert len(places) == 1 + len(FURTHER_UNITS)
    folder = tmp_path / "etc/systemd/system"
    assert "/opt/x/edge-agent update" in (folder / "edge-update.service").read_text()
