"""When the updater calls the gate, and what the gate meets."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import EdgeError
from edge.slots.store import Store
from tests.channel.sites import Device, Site, content_gate, passed
from tests.edge.slots.slot_bundles import CPU


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_gate_meets_the_bundle_before_still_in_service(site: Site) -> None:
    site.release("1")
    follower = Device(site.root / "device", site.anchor, site.channel)
    assert follower.install().code == 0
    site.release("2")
    met: list[tuple[str | None, str | None]] = []

    def curious_gate(store: Store) -> bool:
        candidate = store.state.candidate
        met.append((follower.served, None if candidate is None else candidate.phase))
        return content_gate(store)

    assert passed(follower, CPU, curious_gate).verdict == "installed"
    assert met == [("1", "staged")]


@pytest.mark.parametrize("is_offline", [False, True])
def test_a_trial_whose_judge_was_killed_is_judged_by_the_next_pass(
    site: Site, is_offline: bool
) -> None:
    site.release("1")
    follower = Device(site.root / "device", site.anchor, site.channel)
    assert follower.install().code == 0
    site.release("2")
    assert follower.update("--stage-only").said["verdict"] == "staged"
    Store.open(follower.slots).begin_trial()
    if is_offline:
        follower.channel = follower.root / "no-such-folder"
        with pytest.raises(EdgeError):
            passed(follower, CPU, content_gate)
    else:
        assert passed(follower, CPU, content_gate).verdict == "current"
    state = Store.open(follower.slots).state
    assert (follower.served, state.candidate) == ("2", None)


def test_a_dry_run_leaves_a_trial_alone(site: Site) -> None:
    site.release("1")
    follower = Device(site.root / "device", site.anchor, site.channel)
    assert follower.update("--stage-only").said["verdict"] == "staged"
    before = Store.open(follower.slots).begin_trial()
    follower.update("--dry-run")
    assert Store.open(follower.slots).state == before
