"""An image gets the same files as a device over SSH, and none of its programs is run."""

import json
import os
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge.errors import UsageError
from host_tools.cli import cli
from host_tools.flash.flash import flash
from host_tools.flash.image import image_facts
from host_tools.flash.ssh import SshDevice
from tests.host_tools.flash.devices import (
    HOST,
    files_in,
    make_root,
    needs_sshd,
    running_device,
    stop_units,
)
from tests.host_tools.flash.payloads import ARCH, PYTHON, Factory, agent_wheels

_MACHINES = {"aarch64": 0xB7, "x86_64": 0x3E}


def make_image(root: Path, *, arch=ARCH, python=PYTHON, release=None):
    """Make the root of a system: an interpreter that is nothing but a header, and a libc."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, _MACHINES[arch])
    files = {
        f"usr/bin/python{python}": header,
        f"usr/lib/{arch}-linux-gnu/libc.so.6": b"\0GNU C Library (Ubuntu GLIBC 2.35-0ubuntu3) "
        b"stable release version 2.35.\n\0",
        "etc/os-release": b"",
    }
    if release is not None:
        files["etc/nv_tegra_release"] = f"# R{release} (release), REVISION: 4.3, GCID: 1".encode()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755)
    return root


def run(factory, image, *flags):
    config = factory.folder / "agent.json"
    config.write_text(json.dumps(factory.config))
    words = [
        "flash",
        "--image",
        image,
        factory.folder / "bundle",
        "--key",
        factory.public,
        "--json",
    ]
    words += ["--wheelhouse", factory.folder / "house", "--config", config, *flags]
    result = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, json.loads(result.stdout)


@pytest.fixture
def factory(tmp_path):
    factory = Factory(tmp_path / "here")
    factory.bundle("bundle")
    factory.house("house", agent_wheels())
    return factory


def test_an_image_is_read_without_running_it(tmp_path):
    image = make_image(tmp_path, arch="aarch64", python="3.10", release=36)
    told = image_facts(image)
    assert (told["arch"], told["glibc"], told["l4t"], told["jetpack"]) == (
        "aarch64", "2.35", "36.4.3", "6",
    )  # fmt: skip
    assert told["pythons"] == {"3.10": "/usr/bin/python3.10"}


def test_what_is_written_is_the_payload_and_what_finishes_it(tmp_path, factory):
    image = make_image(tmp_path / "image")
    before = files_in(image)
    status, report = run(factory, image)
    assert (status, report["state"], report["changed"]) == (0, "placed", True)
    payload = factory.payload(factory.folder / "bundle", factory.folder / "house")
    units, folder = "etc/systemd/system", "var/lib/edge-kit/payload"
    new = {name: content for name, content in files_in(image).items() if name not in before}
    assert set(new) == {f"{folder}/{name}" for name in payload.sources} | {
        f"{folder}/payload.json",
        f"{folder}/pending",
        "etc/edge/trusted-keys/release.pub",
        f"{units}/edge-setup.service",
        f"{units}/multi-user.target.wants/edge-setup.service",
    }
    assert str(image).encode() not in b"".join(new.values())
    unit = new[f"{units}/edge-setup.service"].decode()
    assert "device_setup.pyz apply /var/lib/edge-kit/payload" in unit


def test_writing_an_image_twice_changes_nothing(tmp_path, factory):
    image = make_image(tmp_path / "image")
    run(factory, image)
    before = files_in(image)
    status, report = run(factory, image)
    assert (status, report["changed"]) == (0, False)
    assert files_in(image) == before


def test_a_dry_run_leaves_an_image_as_it_is(tmp_path, factory):
    image = make_image(tmp_path / "image")
    before = files_in(image)
    status, report = run(factory, image, "--dry-run")
    assert (status, report["changed"]) == (0, True)
    assert files_in(image) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": "aarch64" if ARCH != "aarch64" else "x86_64"}, "edge-kit wheelhouse --for"),
        ({"python": "3.19"}, f"no Python {PYTHON}"),
        ({"release": 35}, "JetPack 5"),
    ],
)
def test_an_image_that_cannot_work_is_left_alone(tmp_path, factory, changes, said):
    image = make_image(tmp_path / "image", **changes)
    before = files_in(image)
    status, report = run(factory, image)
    assert (status, report["state"]) == (1, "refused")
    assert said in report["reason"]
    assert files_in(image) == before


def test_a_folder_that_is_no_system_is_told_so(tmp_path, factory):
    with pytest.raises(UsageError, match="no root file system"):
        run(factory, tmp_path)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("etc/systemd/system", "{outside}"),
        ("etc/edge", "{outside}"),
        ("var", "{outside}"),
        ("var/lib/edge-kit", "../../../outside"),
        ("etc/systemd/system/multi-user.target.wants", "/../../{outside}"),
    ],
)
def test_no_link_of_an_image_leads_out_of_it(tmp_path, factory, link, target):
    image, outside = make_image(tmp_path / "image"), tmp_path / "outside"
    outside.mkdir()
    path = image / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.format(outside=outside))
    status, report = run(factory, image)
    assert (status, report["state"]) == (0, "placed")
    assert not list(outside.iterdir())
    written = [name for name in files_in(image) if name.endswith("edge-setup.service")]
    assert len(written) == 2


def test_a_link_inside_of_the_payload_is_refused_by_name(tmp_path, factory):
    image, outside = make_image(tmp_path / "image"), tmp_path / "outside"
    outside.mkdir()
    folder = image / "var/lib/edge-kit/payload"
    folder.mkdir(parents=True)
    (folder / "wheels").symlink_to(outside)
    with pytest.raises(UsageError, match="payload/wheels is a link"):
        run(factory, image)
    assert not list(outside.iterdir())


def test_links_without_an_end_are_refused(tmp_path, factory):
    image = make_image(tmp_path / "image")
    (image / "var").symlink_to("/var")
    with pytest.raises(UsageError, match="links have no end"):
        run(factory, image)


def test_usual_links_of_a_root_file_system_are_followed_inside(tmp_path, factory):
    image = make_image(tmp_path / "image")
    (image / "lib").symlink_to("usr/lib")
    (image / "data/var").mkdir(parents=True)
    (image / "var").symlink_to("/data/var")
    (image / "data/var/run").symlink_to("/run")
    assert run(factory, image)[0] == 0
    assert (image / "data/var/lib/edge-kit/payload/payload.json").is_file()


@pytest.mark.parametrize("image", ["/", "/usr/.."])
def test_the_root_of_this_machine_is_no_image(factory, image):
    with pytest.raises(UsageError, match="this very machine"):
        run(factory, image, "--dry-run")


def test_an_image_that_is_not_there_is_named(tmp_path, factory):
    with pytest.raises(UsageError, match="nothing is no folder"):
        run(factory, tmp_path / "nothing")


def test_modes_in_an_image_do_not_follow_the_umask(tmp_path, factory):
    image = make_image(tmp_path / "image")
    there = set(image.rglob("*"))
    before = os.umask(0o077)
    try:
        run(factory, image)
    finally:
        assert os.umask(before) == 0o077
    new = [path for path in image.rglob("*") if path not in there and not path.is_symlink()]
    assert {path.stat().st_mode & 0o777 for path in new} == {0o755, 0o644}


@needs_sshd
@pytest.mark.slow
def test_an_image_after_its_first_boot_is_what_ssh_makes_of_a_device(tmp_path, factory):
    with running_device(tmp_path / "device") as device:
        factory.config = {"port": device.port}
        image = make_image(make_root(tmp_path / "image"))
        given = files_in(image)
        run(factory, image)
        payload = factory.payload(factory.folder / "bundle", factory.folder / "house")
        ssh = SshDevice(host=HOST, config=device.ssh_config)
        assert flash(ssh, payload, root=str(device.root))["state"] == "done"
        # The first boot: the script that lies in the image does the rest there.
        stop_units(device.root)
        folder = str(image / "var/lib/edge-kit/payload")
        booted = ssh.run("apply", folder, "--root", str(image))
        stop_units(image)
        assert booted["state"] == "done"
        flashed = comparable(files_in(device.root), device.root)
        placed = comparable(files_in(image), image)
        assert {name for name in placed if name not in given} == set(flashed)
        assert [name for name in flashed if flashed[name] != placed[name]] == []


def comparable(files, root):
    """Return files without what differs between two runs of the same programs."""
    device_made = ("run/", "usr/", "opt/edge-kit/agents/")
    return {
        name: content.replace(str(root).encode(), b"")
        for name, content in files.items()
        if not name.startswith(device_made)
    }
