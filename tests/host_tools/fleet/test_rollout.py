"""Rollouts to simulated devices: halts, resumes, desks that die, and a log that tells."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from edge.errors import BundleError, UsageError
from host_tools.fleet.audit import entries
from host_tools.fleet.inventory import Device
from host_tools.fleet.push import in_threads
from host_tools.fleet.rolling import abort_rollout
from host_tools.fleet.rollout import (
    AUDIT_NAME,
    STATE_NAME,
    DeviceResult,
    Result,
    Rollout,
    RolloutFolder,
    figures_of,
    run_rollout,
)
from host_tools.fleet.rules import rule_from_text
from tests.fakes import DEADLINE_S, wait_until

NAMES = tuple("abcdefgh")
DEVICES = {name: Device(name=name, host=name) for name in NAMES}
WAVES = (("a",), ("b", "c"), ("d", "e", "f", "g", "h"))
PLAN = Rollout(bundle="0" * 64, name="net", rule="failed>0", waves=WAVES)
OK = DeviceResult(result="committed", factors={"p95": 1.0})


class Fleet:
    """Devices that are well, but for those of `bad`; a Way."""

    def __init__(self, *, forks: int = 3, **bad: DeviceResult | Exception) -> None:
        self.bad, self._forks = bad, forks
        self.tried: list[str] = []
        self.meets: Callable[[str], object] = lambda name: None
        self._lock = threading.Lock()

    def __call__(
        self, devices: Sequence[Device], wave: int, is_aborted: Callable[[], bool]
    ) -> Iterable[tuple[str, DeviceResult]]:
        assert {device.name for device in devices} <= set(WAVES[wave])
        return in_threads(devices, self._one, self._forks, is_aborted)

    def _one(self, device: Device) -> DeviceResult:
        with self._lock:
            self.tried.append(device.name)
        self.meets(device.name)
        result = self.bad.get(device.name, OK)
        if isinstance(result, Exception):
            raise result
        return result


def folder_in(path: Path) -> RolloutFolder:
    return RolloutFolder(path, who="me", now=lambda: "2026-01-01T00:00:00Z")


def run(path: Path, fleet: Fleet, plan: Rollout = PLAN, rule: str = "failed>0") -> Rollout:
    return run_rollout(folder_in(path), plan, DEVICES, rule_from_text(rule), fleet)


def test_all_waves_come_in_their_order_when_all_is_well(tmp_path: Path) -> None:
    fleet = Fleet()
    ended = run(tmp_path, fleet)
    assert (ended.phase, set(ended.results)) == ("done", set(NAMES))
    assert fleet.tried[0] == "a"
    assert set(fleet.tried[1:3]) == {"b", "c"}
    assert folder_in(tmp_path).read() == ended


def test_a_device_that_goes_back_halts_the_rollout_and_the_next_wave_is_untouched(
    tmp_path: Path,
) -> None:
    fleet = Fleet(c=DeviceResult(result="rolled-back", reason="golden answers"))
    ended = run(tmp_path, fleet)
    assert (ended.phase, ended.reason) == ("halted", "after wave 2: failed>0")
    assert set(fleet.tried) == {"a", "b", "c"}  # the wave itself is finished
    assert ended.results["b"] == OK


def test_a_resumed_rollout_leaves_alone_who_is_well_and_tries_the_others_again(
    tmp_path: Path,
) -> None:
    halted = run(tmp_path, Fleet(c=DeviceResult(result="unreachable")), rule="unreachable>0")
    well = Fleet()
    ended = run(tmp_path, well, replace(halted, phase="running"))
    assert ended.phase == "done"
    assert sorted(well.tried) == ["c", "d", "e", "f", "g", "h"]


def test_an_error_at_one_device_is_its_result_and_no_end_of_the_rollout(tmp_path: Path) -> None:
    ended = run(tmp_path, Fleet(b=BundleError("no space")), rule="failed>3")
    assert ended.phase == "done"
    assert ended.results["b"] == DeviceResult(result="failed", reason="no space")


@pytest.mark.parametrize("bad", ["unreachable", "failed", "rolled-back"])
def test_a_wave_of_which_no_device_came_out_well_halts_whatever_the_rule_is(
    tmp_path: Path, bad: Result
) -> None:
    fleet = Fleet(b=DeviceResult(result=bad), c=DeviceResult(result=bad))
    ended = run(tmp_path, fleet, rule="failed>99")
    assert (ended.phase, ended.reason) == (
        "halted",
        "after wave 2: no device of it came out well",
    )
    assert set(fleet.tried) == {"a", "b", "c"}
    again = Fleet(b=DeviceResult(result=bad))  # one of two is enough to go on with
    assert run(tmp_path, again, replace(ended, phase="running"), "failed>99").phase == "done"


def test_an_abort_begins_no_device_and_no_wave_more(tmp_path: Path) -> None:
    fleet = Fleet(forks=1)
    fleet.meets = lambda name: folder_in(tmp_path).ask_to_abort() if name == "e" else None
    ended = run(tmp_path, fleet)
    assert (ended.phase, ended.reason) == ("aborted", "by hand, in wave 3")
    assert fleet.tried == ["a", "b", "c", "d", "e"]
    assert set(ended.results) == set(fleet.tried)  # what was under way is kept
    assert [entry.event for entry, _ in entries(tmp_path / AUDIT_NAME)][-1] == "aborted"
    late = Fleet()
    assert run(tmp_path, late, replace(ended, phase="running")).phase == "aborted"
    assert late.tried == []


def test_a_rollout_that_ends_in_an_error_begins_no_device_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []
    left, all_are_cancelled = iter(NAMES[:-1]), threading.Event()
    cancel = Future.cancel

    def seen(future: Future[object]) -> bool:
        is_cancelled = cancel(future)
        if next(left, None) is None:
            all_are_cancelled.set()
        return is_cancelled

    def one(device: Device) -> DeviceResult:
        tried.append(device.name)
        if device.name == "b":
            assert all_are_cancelled.wait(DEADLINE_S)
        return OK

    monkeypatch.setattr(Future, "cancel", seen)
    results = in_threads(list(DEVICES.values()), one, 1)
    assert next(iter(results)) == ("a", OK)
    del results
    assert set(tried) <= {"a", "b"}  # b was perhaps under way


def names_of_main_thread() -> set[str]:
    """Return the functions in which the main thread is."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    names = set()
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return names


def test_an_interrupt_keeps_what_becomes_of_the_devices_under_way(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a new process
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    fleet = Fleet(forks=2)
    both = threading.Barrier(2, timeout=DEADLINE_S)

    def meets(name: str) -> None:
        if name in "bc":
            both.wait()
        if name == "b":
            wait_until(lambda: "as_completed" in names_of_main_thread())
            os.kill(os.getpid(), signal.SIGINT)

    fleet.meets = meets
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, fleet)
    kept = folder_in(tmp_path).read()
    assert kept is not None
    assert (kept.phase, set(kept.results)) == ("running", {"a", "b", "c"})
    assert kept.results["b"].factors == {"p95": 1.0}  # rules ask for it on resume
    assert set(fleet.tried) == {"a", "b", "c"}


def test_an_abort_behind_the_last_device_changes_nothing(tmp_path: Path) -> None:
    fleet = Fleet(forks=1)
    fleet.meets = lambda name: folder_in(tmp_path).ask_to_abort() if name == "h" else None
    assert run(tmp_path, fleet).phase == "done"
    with pytest.raises(UsageError, match="nothing to abort"):
        abort_rollout(tmp_path, dry_run=False, as_json=False)
    ended = folder_in(tmp_path).read()
    assert ended is not None
    assert ended.phase == "done"


def test_who_only_looks_keeps_no_rollout_out(tmp_path: Path) -> None:
    with folder_in(tmp_path).alone():
        pass
    with (tmp_path / "lock").open() as onlooker:
        fcntl.flock(onlooker, fcntl.LOCK_SH)
        threading.Timer(0.05, fcntl.flock, (onlooker, fcntl.LOCK_UN)).start()
        with folder_in(tmp_path).alone() as is_alone:
            assert is_alone


def test_a_folder_has_one_rollout_at_a_time_and_names_its_process(tmp_path: Path) -> None:
    one, two = folder_in(tmp_path), folder_in(tmp_path)
    assert two.runner() is None
    with one.alone() as is_first:
        assert is_first
        assert two.runner() == str(os.getpid())
        with two.alone() as is_second:
            assert not is_second
        assert two.runner() == str(os.getpid())
    assert two.runner() is None
    with two.alone() as is_second:
        assert is_second


@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
     ValueError("x"), KeyError("arch"), RecursionError("deep"), TypeError("not a list"),
     AttributeError("get")],
)  # fmt: skip
def test_a_device_that_makes_no_sense_has_failed_and_the_rollout_goes_on(
    tmp_path: Path, error: Exception
) -> None:
    ended = run(tmp_path, Fleet(b=error), rule="failed>3")
    assert ended.phase == "done"
    assert ended.results["b"].result == "failed"
    reason = str(ended.results["b"].reason)
    assert reason.startswith(f"b: what it says makes no sense here: {type(error).__name__}")
    told = [e.facts for e, _ in entries(tmp_path / AUDIT_NAME) if e.facts.get("device") == "b"]
    assert [one["result"]["reason"] for one in told] == [reason]


def test_a_reason_of_any_length_and_kind_is_kept_as_text_and_the_log_stays_readable(
    tmp_path: Path,
) -> None:
    hostile = DeviceResult(result="failed", reason="\x1b[2J\ud800\u202e" + "x" * 3_000_000 + "\n")
    ended = run(tmp_path, Fleet(b=hostile), rule="failed>3")
    reason = str(ended.results["b"].reason)
    assert ended.phase == "done"
    assert reason.isprintable()
    assert len(reason) <= 2000
    assert folder_in(tmp_path).read() == ended
    assert list(entries(tmp_path / AUDIT_NAME))


def test_a_slower_bundle_halts_by_its_factor(tmp_path: Path) -> None:
    slow = DeviceResult(result="committed", factors={"p95": 1.3, "memory": None})
    ended = run(tmp_path, Fleet(a=slow), rule="failed>0 or p95>1.2x")
    assert (ended.phase, ended.reason) == ("halted", "after wave 1: p95>1.2x")


def test_a_desk_that_dies_anywhere_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed after every write: the next run tries nobody again who is well."""
    whole: list[str] = []

    class KilledError(Exception):
        pass

    for deaths in range(1, 40):
        path = tmp_path / str(deaths)
        path.mkdir()
        tried: list[str] = []
        left = deaths

        def dying(write: Callable[[Rollout], None]) -> Callable[[Rollout], None]:
            def after(rollout: Rollout) -> None:
                nonlocal left
                write(rollout)
                left -= 1
                if left == 0:
                    raise KilledError

            return after

        folder, fleet = folder_in(path), Fleet(forks=1)
        folder.write = dying(folder.write)  # type: ignore[method-assign]
        try:
            run_rollout(folder, PLAN, DEVICES, rule_from_text("failed>0"), fleet)
        except KilledError:
            begun = folder_in(path).read()
            assert begun is not None
            well = {name for name, one in begun.results.items() if one == OK}
            again = Fleet()
            assert run(path, again, begun).phase == "done"
            assert well.isdisjoint(again.tried)
            assert well | set(again.tried) == set(NAMES)
            list(entries(path / AUDIT_NAME))
            tried += again.tried
        else:
            whole.append(str(deaths))
            break
    assert whole  # some run was not killed, so every write was met


def test_figures_count_every_kind_of_trouble_and_the_worst_factor() -> None:
    results = {
        "a": OK,
        "b": DeviceResult(result="failed"),
        "c": DeviceResult(result="rolled-back", factors={"p95": 3.0}),
        "d": DeviceResult(result="unreachable"),
    }
    found = figures_of(replace(PLAN, results=results))
    assert (found.devices, found.failed, found.rolled_back, found.unreachable) == (4, 2, 1, 1)
    assert found.factors == {"p95": 3.0, "memory": None}


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b'{"bundle": 1}'])
def test_a_folder_that_holds_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE_NAME).write_bytes(content)
    with pytest.raises(UsageError, match="is no rollout"):
        folder_in(tmp_path).read()


def test_a_rollout_that_halted_in_a_later_wave_tries_that_wave_again_under_the_same_rule(
    tmp_path: Path,
) -> None:
    halted = run(tmp_path, Fleet(c=DeviceResult(result="rolled-back")))
    assert halted.phase == "halted"
    well = Fleet()
    ended = run(tmp_path, well, replace(halted, phase="running"))
    assert ended.phase == "done"
    assert sorted(well.tried) == ["c", "d", "e", "f", "g", "h"]


def test_failures_of_two_waves_are_both_tried_again(tmp_path: Path) -> None:
    bad = DeviceResult(result="failed")
    halted = run(tmp_path, Fleet(b=bad, d=bad, e=bad), rule="failed>1")
    assert (halted.phase, halted.reason) == ("halted", "after wave 3: failed>1")
    well = Fleet()
    ended = run(tmp_path, well, replace(halted, phase="running"), rule="failed>1")
    assert ended.phase == "done"
    assert sorted(well.tried) == ["b", "d", "e"]
