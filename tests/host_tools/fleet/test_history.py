"""What polls saw is kept: bounded, beside other writers, and never over a file of another."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from host_tools.fleet import history as module
from host_tools.fleet.history import HistoryError, PollHistory, default_path
from tests.host_tools.fleet.looks import BEGAN_S, poll

DAY_S = 86400.0


def test_what_was_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "fleet.sqlite"
    first = poll("a", p95_ms=12.5, alarms=("hot",), variants={"m": "v"}, throttled=())
    second = poll("b", time_s=BEGAN_S + 1, state="timeout", reason="no connection within 2 s")
    with PollHistory.open(path, now=lambda: BEGAN_S) as history:
        history.add([first, second])
    with PollHistory.open(path, create=False) as history:
        assert list(history.polls(since_s=0)) == [first, second]
        assert list(history.polls(since_s=0, device="b")) == [second]
        assert list(history.polls(since_s=BEGAN_S + 0.5)) == [second]
        assert history.devices() == ("a", "b")


def test_readings_are_the_figures_of_the_polls_and_what_nobody_told_is_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 2)
    polls = [
        poll("a", time_s=BEGAN_S, p95_ms=12.5, requests=7, throttled=("hot",)),
        poll("a", time_s=BEGAN_S + 1, state="timeout", reason="late"),
        poll("a", time_s=BEGAN_S + 2, state="not-ready", reason="starts", throttled=()),
        poll("a", time_s=BEGAN_S + 3, state="degraded", reason="hot", p95_ms=13.0),
        poll("a", time_s=BEGAN_S + 4),
    ]
    with PollHistory.open(tmp_path / "h", now=lambda: BEGAN_S) as history:
        history.add([*polls, poll("b", time_s=BEGAN_S - 1)])
        found = history.readings("a", since_s=BEGAN_S, until_s=BEGAN_S + 3)
        none = history.readings("c", since_s=0, until_s=BEGAN_S + 3)
        assert history.first_s("a", since_s=BEGAN_S + 0.5) == BEGAN_S + 1
        assert history.first_s("c", since_s=0) is None
        assert history.last("a", since_s=0, until_s=BEGAN_S + 1) == polls[1]
        assert history.last("a", since_s=0, until_s=BEGAN_S + 1, is_told=True) == polls[0]
        assert history.last("a", since_s=BEGAN_S + 5, until_s=BEGAN_S + 9) is None
    nan = float("nan")
    for name, expected in {
        "time_s": [BEGAN_S, BEGAN_S + 1, BEGAN_S + 2, BEGAN_S + 3],
        "served": [1, 0, 0, 1],
        "told": [1, 0, 1, 1],
        "p95_ms": [12.5, nan, nan, 13.0],
        "requests": [7, nan, nan, nan],
        "throttled": [1, nan, 0, nan],
        "uptime_s": [60, nan, 62, 63],
    }.items():
        np.testing.assert_array_equal(getattr(found, name), expected, err_msg=name)
    assert len(none.time_s) == 0


def test_what_is_too_old_is_deleted_when_more_is_added(tmp_path: Path) -> None:
    now = BEGAN_S + 10 * DAY_S
    with PollHistory.open(tmp_path / "h", keep_days=3, now=lambda: now) as history:
        history.add([poll("a", time_s=now - 4 * DAY_S), poll("a", time_s=now - 2 * DAY_S)])
        history.add([poll("a", time_s=now)])
        kept = [status.time_s for status in history.polls(since_s=0)]
    assert kept == [now - 2 * DAY_S, now]


def test_what_is_too_much_is_deleted_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    with PollHistory.open(tmp_path / "h", now=lambda: BEGAN_S) as history:
        history.add(poll("a", time_s=BEGAN_S + number) for number in range(5))
        kept = [status.time_s - BEGAN_S for status in history.polls(since_s=0)]
    assert kept == [2, 3, 4]


def test_two_desks_may_write_one_history(tmp_path: Path) -> None:
    path = tmp_path / "h"
    with (
        PollHistory.open(path, now=lambda: BEGAN_S) as one,
        PollHistory.open(path, now=lambda: BEGAN_S) as other,
    ):
        one.add([poll("a")])
        other.add([poll("b")])
        assert one.devices() == other.devices() == ("a", "b")
    mode = sqlite3.connect(path)
    assert mode.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    mode.close()


def test_a_round_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    def failing() -> object:
        yield poll("a")
        raise KeyError("in the middle")

    with PollHistory.open(tmp_path / "h", now=lambda: BEGAN_S) as history:
        with pytest.raises(KeyError):
            history.add(failing())  # type: ignore[arg-type]
        history.add([poll("b")])
        assert history.devices() == ("b",)


def _of_another_program(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE polls (x)")
    other.commit()
    other.close()


def _newer(path: Path) -> None:
    PollHistory.open(path).close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 99")
    other.commit()
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b"devices: {}\n"), "no SQLite file"),
        (lambda path: path.write_bytes(b"SQLite format 3\0"), "no SQLite file"),
        (_of_another_program, "of another program"),
        (_newer, "has schema 99, this edge-kit knows 1"),
    ],
)
def test_a_file_of_another_is_refused_and_stays_as_it_is(
    tmp_path: Path, make: object, words: str
) -> None:
    path = tmp_path / "file"
    make(path)  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(HistoryError, match=words):
        PollHistory.open(path)
    assert path.read_bytes() == before
    assert [other.name for other in tmp_path.iterdir()] == ["file"]


def test_a_damaged_history_is_told_and_not_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "h"
    with PollHistory.open(path, now=lambda: BEGAN_S) as history:
        history.add(poll(f"device-{number}", p95_ms=1.0) for number in range(2000))
    content = path.read_bytes()
    damaged = content[:4096] + b"\xa5" * (len(content) - 4096)
    path.write_bytes(damaged)

    def read() -> None:
        with PollHistory.open(path) as history:
            list(history.polls(since_s=0))

    with pytest.raises(HistoryError, match="is damaged"):
        read()
    assert path.read_bytes() == damaged


def test_reading_begins_no_history(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="fleet status"):
        PollHistory.open(tmp_path / "h", create=False)
    assert list(tmp_path.iterdir()) == []


def test_the_users_own_history_lies_in_the_folder_for_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    PollHistory.open(default_path()).close()
    assert (tmp_path / ".local/state/edge-kit/fleet.sqlite").is_file()


def test_where_no_folder_can_be_made_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".local").write_text("a file where a folder should be")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(HistoryError, match="--no-history"):
        PollHistory.open(default_path())
