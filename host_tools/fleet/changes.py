"""What became of a fleet between two looks, in words, and when a device was how: pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from host_tools.fleet.polling import STATES, DeviceStatus, State

ChangeKind = Literal[
    "went-down", "came-back", "degraded", "recovered", "new-bundle", "new-agent", "restarted",
    "new-alarm", "alarm-over", "new-device",
]  # fmt: skip
SERVING: tuple[State, ...] = ("ok", "degraded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that is not as it was. detail: in words, behind the name of the device."""

    time_s: float
    device: str
    kind: ChangeKind
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Polls of one device, one after the other, in which it was the same.

    begin_s, end_s: Unix times of the first and the last. p50_ms, p95_ms, gpu_percent: medians.
    """

    begin_s: float
    end_s: float
    polls: int
    state: State
    reason: str | None
    bundle: str | None
    p50_ms: float | None
    p95_ms: float | None
    gpu_percent: float | None


def changes_between(
    before: Mapping[str, DeviceStatus], after: Iterable[DeviceStatus]
) -> Iterator[Change]:
    """Yield what changed; before: what was last seen of each device by name."""
    for status in after:
        then = before.get(status.device)
        for kind, detail in _changes(then, status):
            yield Change(time_s=status.time_s, device=status.device, kind=kind, detail=detail)


def stretches_from(polls: Iterable[DeviceStatus]) -> Iterator[Stretch]:
    """Yield the stretches of one device's polls, which come oldest first."""
    run: list[DeviceStatus] = []
    for poll in polls:
        if run and _sameness(run[-1]) != _sameness(poll):
            yield _stretch(run)
            run = []
        run.append(poll)
    if run:
        yield _stretch(run)


def severity(status: DeviceStatus) -> tuple[int, str]:
    """Return what to sort by, so that the worst comes first."""
    return STATES.index(status.state), status.device


def _changes(then: DeviceStatus | None, now: DeviceStatus) -> Iterator[tuple[ChangeKind, str]]:
    if then is None:
        yield "new-device", f"is {now.state}"
        return
    was_serving, is_serving = then.state in SERVING, now.state in SERVING
    if was_serving and not is_serving:
        yield "went-down", f"is {now.state}: {now.reason}"
    elif is_serving and not was_serving:
        yield "came-back", f"is {now.state} again, after {then.state}"
    elif then.state != now.state and not is_serving:
        yield "went-down", f"is {now.state}, was {then.state}: {now.reason}"
    if then.facts is None or now.facts is None:
        return
    old, new = then.facts, now.facts
    if old.bundle != new.bundle and new.bundle is not None:
        yield "new-bundle", f"serves {new.bundle}, before {old.bundle or 'something unknown'}"
    if old.agent != new.agent and new.agent is not None:
        yield "new-agent", f"runs edge-agent {new.agent}, before {old.agent or 'one unknown'}"
    if old.uptime_s is not None and new.uptime_s is not None and new.uptime_s < old.uptime_s:
        yield "restarted", "was restarted"
    for alarm in new.alarms:
        if alarm not in old.alarms:
            yield "new-alarm", f"alarm: {_detail(alarm, new.troubles)}"
    for alarm in old.alarms:
        if alarm not in new.alarms:
            yield "alarm-over", f"alarm over: {alarm}"
    if then.state == "ok" and now.state == "degraded" and set(new.alarms) <= set(old.alarms):
        yield "degraded", f"is degraded: {now.reason}"
    if then.state == "degraded" and now.state == "ok" and not old.alarms:
        yield "recovered", "is ok again"


def _detail(alarm: str, troubles: Iterable[str]) -> str:
    return next((trouble for trouble in troubles if trouble.startswith(alarm)), alarm)


def _sameness(status: DeviceStatus) -> tuple[object, ...]:
    """Return what has to be the same in a stretch; reasons carry figures that always differ."""
    facts = status.facts
    if facts is None:
        return (status.state,)
    return (status.state, facts.bundle, facts.agent, facts.alarms, facts.drifted)


def _stretch(run: list[DeviceStatus]) -> Stretch:
    facts = [status.facts for status in run if status.facts is not None]
    last = run[-1]
    return Stretch(
        begin_s=run[0].time_s,
        end_s=last.time_s,
        polls=len(run),
        state=last.state,
        reason=last.reason,
        bundle=None if last.facts is None else last.facts.bundle,
        p50_ms=_median(one.p50_ms for one in facts),
        p95_ms=_median(one.p95_ms for one in facts),
        gpu_percent=_median(one.gpu_percent for one in facts),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
