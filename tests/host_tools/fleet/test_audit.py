"""The log of rollouts: what it tells, and that nobody alters it unseen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from host_tools.fleet.audit import FIRST, AuditError, AuditLog, entries
from host_tools.fleet.rollout import AUDIT_NAME, DeviceResult
from tests.host_tools.fleet.test_rollout import Fleet, run


def log(path: Path) -> AuditLog:
    return AuditLog(path, who="me", now=lambda: "2026-01-01T00:00:00Z")


def test_the_log_of_a_rollout_tells_what_was_done(tmp_path: Path) -> None:
    run(tmp_path, Fleet(c=DeviceResult(result="failed", reason="x")))
    found = [entry for entry, _ in entries(tmp_path / AUDIT_NAME)]
    assert [entry.event for entry in found] == [
        "wave", "device", "wave", "device", "device", "halted",
    ]  # fmt: skip
    assert found[0].before == FIRST
    told = {e.facts["device"]: e.facts["result"]["result"] for e in found if e.event == "device"}
    assert told == {"a": "committed", "b": "committed", "c": "failed"}


def test_every_altered_byte_and_every_missing_line_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for number in range(4):
        log(path).append("event", {"number": number})
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(list(entries(path))) == 4
    for missing in range(3):
        path.write_bytes(b"".join(lines[:missing] + lines[missing + 1 :]))
        with pytest.raises(AuditError):
            list(entries(path))
    last = len(whole) - len(lines[-1])
    for place in range(last):  # the last line has no digest behind it yet
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(AuditError):
            list(entries(path))


def test_a_line_that_a_power_cut_left_unfinished_is_cut_off_and_the_log_goes_on(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    log(path).append("one", {})
    whole = path.read_bytes()
    log(path).append("two", {})
    for length in range(len(whole), path.stat().st_size):
        path.write_bytes((whole + path.read_bytes()[len(whole) :])[:length])
        log(path).append("three", {})
        assert [entry.event for entry, _ in entries(path)] == ["one", "three"]


def test_an_altered_log_is_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        log(path).append("event", {})
    path.write_bytes(path.read_bytes().replace(b'"who":"me"', b'"who":"you"', 1))
    before = path.read_bytes()
    with pytest.raises(AuditError, match="line 2"):
        log(path).append("more", {})
    assert path.read_bytes() == before


def test_lines_of_another_process_are_checked_before_the_next_and_the_end_is_that_of_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    mine, yours = log(path), log(path)
    for writer in (mine, mine, yours, mine):
        writer.append("event", {})
        last = path.read_bytes().splitlines(keepends=True)[-1]
        assert writer.end.digest == hashlib.sha256(last).hexdigest()
        assert writer.end.size == path.stat().st_size
    *_, (_, end) = entries(path)
    assert end == mine.end
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(AuditError, match="line 5"):
        mine.append("more", {})


def test_facts_are_kept_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "log"
    facts = {"devices": ["ä", "b"], "number": 1.5, "none": None}
    log(path).append("event", facts)
    assert next(iter(entries(path)))[0].facts == facts
    assert json.loads(path.read_bytes())["facts"] == facts


def test_a_line_that_nobody_could_read_is_not_written(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log", who="me", now=lambda: "2026-01-01T00:00:00Z")
    log.append("begin", {"devices": [f"device-{n:012}" for n in range(100_000)]})
    with pytest.raises(AuditError, match="would take"):
        log.append("more", {"text": "x" * (33 << 20)})
    assert [entry.event for entry, _ in entries(tmp_path / "log")] == ["begin"]
