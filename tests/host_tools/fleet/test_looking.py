"""`edge-kit fleet status`, `history`, `prometheus` and `report`, as they are typed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console

from edge.errors import UsageError
from host_tools.cli import cli
from host_tools.fleet.discover import MAX_ADDRESSES, devices_in_ranges
from host_tools.fleet.inventory import Device
from host_tools.fleet.looking import watch
from host_tools.fleet.polling import DeviceStatus
from host_tools.fleet.scrape_targets import target_groups
from host_tools.fleet.tables import status_table, summary_of, watch_view
from host_tools.terminal import plain
from tests.host_tools.commands import invoke
from tests.host_tools.fleet.looks import BEGAN_S, poll
from tests.simulated_agents import ESCAPE, KINDS, address_of, simulated_agents

# Nothing but text and line ends may reach a terminal that has no colours.
UNSEEN = re.compile(r"[^\n\x20-\x7e\u00a0-\uffff]|[\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with simulated_agents() as port:
        yield port


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folders, and a terminal of 80 columns."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "home"


def exit_code(*words: str | Path) -> int:
    """Run a command as the console script does, and return what it exits with."""
    arguments = [str(word) for word in words]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    assert isinstance(result.return_value, int)
    return result.return_value


def inventory(tmp_path: Path, port: int, *kinds: str) -> Path:
    lines = [
        f"  {kind}-1: {{groups: [all], url: 'http://{address_of(kind)}:{port}'}}" for kind in kinds
    ]
    file = tmp_path / "fleet.yaml"
    file.write_text("devices:\n" + "\n".join(lines) + "\n")
    return file


def test_a_fleet_that_is_well_exits_with_0_and_is_remembered(
    tmp_path: Path, home: Path, port: int
) -> None:
    file = inventory(tmp_path, port, "ok", "older")
    assert exit_code("fleet", "status", "--inventory", file, "--no-history") == 0
    result = invoke("fleet", "status", "--inventory", file)
    assert "2 devices: 2 ok" in result.stdout
    assert (home / ".local/state/edge-kit/fleet.sqlite").is_file()
    told = json.loads(invoke("fleet", "history", "ok-1", "--json").stdout)
    assert [one["state"] for one in told] == ["ok"]
    assert told[0]["facts"]["bundle"] == "camera 1.4.0"


def test_one_device_that_is_not_well_is_told_first_and_exits_with_1(
    tmp_path: Path, port: int
) -> None:
    file = inventory(tmp_path, port, "ok", "not-ready", "redirect", "alarm")
    words = ("fleet", "status", "--inventory", file, "--no-history")
    assert exit_code(*words) == 1
    result = invoke(*words)
    order = re.findall(r"^([a-z-]+)-1 ", result.stdout, re.M)
    assert order == ["redirect", "not-ready", "alarm", "ok"]
    assert "the GPU fell off the bus" in result.stdout
    assert max(map(cell_len, result.stdout.splitlines()[:-1])) <= 80


def test_json_tells_every_device_in_the_order_of_the_inventory(tmp_path: Path, port: int) -> None:
    file = inventory(tmp_path, port, "ok", "alarm")
    result = invoke("fleet", "status", "--inventory", file, "--json", "--no-history")
    told = json.loads(result.stdout)
    assert [(one["device"], one["state"]) for one in told] == [
        ("alarm-1", "degraded"),
        ("ok-1", "ok"),
    ]
    assert told[0]["facts"]["alarms"] == ["hot"]


def test_only_some_are_asked_where_names_or_groups_are_given(tmp_path: Path, port: int) -> None:
    file = inventory(tmp_path, port, "ok", "not-ready")
    words = ("fleet", "status", "--inventory", file, "--json", "--no-history", "--only")
    assert [one["device"] for one in json.loads(invoke(*words, "ok-1").stdout)] == ["ok-1"]
    assert len(json.loads(invoke(*words, "all").stdout)) == 2


@pytest.mark.parametrize("words", [(), ("--json",), ("--watch",)])
def test_no_escape_of_a_device_reaches_the_terminal(
    tmp_path: Path, port: int, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = inventory(tmp_path, port, "escape")
    if "--watch" in words:
        # Two rounds, of which the second brings the escapes as changes.
        from host_tools.fleet import looking

        real = looking.watch
        monkeypatch.setattr(looking, "watch", lambda *a, **k: real(*a, **{**k, "rounds": 2}))
        words = ("--watch", "--interval-s", "0.1")
    history = tmp_path / "h"
    result = invoke("fleet", "status", "--inventory", file, "--history", history, *words)
    assert "escape-1" in result.stdout or words[:1] == ("--watch",)
    assert UNSEEN.findall(result.output) == []
    shown = invoke("fleet", "history", "escape-1", "--history", history)
    assert "degraded" in shown.stdout
    assert UNSEEN.findall(shown.output) == []


def test_plain_text_has_no_escape_and_no_mark_that_turns_it() -> None:
    assert UNSEEN.findall(plain(ESCAPE)) == []
    assert plain("Kamera süß 96 °C 相机") == "Kamera süß 96 °C 相机"
    assert len(plain("x" * 1000)) == 300


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--inventory FILE, or --discover"),
        (("--inventory", "FLEET", "--discover", "127.0.0.1"), "--inventory FILE, or --discover"),
        (("--discover", "127.0.0.1", "--only", "x"), "need an inventory"),
        (("--discover", "10.0.0.0/8"), f"more than {MAX_ADDRESSES}"),
        (("--discover", "10.0.0.1/24"), "host bits set"),
        (("--discover", "elsewhere"), "no range"),
        (("--inventory", "FLEET", "--history", "h", "--no-history"), "--history or --no-history"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anybody_is_asked(
    tmp_path: Path, port: int, words: tuple[str, ...], said: str
) -> None:
    file = str(inventory(tmp_path, port, "ok"))
    given = [file if word == "FLEET" else word for word in words]
    if "--no-history" not in given:
        given.append("--no-history")
    with pytest.raises(UsageError, match=re.escape(said)):
        invoke("fleet", "status", *given)


def test_agents_are_found_in_a_range_and_others_left_aside(port: int) -> None:
    def range_of(kind: str) -> str:
        return address_of(kind, 0) + "/30"

    words = ["--discover", range_of("ok"), "--discover", range_of("html"), "--port", str(port)]
    result = invoke("fleet", "status", *words, "--no-history", "--json")
    assert [one["device"] for one in json.loads(result.stdout)] == [
        address_of("ok", 1),
        address_of("ok", 2),
    ]
    assert "4 addresses asked: 2 agents, 2 answer something else" in result.stderr


def test_a_range_without_agents_exits_with_1(port: int) -> None:
    words = ("fleet", "status", "--discover", "127.0.0.1", "--port", "9", "--no-history")
    assert exit_code(*words) == 1
    assert "no devices" in invoke(*words).stdout


def test_ranges_are_bounded_in_all_and_hosts_come_once() -> None:
    devices = devices_in_ranges(["10.0.0.0/30", "10.0.0.2", "fd00::/127"], port=9)
    assert [device.url for device in devices] == [
        "http://10.0.0.1:9", "http://10.0.0.2:9", "http://[fd00::]:9", "http://[fd00::1]:9",
    ]  # fmt: skip
    assert len(devices_in_ranges(["10.0.0.0/20"], port=9)) == 4094
    with pytest.raises(UsageError, match="in all"):
        devices_in_ranges(["10.0.0.0/20", "10.1.0.0/24"], port=9)


def test_a_watch_elsewhere_than_on_a_terminal_prints_what_changes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gone = poll(time_s=BEGAN_S + 10, state="unreachable", reason="connection refused")
    rounds = iter([(poll(),), (poll(time_s=BEGAN_S + 5),), (gone,)])
    waits: list[float] = []
    status = watch(
        lambda: next(rounds),
        interval_s=5.0,
        as_json=False,
        rounds=3,
        clock=lambda: 100.0,
        sleep=waits.append,
    )
    assert status == 1
    assert waits == [5.0, 5.0]
    assert capsys.readouterr().out.splitlines() == [
        "1 device: 1 ok",
        "14:13:30 line-1 is unreachable: connection refused",
    ]


def test_ctrl_c_ends_a_watch_with_what_was_seen_last() -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    assert watch(lambda: (poll(),), interval_s=1, as_json=True, sleep=interrupted) == 0
    gone = poll(state="timeout", reason="no connection within 2 s")
    assert watch(lambda: (gone,), interval_s=1, as_json=True, sleep=interrupted) == 1


def test_a_watch_in_json_prints_a_line_for_each_round(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = iter([(poll(),), (poll(bundle="camera 2"),)])
    watch(lambda: next(rounds), interval_s=1, as_json=True, rounds=2, sleep=lambda _: None)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["changes"], len(first["devices"])) == ([], 1)
    assert second["changes"][0]["kind"] == "new-bundle"


@pytest.mark.parametrize("width", [60, 80, 100, 130])
def test_a_table_keeps_to_the_terminal_and_cuts_no_word_off(width: int) -> None:
    reason = "it takes connections, but does not answer within 2 s"
    statuses = [
        poll(f"hall-a-line-{n:02}", state="timeout" if n < 3 else "ok",
             reason=reason if n < 3 else None)
        for n in range(9)
    ]  # fmt: skip
    console = Console(width=width)
    with console.capture() as capture:
        console.print(status_table(statuses, width=width))
    lines = capture.get().splitlines()
    assert max(map(cell_len, lines)) <= width
    words = " ".join(lines[1:]).split()
    assert set(reason.split()) <= set(words)


@pytest.mark.parametrize("height", [12, 24, 50])
def test_a_watch_keeps_to_the_screen_and_shows_the_worst(height: int) -> None:
    statuses = [
        poll(f"line-{n:03}", state="unreachable" if n == 700 else "ok",
             reason="connection refused" if n == 700 else None)
        for n in range(1000)
    ]  # fmt: skip
    console = Console(width=80, height=height)
    with console.capture() as capture:
        console.print(watch_view(statuses, [], width=80, height=height))
    lines = capture.get().splitlines()
    assert len(lines) <= height
    assert lines[0] == "14:13:20 1000 devices: 999 ok, 1 unreachable"
    assert lines[2].startswith("line-700")
    assert lines[-1].startswith("and ")


def test_the_summary_tells_of_bundles_only_where_they_differ() -> None:
    same: list[DeviceStatus] = [poll("a"), poll("b")]
    assert summary_of(same) == "2 devices: 2 ok"
    other = summary_of([*same, poll("c", bundle="camera 2")])
    assert other == "3 devices: 3 ok; bundles: camera 1.4.0 on 2, camera 2 on 1"


def test_prometheus_gets_addresses_names_and_groups(tmp_path: Path) -> None:
    file, out = tmp_path / "fleet.yaml", tmp_path / "targets.json"
    file.write_text(
        "devices:\n"
        "  line-1: {host: 10.0.0.11, groups: [hall-a, left], labels: {camera.pos: left}}\n"
        "  line-2: {host: 'fd00::1'}\n"
        "  line-3: {host: x, url: 'https://proxy/line-3/'}\n"
    )
    words = ("fleet", "prometheus", "--inventory", file, "--out", out)
    expected = [
        {"targets": ["10.0.0.11:8000"],
         "labels": {"device": "line-1", "groups": ",hall-a,left,", "label_camera_pos": "left"}},
        {"targets": ["[fd00::1]:8000"], "labels": {"device": "line-2"}},
        {"targets": ["proxy:443"],
         "labels": {"device": "line-3", "__scheme__": "https",
                    "__metrics_path__": "/line-3/metrics"}},
    ]  # fmt: skip
    assert json.loads(invoke(*words, "--dry-run", "--json").stdout) == expected
    assert not out.exists()
    assert "3 targets" in invoke(*words).stdout
    assert json.loads(out.read_text()) == expected


def test_labels_that_become_one_are_refused() -> None:
    device = Device(name="a", host="x", labels={"a.b": "1", "a-b": "2"})
    with pytest.raises(UsageError, match="label_a_b"):
        target_groups([device])


def test_a_report_asks_once_more_and_is_written(tmp_path: Path, port: int) -> None:
    file, out = inventory(tmp_path, port, "ok", "alarm"), tmp_path / "fleet.html"
    words = ("fleet", "report", "--inventory", file, "--out", out)
    assert "2 devices, 2 polls" in invoke(*words).stdout
    assert "the GPU has 96 °C" in out.read_text()
    assert "2 devices, 2 polls" in invoke(*words, "--no-poll").stdout
    told = json.loads(invoke(*words, "--json").stdout)
    assert (told["polls"], told["states"]) == (4, {"degraded": 1, "ok": 1})


def test_a_history_of_a_device_shows_when_it_was_how(tmp_path: Path, port: int) -> None:
    file, history = inventory(tmp_path, port, "ok"), tmp_path / "h"
    for _ in range(2):
        invoke("fleet", "status", "--inventory", file, "--history", history)
    result = invoke("fleet", "history", "ok-1", "--history", history, "--since", "90s")
    assert len(result.stdout.splitlines()) == 2  # a head, and one stretch
    assert "2 polls" in result.stderr
    with pytest.raises(UsageError, match="knows no device 'ok-9'"):
        invoke("fleet", "history", "ok-9", "--history", history)
    for wrong in ("yesterday", "0h", "-1d", "1y"):
        with pytest.raises(UsageError, match="is no span of time"):
            invoke("fleet", "history", "ok-1", "--history", history, "--since", wrong)


def test_every_kind_of_trouble_is_one_of_the_states_that_the_help_lists(
    tmp_path: Path, port: int
) -> None:
    file = inventory(tmp_path, port, *KINDS)
    words = ("--inventory", file, "--deadline-s", "0.6", "--json", "--no-history")
    states = {one["state"] for one in json.loads(invoke("fleet", "status", *words).stdout)}
    text = " ".join(invoke("fleet", "status", "--help").stdout.split())
    assert states == {"ok", "degraded", "not-ready", "unreachable", "timeout", "malformed"}
    assert all(state in text for state in states)
