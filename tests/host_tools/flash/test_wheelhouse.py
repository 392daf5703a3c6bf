"""A wheelhouse is complete for its device, whatever Python makes it."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge.errors import UsageError
from host_tools.cli import cli
from host_tools.flash.wheelhouse import (
    WheelhouseError,
    _agent_wheel,
    _glibc_of,
    _marker_environment,
    _missing,
    make_wheelhouse,
    open_wheelhouse,
)
from tests.host_tools.flash.payloads import write_wheelhouse


def write_wheel(folder, name, *requirements):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        lines = [f"Requires-Dist: {requirement}" for requirement in requirements]
        text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 1", *lines])
        archive.writestr(f"{name}-1.dist-info/METADATA", text + "\n")
    (folder / f"{name}-1-py3-none-any.whl").write_bytes(content.getvalue())


@pytest.mark.parametrize(
    ("requirement", "python", "is_missing"),
    [
        ('tomli>=1; python_version < "3.11"', "3.10", True),
        ('tomli>=1; python_version < "3.11"', "3.12", False),
        ('typing-extensions; python_full_version < "3.11"', "3.10", True),
        ('colorama; sys_platform == "win32"', "3.10", False),
        ('tensorrt; platform_machine == "x86_64"', "3.10", False),
        ('tegra; platform_machine == "aarch64"', "3.10", True),
        ('tuf; extra == "update"', "3.10", True),
        ('torch; extra == "host"', "3.10", False),
        ("Some_Thing", "3.10", False),
    ],
)
def test_conditions_are_judged_for_the_device(tmp_path, requirement, python, is_missing):
    write_wheel(tmp_path, "edge_kit", requirement)
    write_wheel(tmp_path, "some_thing")
    environment = _marker_environment("aarch64", python)
    assert bool(list(_missing(tmp_path, environment, ("update",)))) == is_missing


def test_extras_of_requirements_are_followed(tmp_path):
    write_wheel(tmp_path, "edge_kit", 'lib[fast]; extra == "ort"')
    write_wheel(tmp_path, "lib", 'quick>2; extra == "fast"', 'slow; extra == "other"')
    environment = _marker_environment("aarch64", "3.10")
    assert list(_missing(tmp_path, environment, ("ort",))) == ["quick>2"]


@pytest.mark.parametrize(
    ("name", "glibc"),
    [
        ("a-1-cp310-cp310-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", (2, 17)),
        ("a-1-cp310-cp310-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl", (2, 27)),
        ("a-1-cp39-abi3-manylinux_2_31_aarch64.whl", (2, 31)),
        ("a-1-py3-none-any.whl", (2, 5)),
        ("a-1-cp310-cp310-manylinux1_x86_64.whl", (2, 5)),
    ],
)
def test_the_oldest_glibc_of_a_wheel_is_in_its_name(name, glibc):
    assert _glibc_of(name) == glibc


def test_an_agent_is_named_after_the_bytes_of_its_wheels(tmp_path):
    first = open_wheelhouse(write_wheelhouse(tmp_path / "a"))
    same = open_wheelhouse(write_wheelhouse(tmp_path / "b"))
    other = open_wheelhouse(write_wheelhouse(tmp_path / "c", {"pip-1-py3-none-any.whl": b"x"}))
    assert first.agent == same.agent
    assert first.agent != other.agent


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "pip-1-py3-none-any.whl").unlink(),
        lambda folder: (folder / "pip-1-py3-none-any.whl").write_bytes(b"pi?"),
        lambda folder: (folder / "wheelhouse.json").write_text("{}"),
        lambda folder: (folder / "wheelhouse.json").unlink(),
        lambda folder: (folder / "wheelhouse.json").write_text(
            (folder / "wheelhouse.json").read_text().replace("pip-1", "../pip-1")
        ),
    ],
)
def test_an_incomplete_or_altered_wheelhouse_is_refused(tmp_path, change):
    folder = write_wheelhouse(tmp_path / "house")
    change(folder)
    with pytest.raises(Exception, match="house") as caught:
        open_wheelhouse(folder)
    assert caught.type.__name__ in {"WheelhouseError", "StorageError"}


@pytest.mark.parametrize("python", ["3.8", "3.9", "3", "2.7", "3.10.4", "x"])
def test_a_python_that_the_agent_does_not_know_is_refused(tmp_path, python):
    with pytest.raises(UsageError, match=r"needs Python 3\.10"):
        make_wheelhouse(tmp_path / "house", arch="aarch64", python=python)
    assert not (tmp_path / "house").exists()


def test_what_pip_says_is_told_in_one_line(tmp_path, monkeypatch):
    write_wheel(tmp_path, "edge_kit", "surely-nobody-has-this-package==7.7.7")
    own = tmp_path / "edge_kit-1-py3-none-any.whl"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(WheelhouseError, match="cannot download the wheels") as caught:
        make_wheelhouse(tmp_path / "house", arch="aarch64", python="3.10", wheels=(own,), extras=())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "house").exists()


@pytest.mark.slow
def test_the_same_sources_give_the_same_wheel(tmp_path):
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        contents.append(_agent_wheel(tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    with zipfile.ZipFile(tmp_path / "a" / next((tmp_path / "a").glob("*.whl")).name) as wheel:
        assert "host_tools/flash/device/steps.py" in wheel.namelist()


@pytest.mark.slow
def test_a_wheelhouse_for_a_jetson_is_made_here(tmp_path):
    out = tmp_path / "house"
    words = ["wheelhouse", "--for", "aarch64", "--python", "3.10", "--out", str(out), "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exception is None, result.output
    house = json.loads(result.stdout)
    assert (house["arch"], house["python"]) == ("aarch64", "3.10")
    names = [wheel["name"] for wheel in house["wheels"]]
    assert not [name for name in names if "x86_64" in name]
    for needed in ("edge_kit-", "pip-", "numpy-", "onnxruntime-", "msgspec-", "typing_extensions-"):
        assert [name for name in names if name.startswith(needed)], needed
    # An independent judge: pip itself resolves for that device, offline, from these files alone.
    check = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-index"]
    check += ["--find-links", str(out), "--only-binary=:all:", "--target", str(tmp_path / "no")]
    check += ["--python-version", "3.10", "--platform", "manylinux_2_28_aarch64"]
    check += ["--platform", "manylinux_2_31_aarch64", "--platform", "manylinux_2_17_aarch64"]
    check += ["--platform", "manylinux2014_aarch64", "--platform", "manylinux_2_27_aarch64"]
    judged = subprocess.run([*check, "edge-kit"], capture_output=True, text=True)
    assert judged.returncode == 0, judged.stderr
    assert Path(out / "wheelhouse.json").exists()


def test_a_dry_run_tells_what_would_be_asked_for_and_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was started"))
    own = tmp_path / "edge_kit-9-py3-none-any.whl"
    other = tmp_path / "pycuda-1-py3-none-any.whl"
    for wheel in (own, other):
        wheel.write_bytes(b"")
    out = tmp_path / "house"
    words = ["wheelhouse", "--for", "aarch64", "--python", "3.10", "--extra", "ort", "--wheel",
             str(own), "--wheel", str(other), "--out", str(out), "--dry-run"]  # fmt: skip
    told = CliRunner().invoke(cli, [*words, "--json"], standalone_mode=False)
    assert json.loads(told.stdout) == {
        "out": str(out),
        "arch": "aarch64",
        "python": "3.10",
        "wanted": [f"{own}[ort]", "pip", str(other)],
    }
    assert not out.exists()
    out.mkdir()
    again = CliRunner().invoke(cli, words, standalone_mode=False)
    assert "exists; remove it" in str(again.exception)
