"""Rollouts through a channel: its waves are those of the plan, and devices tell what became."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.update.channel import Offer, is_in_wave
from edge.update.settings import followed
from host_tools.channel.repository import read_repository
from host_tools.cli import cli
from host_tools.flash.device.status import identity, status
from host_tools.flash.ssh import UnreachableError
from host_tools.fleet.inventory import Device as Listed
from host_tools.fleet.pull import ChannelPull, look_from
from host_tools.fleet.rollout import DeviceResult, Rollout, RolloutFolder, run_rollout
from host_tools.fleet.rules import rule_from_text
from host_tools.fleet.waves import channel_shares, planned_waves
from host_tools.fleet.ways import way_maker
from tests.channel.sites import Device, Site, run

NAMES = tuple(f"line-{number}" for number in range(1, 6))
BUNDLE = "b" * 64


@given(
    names=st.sets(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=1, max_size=200),
    release=st.text("0123456789abcdef", min_size=64, max_size=64),
    bounds=st.sets(st.integers(1, 199), max_size=5),
)
def test_a_channel_reaches_in_each_wave_exactly_the_devices_that_were_planned(
    names: set[str], release: str, bounds: set[int]
) -> None:
    reached = [*sorted(b for b in bounds if b < len(names)), len(names)]
    waves = planned_waves(sorted(names), release, reached)
    shares = channel_shares(waves, release)
    assert list(shares) == sorted(set(shares))
    assert shares[-1] == 100
    for wave in range(len(waves)):
        offer = Offer(release=release, waves=shares, wave=wave)
        expected = {name for before in waves[: wave + 1] for name in before}
        assert {name for name in names if is_in_wave(offer, name)} == expected


class Fleet:
    """Real devices on real slots, which ask the channel whenever the desk waits."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.site = Site(root)
        self.now = 0.0
        self.away: set[str] = set()
        self.sees_nothing: set[str] = set()  # their gate finds every bundle bad
        self.devices = {name: Device(root / name, self.site.anchor, self.site.channel)
                        for name in names}  # fmt: skip
        for name, device in self.devices.items():
            device.slots = device.root / "var/lib/edge"
            device.slots.parent.mkdir(parents=True)
            (device.root / "etc/edge").mkdir(parents=True)
            (device.root / "etc/edge/update.json").write_text(json.dumps({"device": name}))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for name, device in self.devices.items():
            if name in self.sees_nothing:
                if device.update("--stage-only").said["verdict"] == "staged":
                    device.roll_back()
            elif name not in self.away:
                device.install()

    def ask(self, device: Listed, bundle: str) -> dict[str, Any]:
        if device.name in self.away:
            raise UnreachableError("no route")
        return json.loads(json.dumps(status(self.devices[device.name].root, bundle)))

    @property
    def served(self) -> dict[str, str | None]:
        return {name: device.served for name, device in self.devices.items()}

    def roll_out(self, planned: Rollout, rule: str = "failed>0") -> Rollout:
        listed = {name: Listed(name=name, host=name) for name in self.devices}
        given = {"channel": self.site.channel, "channel_keys": (self.site.keys,), "forks": 2,
                 "follow": "stable", "wait_minutes": 5, "ssh_config": None, "wheelhouse": None,
                 "keys": (), "config": None, "again": False}  # fmt: skip
        way = way_maker("channel", Path("unused"), given)(planned)
        assert isinstance(way, ChannelPull)
        way = ChannelPull(
            bundle=way.bundle, open_wave=way.open_wave, wait_s=way.wait_s, forks=way.forks,
            ask=lambda device: self.ask(device, planned.bundle), clock=lambda: self.now,
            sleep=self.sleep,
        )  # fmt: skip
        folder = RolloutFolder(self.site.root, who="me", now=lambda: "now")
        return run_rollout(folder, planned, listed, rule_from_text(rule), way)


def plan(release: str) -> Rollout:
    return Rollout(bundle=release, name="net", rule="", waves=planned_waves(NAMES, release, (2, 5)))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, NAMES)


def test_devices_fetch_wave_by_wave_and_one_that_goes_back_halts_it(fleet: Fleet) -> None:
    fleet.site.release("1")
    fleet.sleep(0)
    published = fleet.site.change("publish", fleet.site.bundle("2"))
    planned = plan(str(published.said["release"]))
    first, second = planned.waves
    fleet.sees_nothing = {first[1]}

    halted = fleet.roll_out(planned)
    assert (halted.phase, halted.reason) == ("halted", "after wave 1: failed>0")
    assert halted.results == {
        first[0]: DeviceResult(result="committed"),
        first[1]: DeviceResult(result="rolled-back", reason="it does not see"),
    }
    fleet.sleep(0)  # whatever time goes by, the next wave is not opened
    expected = dict.fromkeys(NAMES, "1") | {first[0]: "2"}
    assert fleet.served == expected

    ended = fleet.roll_out(halted, "failed>1")
    assert ended.phase == "done"
    assert fleet.served == dict.fromkeys(NAMES, "2") | {first[1]: "1"}
    assert {ended.results[name].result for name in second} == {"committed"}


def test_a_device_that_is_away_is_unreachable_and_comes_by_itself_later(fleet: Fleet) -> None:
    published = fleet.site.change("publish", fleet.site.bundle("1"))
    planned = plan(str(published.said["release"]))
    fleet.away = {planned.waves[0][0]}
    ended = fleet.roll_out(planned, "failed>0")
    assert ended.phase == "done"
    (gone,) = (name for name, one in ended.results.items() if one.result != "committed")
    assert ended.results[gone] == DeviceResult(result="unreachable", reason="no route")
    assert fleet.now >= 300
    fleet.away = set()
    fleet.sleep(0)
    again = fleet.roll_out(ended)
    assert again.results[gone].result == "committed"


def test_other_waves_than_the_channel_has_are_refused(fleet: Fleet) -> None:
    published = fleet.site.change("publish", fleet.site.bundle("1"))
    release = str(published.said["release"])
    fleet.site.change("promote", release, "--waves", "3,100")
    with pytest.raises(UsageError, match=r"waves of 3%, 100% already"):
        fleet.roll_out(plan(release))
    offers = read_repository(fleet.site.channel).channel.offers
    assert offers["stable"].waves == (3.0, 100.0)


def test_a_bundle_that_was_not_published_is_refused_before_anything_is_done(fleet: Fleet) -> None:
    fleet.site.release("1")
    before = {path: path.read_bytes() for path in fleet.site.channel.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="no release is called"):
        fleet.roll_out(plan(BUNDLE))
    after = {path: path.read_bytes() for path in fleet.site.channel.rglob("*") if path.is_file()}
    assert before == after


def typed(fleet: Fleet, bundle: Path, *words: object) -> list[object]:
    """Return the command line of a rollout through the channel to all devices."""
    inventory = fleet.site.root / "inventory.yaml"
    inventory.write_text(json.dumps({"devices": {name: {} for name in NAMES}}))  # JSON is YAML
    return ["fleet", "rollout", bundle, "--inventory", inventory, "--by", "channel", "--channel",
            fleet.site.channel, "--channel-keys", fleet.site.keys, "--state",
            fleet.site.root / "state", *words]  # fmt: skip


def test_a_channel_is_not_opened_to_all_when_only_some_are_asked_for(fleet: Fleet) -> None:
    bundle = fleet.site.bundle("1")
    fleet.site.change("publish", bundle)
    ran = run(cli, *typed(fleet, bundle, "--only", "line-1", "--wait-minutes", "0.1"))
    assert isinstance(ran.error, UsageError)
    assert "a share of all its followers" in str(ran.error)
    assert not read_repository(fleet.site.channel).channel.offers


def test_a_dry_run_tells_to_which_share_of_the_followers_each_wave_opens(fleet: Fleet) -> None:
    bundle = fleet.site.bundle("1")
    release = str(fleet.site.change("publish", bundle).said["release"])
    words = typed(fleet, bundle, "--waves", "2,100%", "--dry-run")
    planned = run(cli, *words, "--json").said
    shares = list(channel_shares(planned["waves"], release))
    assert planned["shares"] == shares
    first, second, _ = str(run(cli, *words, is_json=False).said).splitlines()
    assert f", {shares[0]:g}% of all who follow the channel: {planned['waves'][0][0]}," in first
    assert ", 100% of all who follow the channel: " in second


@pytest.mark.parametrize("named", [None, "line-1"])
def test_the_script_calls_a_device_as_its_updater_does(tmp_path: Path, named: str | None) -> None:
    (tmp_path / "etc/edge").mkdir(parents=True)
    (tmp_path / "etc/machine-id").write_text("0123456789abcdef\n")
    settings = tmp_path / "etc/edge/update.json"
    settings.write_text(json.dumps({"device": named}))

    def read(path: Path) -> bytes | None:
        below = tmp_path / path.relative_to("/")
        return settings.read_bytes() if path == settings else below.read_bytes()

    found = followed({"channel": "/c"}, settings, read)
    assert identity(tmp_path) == found.device


LISTED = Listed(name="line-1", host="h")
WELL = {"identity": "line-1", "slots": {"committed": "a", "a": {"id": BUNDLE}}}


@pytest.mark.parametrize(
    ("told", "result", "words", "is_final"),
    [
        (WELL, "committed", "None", True),
        ({**WELL, "identity": "x"}, "committed", "None", True),
        ({"identity": "x"}, "failed", "it is called x", True),
        ({"identity": "line-1"}, "failed", "has not asked", False),
        ({"identity": "line-1", "channel": {"verdict": "refused", "at": "T", "reason": "revoked",
          "release": {"id": BUNDLE}}}, "failed", "refused: revoked", True),
        ({"identity": "line-1", "channel": {"verdict": "failed", "at": "T", "reason": "expired"}},
         "failed", "at T: failed: expired", False),
        ({**WELL, "slots": {"refused": [{"id": BUNDLE, "reason": "slow"}]}}, "rolled-back", "slow",
         True),
    ],
)  # fmt: skip
def test_words_of_a_device_become_a_result(
    told: dict[str, Any], result: str, words: str, is_final: bool
) -> None:
    look = look_from(told, LISTED, BUNDLE)
    assert (look.result.result, look.is_final) == (result, is_final)
    assert words in str(look.result.reason)


def test_the_factors_of_a_trial_come_with_it() -> None:
    checks = [{"name": "net p95 latency", "factor": 1.4}]
    outcome = {"result": "committed", "report": {"checks": checks}}
    look = look_from({**WELL, "outcome": outcome}, LISTED, BUNDLE)
    assert look.result.factors == {"p95": 1.4}


anything = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["identity", "slots", "committed", "a", "refused", "channel", "outcome",
                         "report", "checks", "name", "factor", "verdict", "release", "id"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["identity", "slots", "channel", "outcome"]), anything))
def test_whatever_a_device_says_the_desk_goes_on(told: dict[str, Any]) -> None:
    assert isinstance(look_from(told, LISTED, BUNDLE).result, DeviceResult)
