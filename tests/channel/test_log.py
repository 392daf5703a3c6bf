"""The log of a channel: a line for every change, chained, written before the change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from host_tools.channel import write_change
from host_tools.cli import cli as edge_kit
from tests.channel.sites import Site, run
from tests.channel.test_publishing import StoppedError, tree


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_every_change_leaves_a_line_that_says_who_did_what(site: Site) -> None:
    site.release("1")
    site.change("promote", "1", "--to", "beta", "--allow-downgrade", "ghosts", "--by", "kim")
    lines = [json.loads(line) for line in (site.channel / "audit.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["init", "publish", "promote", "promote"]
    override = lines[-1]["facts"]["override"]
    assert (override["by"], override["reason"]) == ("kim", "ghosts")


def test_the_lines_of_a_channels_log_are_chained_and_no_change_follows_an_altered_one(
    site: Site,
) -> None:
    site.release("1")
    path = site.channel / "audit.jsonl"
    checked = run(edge_kit, "fleet", "audit", "--state", site.channel, "--json")
    assert [entry["event"] for entry in checked.said] == ["init", "publish", "promote"]
    assert path.stat().st_mode & 0o077 == 0  # a web server of another account does not tell it
    path.write_bytes(path.read_bytes().replace(b'"publish"', b'"revokes"'))
    before = tree(site.channel)
    ran = site.run("refresh", site.channel, "--keys", site.keys)
    assert ran.error is not None
    assert ran.error.code == "audit"
    assert tree(site.channel) == before


def test_a_change_that_was_stopped_has_its_line_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise StoppedError

    monkeypatch.setattr(write_change, "write", stopped)
    with pytest.raises(StoppedError):
        site.run("refresh", site.channel, "--keys", site.keys)
    lines = (site.channel / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["init", "refresh"]
