"""The systemd unit: judged by systemd itself, shipped and generated."""

import shutil
import stat
import subprocess
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest

from edge.config import AgentConfig
from edge.errors import UsageError
from edge.slots.state import MAX_ATTEMPTS
from edge.unit import UNIT_NAME, UNIT_PATH, install, shipped_unit, unit_for_machine

REPOSITORY = Path(__file__).parents[2]
EXECUTABLE = PurePosixPath("/opt/edge-kit/bin/edge-agent")
# systemd-analyze takes ten times the exposure level it prints: 2.0.
MAX_EXPOSURE = 20

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is missing: THE UNIT WAS NOT JUDGED; install the package systemd",
)


def machine(tmp_path, *nodes, groups=("root:x:0:", "video:x:44:", "render:x:105:")):
    """A root with an etc/group and the nodes (path, gid, mode); returns (root, lstat)."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").write_text("\n".join(groups) + "\n")
    faked = {}
    for path, gid, mode in nodes:
        node = tmp_path / path
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()
        faked[node] = SimpleNamespace(st_gid=gid, st_mode=stat.S_IFCHR | mode)
    return tmp_path, lambda path: faked[path] if path in faked else path.lstat()


def value_of(text, key):
    values = [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]
    assert len(values) == 1, (key, values)
    return values[0]


def judge(*command):
    return subprocess.run(
        ["systemd-analyze", *command], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(params=["shipped", "generated"])
def unit_file(request, tmp_path):
    text = shipped_unit()
    if request.param == "generated":
        executable = tmp_path / "edge-agent"
        executable.write_text("#!/bin/sh\n")
        executable.chmod(0o755)
        root, lstat = machine(tmp_path, ("dev/nvmap", 44, 0o660))
        text = unit_for_machine(PurePosixPath(executable), root=root, lstat=lstat).text
    path = tmp_path / UNIT_NAME
    path.write_text(text)
    return path


@needs_systemd
def test_systemd_accepts_the_unit_without_a_word(unit_file):
    verdict = judge("verify", str(unit_file))
    assert (verdict.returncode, verdict.stderr) == (0, "")


@needs_systemd
def test_the_exposure_is_at_most_two(unit_file):
    verdict = judge("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", str(unit_file))
    assert verdict.returncode == 0, verdict.stdout


@needs_systemd
def test_systemd_does_complain_about_a_misspelt_key(unit_file):
    unit_file.write_text(unit_file.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    assert "WatchdogSecs" in judge("verify", str(unit_file)).stderr


def test_the_package_carries_the_unit_of_the_repository():
    assert shipped_unit() == (REPOSITORY / "systemd" / UNIT_NAME).read_text()


def test_the_unit_waits_longer_than_the_agent_drains():
    assert int(value_of(shipped_unit(), "TimeoutStopSec")) > AgentConfig().shutdown_timeout_s


def test_the_unit_hides_nothing_that_inference_needs():
    lines = shipped_unit().splitlines()
    for line in ("ProcSubset=pid", "MemoryDenyWriteExecute=yes", "PrivateDevices=yes"):
        assert line not in lines
    assert value_of(shipped_unit(), "DynamicUser") == "yes"
    assert not any(line.startswith("User=") for line in lines)


def test_the_generated_unit_differs_in_its_local_lines_only(tmp_path):
    root, lstat = machine(tmp_path)
    generated = unit_for_machine(EXECUTABLE, root=root, lstat=lstat).text.splitlines()
    changed = [
        new for new, old in zip(generated, shipped_unit().splitlines(), strict=True) if new != old
    ]
    assert changed == [
        f"ExecStartPre=+-{EXECUTABLE} slots begin",
        f"ExecStart={EXECUTABLE} serve",
        "SupplementaryGroups=render video",
    ]


def test_only_groups_that_exist_are_named(tmp_path):
    root, lstat = machine(tmp_path, groups=("root:x:0:", "video:x:44:"))
    assert unit_for_machine(EXECUTABLE, root=root, lstat=lstat).groups == ("video",)


def test_a_machine_without_a_gpu_group_gets_an_empty_line(tmp_path):
    root, lstat = machine(tmp_path, groups=("root:x:0:",))
    text = unit_for_machine(EXECUTABLE, root=root, lstat=lstat).text
    assert value_of(text, "SupplementaryGroups") == ""


def test_the_groups_of_existing_nodes_are_added_by_name_or_number(tmp_path):
    nodes = (
        ("dev/nvmap", 995, 0o660),
        ("dev/nvhost-ctrl-gpu", 996, 0o660),
        ("dev/nvgpu/igpu0/ctrl", 997, 0o660),
        ("dev/dri/renderD128", 105, 0o660),
        ("dev/sda", 6, 0o660),
    )
    groups = ("root:x:0:", "video:x:44:", "render:x:105:", "disk:x:6:", "nv:x:995:", "host:x:996:")
    root, lstat = machine(tmp_path, *nodes, groups=groups)
    unit = unit_for_machine(EXECUTABLE, root=root, lstat=lstat)
    assert unit.groups == ("997", "host", "nv", "render", "video")
    assert unit.warnings == ()


def test_links_and_plain_files_are_no_device_nodes(tmp_path):
    root, lstat = machine(tmp_path)
    (root / "dev").mkdir()
    (root / "dev/nvhost-link").symlink_to("/dev/null")
    (root / "dev/nvmap").touch()
    unit = unit_for_machine(EXECUTABLE, root=root, lstat=lstat)
    assert (unit.groups, unit.warnings) == (("render", "video"), ())


def test_a_node_of_root_alone_is_reported(tmp_path):
    nodes = (("dev/nvmap", 0, 0o600), ("dev/nvidia0", 0, 0o666))
    root, lstat = machine(tmp_path, *nodes)
    (warning,) = unit_for_machine(EXECUTABLE, root=root, lstat=lstat).warnings
    assert "dev/nvmap belongs to root alone" in warning


def test_a_program_that_the_unit_cannot_see_is_reported(tmp_path):
    root, lstat = machine(tmp_path)
    unit = unit_for_machine(
        PurePosixPath("/home/me/.venv/bin/edge-agent"),
        needs=(PurePosixPath("/root/tools/bin/python"), PurePosixPath("/usr/bin/python3")),
        root=root,
        lstat=lstat,
    )
    assert [warning.split()[0] for warning in unit.warnings] == [
        "/home/me/.venv/bin/edge-agent",
        "/root/tools/bin/python",
    ]


@pytest.mark.parametrize(
    "path", ["edge-agent", "/opt/a b/edge-agent", "/opt/%h/edge-agent", "/x\n"]
)
def test_a_path_that_systemd_would_misread_is_refused(tmp_path, path):
    root, lstat = machine(tmp_path)
    with pytest.raises(UsageError, match="plain path"):
        unit_for_machine(PurePosixPath(path), root=root, lstat=lstat)


def test_installing_twice_changes_nothing_the_second_time(tmp_path):
    root, lstat = machine(tmp_path)
    unit = unit_for_machine(EXECUTABLE, root=root, lstat=lstat)
    assert install(unit, root) is True
    before = (root / UNIT_PATH).stat()
    assert install(unit, root) is False
    after = (root / UNIT_PATH).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert stat.S_IMODE(after.st_mode) == 0o644
    assert (root / UNIT_PATH).read_text() == unit.text


def test_a_masked_unit_is_not_unmasked(tmp_path):
    root, lstat = machine(tmp_path)
    unit = unit_for_machine(EXECUTABLE, root=root, lstat=lstat)
    path = root / UNIT_PATH
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/null")
    with pytest.raises(UsageError, match="masked"):
        install(unit, root)
    assert path.is_symlink()


def test_two_trials_that_crash_in_a_row_leave_the_agent_startable():
    # Each: the switch and its starts, then the start that goes back; and the boot before them.
    starts = 2 * (MAX_ATTEMPTS + 1) + 1 + 1
    assert int(value_of(shipped_unit(), "StartLimitBurst")) >= 2 * starts
