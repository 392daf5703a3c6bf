"""Which devices are set up and which are not, judged by facts files of devices.

The files in tests/data/devices have the form that `facts` prints. They were written from NVIDIA's
documentation of each JetPack (Python, glibc, L4T); none came off a real device.
"""

import json
from pathlib import Path

import pytest

from host_tools.flash.device.facts import described, facts, refusal

DEVICES = Path(__file__).parents[2] / "data/devices"
NAMES = sorted(path.stem for path in DEVICES.glob("*.json"))
MIB = 1 << 20


def device(name, **changes):
    return {**json.loads((DEVICES / f"{name}.json").read_text()), **changes}


def wanted(arch="aarch64", python="3.10", **changes):
    """What a payload asks: 60 MiB of wheels and a bundle of 100 and 1,000 MiB."""
    return {
        "arch": arch,
        "python": python,
        "glibc": "2.31",
        "agent": "abc",
        "files": [
            {"path": "wheels/a.whl", "size": 60 * MIB, "sha256": "0"},
            {"path": "keys/k.pub", "size": 100, "sha256": "1"},
        ],
        "blobs": [
            {"sha256": "graph", "size": 100 * MIB, "always": True},
            {"sha256": "engine", "size": 1000 * MIB, "always": False},
        ],
        **changes,
    }


def test_a_facts_file_has_the_keys_that_a_device_tells(tmp_path):
    told = facts(tmp_path)
    for name in NAMES:
        assert set(device(name)) == set(told), name


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("agx-orin-jetpack6", wanted()),
        ("agx-thor-jetpack7", wanted(python="3.12")),
        ("rtx-4060-ubuntu22", wanted(arch="x86_64")),
    ],
)
def test_devices_with_python_3_10_are_set_up(name, asked):
    assert refusal(device(name), asked) is None


@pytest.mark.parametrize("name", ["agx-xavier-jetpack5", "agx-orin-jetpack5"])
@pytest.mark.parametrize("python", ["3.8", "3.10"])
def test_jetpack_5_is_refused_and_sent_to_the_container(name, python):
    reason = refusal(device(name), wanted(python=python))
    assert reason is not None
    assert reason.startswith("JetPack 5 (L4T 35.")
    assert "docs/flash.md, 'JetPack 5'" in reason
    section = (Path(__file__).parents[3] / "docs/flash.md").read_text()
    assert "## JetPack 5" in section


def test_a_python_3_10_that_was_added_to_jetpack_5_changes_nothing():
    pythons = {"3.8": "/usr/bin/python3", "3.10": "/usr/local/bin/python3.10"}
    reason = refusal(device("agx-xavier-jetpack5", pythons=pythons), wanted())
    assert "TensorRT's bindings" in reason


def test_jetpack_4_is_refused_too():
    assert "JetPack 4" in refusal(device("jetson-nano-jetpack4"), wanted())


def test_a_jetson_that_nobody_knows_yet_is_judged_by_its_python():
    future = device("agx-thor-jetpack7", l4t="45.1.2", jetpack="?")
    assert refusal(future, wanted(python="3.12")) is None


@pytest.mark.parametrize(
    ("name", "changes", "asked", "reason"),
    [
        ("rtx-4060-ubuntu22", {}, wanted(), "--for x86_64 --python 3.10"),
        ("agx-orin-jetpack6", {}, wanted(arch="x86_64"), "is for x86_64, the device is aarch64"),
        ("agx-orin-jetpack6", {}, wanted(python="3.12"), "no Python 3.12 with venv, but 3.10"),
        ("agx-orin-jetpack6", {"pythons": {}}, wanted(), "but none"),
        ("agx-orin-jetpack6", {"glibc": "2.27"}, wanted(), "need glibc 2.31, the device has 2.27"),
        ("agx-orin-jetpack6", {"glibc": ""}, wanted(), "the device has none"),
        ("agx-orin-jetpack6", {"sudo": False}, wanted(), "is not root"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(name, changes, asked, reason):
    said = refusal(device(name, **changes), asked)
    assert said is not None
    assert reason in said
    assert "\n" not in said


def test_glibc_2_9_is_older_than_2_31():
    assert refusal(device("agx-orin-jetpack6", glibc="2.9"), wanted()) is not None


def free(opt, var):
    return {"opt": opt * MIB, "var": var * MIB}


def test_space_is_asked_for_what_is_missing_alone():
    # 60 MiB of wheels unpack to 240 beside 64 kept free; 60 + 2 x 100 lie in /var for a moment.
    name = "agx-orin-jetpack6"
    assert refusal(device(name, free_bytes=free(304, 324)), wanted()) is None
    assert refusal(device(name, free_bytes=free(303, 324)), wanted()).startswith("/opt has 303 MiB")
    assert refusal(device(name, free_bytes=free(304, 323)), wanted()).startswith("/var has 323 MiB")
    assert refusal(device(name, free_bytes=free(0, 264), agent="abc"), wanted()) is None
    there = device(name, free_bytes=free(0, 0), agent="abc", blobs=["graph"])
    assert refusal(there, wanted()) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_device_is_described_in_one_line(name):
    assert "\n" not in described(device(name))
