"""Who is in the fleet, who comes in which wave, and when a rollout stops: pure functions."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UsageError
from host_tools.fleet.inventory import Device, chosen, inventory_from_text, read_inventory
from host_tools.fleet.push import MAX_FACTOR, factors_from, result_from_report, ssh_device
from host_tools.fleet.rules import Figures, rule_from_text
from host_tools.fleet.waves import planned_waves, waves_from_text

INVENTORY = b"""
defaults: {user: nvidia, groups: [all]}
devices:
  line-2: {host: 10.0.0.12, port: 2222, user: root}
  line-1: {host: 10.0.0.11, groups: [hall-a], labels: {camera: left}}
  orin.local:
"""


def test_devices_have_defaults_and_their_name_as_host() -> None:
    assert inventory_from_text(INVENTORY, name="i") == (
        Device(name="line-1", host="10.0.0.11", user="nvidia", groups=("hall-a",),
               labels={"camera": "left"}),
        Device(name="line-2", host="10.0.0.12", user="root", port=2222, groups=("all",)),
        Device(name="orin.local", host="orin.local", user="nvidia", groups=("all",)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no devices"),
        ("[1]", "has no devices"),
        ("devices: {a: {}}\nwaves: 1", "'waves' is not a key"),
        ("devices: {a: {hots: x}}", "the nearest is 'host'"),
        ("devices: {a: {port: 0}}", "is no port"),
        ("devices: {a: {port: true}}", "is no port"),
        ("devices: {a: {host: -oProxyCommand=x}}", "is no name or address"),
        ("devices: {a: {user: '-l'}}", "is no name or address"),
        ("devices: {a: {host: 'x y'}}", "is no name or address"),
        ("devices: {'a b': {}}", "use letters"),
        ("devices: {a: {groups: x}}", "is no list"),
        ("devices: {a: {labels: {x: 1}}}", "is no table"),
        ("devices: {a: {root: x}}", "absolute"),
        ("devices: {a: {url: 'ftp://x'}}", "http"),
        ("devices: {a: 1}", "write keys and values"),
        ("devices: {a: {host: x, host: y}}", "given twice"),
        ("devices: {a: {}, a: {}}", "given twice"),
        ("devices: {a: &x {}, b: *x}", "anchors"),
        ("devices: {a: !!python/object/apply:os.system [ls]}", "is not YAML"),
        ("devices: {a: {host: ", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=r"^i") as caught:
        inventory_from_text(text.encode(), name="i")
    assert words in str(caught.value)


def test_devices_are_chosen_by_name_and_by_group(tmp_path: Path) -> None:
    (tmp_path / "i.yaml").write_bytes(INVENTORY)
    devices = read_inventory(tmp_path / "i.yaml")
    assert chosen(devices, ()) == devices
    assert [d.name for d in chosen(devices, ("all",))] == ["line-2", "orin.local"]
    assert [d.name for d in chosen(devices, ("all", "line-1"))] == [
        "line-1",
        "line-2",
        "orin.local",
    ]
    with pytest.raises(UsageError, match="nearest is 'hall-a'"):
        chosen(devices, ("hall-b",))


@pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is missing: IT WAS NOT ASKED")
@pytest.mark.parametrize("host", ["10.0.0.1", "orin.local", "fe80::1", "fe80::1%eth0", "::1"])
@pytest.mark.parametrize("port", [22, 2222])
def test_ssh_itself_reads_a_device_as_it_is_meant(tmp_path: Path, host: str, port: int) -> None:
    text = json.dumps({"devices": {"a": {"host": host, "user": "u", "port": port}}})
    (device,) = inventory_from_text(text.encode(), name="i")
    config = tmp_path / "config"
    config.write_text("")
    asked = subprocess.run(
        ["ssh", "-G", *ssh_device(device, config).words], capture_output=True, check=True, text=True
    )
    told = dict(line.split(" ", 1) for line in asked.stdout.splitlines())
    assert (told["user"], told["hostname"], told["port"]) == ("u", host, str(port))


@pytest.mark.parametrize("host", ["10.0.0.1:2222", "[fe80::1]", "fe80::1::2", "a:b", ":"])
def test_an_address_with_a_port_or_brackets_is_no_host(host: str) -> None:
    text = json.dumps({"devices": {"a": {"host": host}}})
    with pytest.raises(UsageError, match=r"is no (IPv6|name or) address"):
        inventory_from_text(text.encode(), name="i")


@pytest.mark.parametrize(
    ("text", "devices", "reached"),
    [
        ("1,10%,100%", 40, (1, 4, 40)),
        ("1,10%,100%", 1, (1,)),
        ("1,10%,100%", 5, (1, 5)),
        ("5", 3, (3,)),
        ("2", 9, (2, 9)),
        ("0.1%", 10_000, (10, 10_000)),
        ("0.1%", 10, (1, 10)),
        ("33.3%, 66.6%", 3, (1, 2, 3)),
    ],
)
def test_waves_reach_counts_and_shares(text: str, devices: int, reached: tuple[int, ...]) -> None:
    assert waves_from_text(text, devices) == reached


@pytest.mark.parametrize("text", ["", "x", "0", "0%", "101%", "10,5", "1.5", "-1", "1,,2", "1e3"])
def test_waves_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--waves"):
        waves_from_text(text, 20)


@given(
    names=st.sets(st.text("abcdefgh0123456789", min_size=1, max_size=6), min_size=1, max_size=60),
    release=st.text(max_size=5),
    first=st.integers(1, 70),
    share=st.integers(1, 100),
)
def test_every_device_comes_in_exactly_one_wave_whatever_the_order_of_names(
    names: set[str], release: str, first: int, share: int
) -> None:
    try:
        reached = waves_from_text(f"{first},{share}%", len(names))
    except UsageError:
        assert share * len(names) / 100 <= first
        return
    waves = planned_waves(sorted(names), release, reached)
    assert sorted(name for wave in waves for name in wave) == sorted(names)
    assert all(waves)
    assert len(waves[0]) == min(first, len(names))
    assert planned_waves(sorted(names, reverse=True), release, reached) == waves


def test_another_release_begins_with_other_devices() -> None:
    names = [f"line-{n}" for n in range(100)]
    first = {planned_waves(names, f"release-{n}", (1, 100))[0] for n in range(20)}
    assert len(first) > 10


def figures(**changes: Any) -> Figures:
    return Figures(**{"devices": 20, "factors": {}, **changes})


@pytest.mark.parametrize(
    ("rule", "given", "reason"),
    [
        ("failed>0", {"failed": 0}, None),
        ("failed>0", {"failed": 1}, "failed>0"),
        ("failed >= 2", {"failed": 2}, "failed>=2"),
        ("failed>5%", {"failed": 1}, None),
        ("failed>5%", {"failed": 2}, "failed>5%"),
        ("unreachable>=10%", {"unreachable": 2}, "unreachable>=10%"),
        ("p95>1.2x", {"factors": {"p95": 1.2}}, None),
        ("p95>1.2x", {"factors": {"p95": 1.21}}, "p95>1.2x"),
        ("p95>1.2x", {"factors": {"p95": None}}, None),
        ("failed>0 or p95>1.2x", {"factors": {"p95": 2.0}}, "p95>1.2x"),
        ("failed>0 and p95>1.2x", {"factors": {"p95": 2.0}}, None),
        ("failed>0 and p95>1.2x or rolled_back>0", {"rolled_back": 1}, "rolled_back>0"),
        ("failed>0 and p95>1.2x", {"failed": 1, "factors": {"p95": 2.0}}, "failed>0 and p95>1.2x"),
        ("failed>0%", {"devices": 0}, None),
    ],
)
def test_a_rule_says_which_of_its_parts_holds(
    rule: str, given: dict[str, Any], reason: str | None
) -> None:
    assert rule_from_text(rule).reason(figures(**given)) == reason


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "the end"),
        ("fialed>0", "'fialed'"),
        ("failed", "the end"),
        ("failed=0", "'='"),
        ("failed<1", "'<'"),
        ("failed>x", "'x'"),
        ("failed>1x", "'1x'"),
        ("p95>1.2", "'1.2'"),
        ("p95>120%", "'120%'"),
        ("failed>0 or", "the end"),
        ("failed>0 failed>1", "'failed'"),
        ("failed>0 xor p95>1x", "'xor'"),
        ("(failed>0)", "'('"),
        ("failed>" + "9" * 400, "'9"),
    ],
)
def test_a_rule_that_is_none_is_refused_at_its_word(text: str, word: str) -> None:
    with pytest.raises(UsageError, match="--halt-on") as caught:
        rule_from_text(text)
    assert word in str(caught.value)


@given(st.text(alphabet="failedp95 unreachable><=%x.or and0123456789()", max_size=40))
def test_any_text_is_a_rule_that_reads_back_or_is_refused(text: str) -> None:
    try:
        rule = rule_from_text(text)
    except UsageError:
        return
    assert rule_from_text(str(rule)) == rule


def test_a_report_of_flash_becomes_a_result() -> None:
    checks = [
        {"name": "a p95 latency", "factor": 1.1},
        {"name": "b p95 latency", "factor": 1.3},
        {"name": "peak memory", "factor": 0.9},
        {"name": "ready", "factor": None},
    ]
    done = {"state": "done", "changed": True, "steps": [], "gate": {"checks": checks}}
    found = result_from_report(done)
    assert (found.result, found.factors) == ("committed", {"p95": 1.3, "memory": 0.9})
    assert result_from_report({**done, "changed": False, "gate": None}).result == "unchanged"
    back = result_from_report({"state": "rolled-back", "changed": True, "reason": "slow"})
    assert (back.result, back.reason, back.factors) == ("rolled-back", "slow", {})
    assert result_from_report({"state": "refused", "reason": "JetPack 5"}).result == "failed"
    assert factors_from({"checks": [{"name": "peak memory"}]}) == {}


@pytest.mark.parametrize(
    ("factor", "found"),
    [(1.5, 1.5), (2, 2.0), (10**400, MAX_FACTOR), (math.inf, MAX_FACTOR), (math.nan, None),
     (-1.0, None), (True, None), ("2", None), (None, None)],
)  # fmt: skip
def test_a_factor_that_is_no_number_to_compare_is_unknown(
    factor: object, found: float | None
) -> None:
    gate = {"checks": [{"name": "net p95 latency", "factor": factor}]}
    assert factors_from(gate) == ({} if found is None else {"p95": found})
