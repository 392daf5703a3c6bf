"""Every device asked at once how it is, and what the answers mean.

A device's deadline bounds all of it: name, connection, head, body and the tries after a refusal.
"""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from edge.http_client import Address, address_from_url
from host_tools.fleet.answers import (
    Facts,
    Report,
    UnreadableError,
    facts_from,
    report_from_body,
)
from host_tools.fleet.fetching import Answer, FetchError, Stage, fetch
from host_tools.fleet.inventory import Device
from host_tools.fleet.push import ssh_device
from host_tools.terminal import plain

AGENT_PORT = 8000
AT_ONCE, SSH_AT_ONCE = 256, 16
MAX_TRIES = 3
PAUSE_S = 0.2  # before the second try, twice as much before the third, times 0.5 to 1.5
_FILES_BESIDE = 192  # descriptors of this process that are no connections: names, the history

# From the worst to the best, as tables are sorted.
State = Literal["unreachable", "timeout", "malformed", "not-ready", "degraded", "ok"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """How a device was when it was asked. time_s: Unix time of the answer, or of giving up.

    reason: why it is not ok, in words. answer_ms: from the first try to the end of the answer.
    facts: None where no report came.
    """

    device: str
    url: str
    state: State
    reason: str | None = None
    time_s: float
    answer_ms: float | None = None
    groups: tuple[str, ...] = ()
    facts: Facts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Poller:
    """How devices are asked. deadline_s: for each, from when its turn has come.

    by_ssh: through the ssh of each device, where agents listen on 127.0.0.1 there. now: Unix time.
    """

    deadline_s: float = 2.0
    by_ssh: bool = False
    ssh_config: Path | None = None
    tries: int = MAX_TRIES
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    rng: random.Random = field(default_factory=random.Random)

    async def poll(self, devices: Sequence[Device]) -> tuple[DeviceStatus, ...]:
        """Return how each device is, in the order given; raises UsageError for a wrong url."""
        for device in devices:
            agent_address(device)  # what is wrong with an address is told before anybody is asked
        found: dict[int, DeviceStatus] = {}
        waiting = iter(enumerate(devices))

        async def work() -> None:
            for number, device in waiting:
                found[number] = await self.ask(device)

        most = SSH_AT_ONCE if self.by_ssh else connections_at_once()
        await asyncio.gather(*(work() for _ in range(min(most, len(devices)))))
        return tuple(found[number] for number in range(len(devices)))

    async def ask(self, device: Device) -> DeviceStatus:
        """Return how one device is; never raises for what it does or says."""
        address = agent_address(device, by_ssh=self.by_ssh)
        stage, begun, failed = Stage(), self.clock(), list[FetchError]()
        state: State
        facts = reason = None
        try:
            report = await asyncio.wait_for(
                self._report(device, address, stage, failed), self.deadline_s
            )
            facts = facts_from(report)
            state, reason = judged(report, facts)
        except (asyncio.TimeoutError, TimeoutError):
            state, reason = _late(stage, failed, self.deadline_s)
        except _NotReadyError as error:
            state, reason = "not-ready", str(error)
        except FetchError as error:
            state, reason = error.kind, error.reason
        except UnreadableError as error:
            state, reason = "malformed", str(error)
        took_ms = round((self.clock() - begun) * 1e3, 1)
        return DeviceStatus(
            device=device.name,
            url=plain(str(address)),
            state=state,
            reason=None if reason is None else plain(reason),
            time_s=self.now(),
            answer_ms=None if facts is None else took_ms,
            groups=device.groups,
            facts=facts,
        )

    async def _report(
        self, device: Device, address: Address, stage: Stage, failed: list[FetchError]
    ) -> Report:
        """Return the report of a device; failed gets what went wrong before."""
        words = ssh_device(device, self.ssh_config).words if self.by_ssh else None
        while True:
            try:
                answer = await fetch(address, "/telemetry", stage=stage, by_ssh=words)
                break
            except FetchError as error:
                failed.append(error)
                if not error.may_pass or len(failed) >= self.tries:
                    raise
            stage.is_connected, stage.received_bytes = False, 0
            # Agents that restart together would else be asked together again.
            await asyncio.sleep(PAUSE_S * len(failed) * self.rng.uniform(0.5, 1.5))
        report = _report_in(answer)
        if report.ready is None:  # an agent whose report does not tell
            ready = await fetch(address, "/v2/health/ready", stage=stage, by_ssh=words)
            report.ready = ready.status == 200
        return report


def judged(report: Report, facts: Facts) -> tuple[State, str | None]:
    """Return the state of a device that gave a report, and why it is not ok."""
    if not report.ready:
        activity = None if report.phase == "serving" else report.activity
        return "not-ready", plain(report.condition or activity or "it does not say why")
    return ("degraded", plain("; ".join(facts.troubles))) if facts.troubles else ("ok", None)


def agent_address(device: Device, *, by_ssh: bool = False) -> Address:
    """Return where the agent of a device listens: its url, else port 8000 of its host.

    by_ssh: the address as the device itself takes it, which without a url is 127.0.0.1.
    """
    if device.url is not None:
        return address_from_url(device.url)
    return Address(host="127.0.0.1" if by_ssh else device.host, port=AGENT_PORT)


def connections_at_once() -> int:
    """Return how many devices are asked at a time, so that descriptors suffice."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return AT_ONCE if most < 0 else max(1, min(AT_ONCE, most - _FILES_BESIDE))


class _NotReadyError(Exception):
    """Who answers says itself that it cannot serve."""


def _report_in(answer: Answer) -> Report:
    if answer.status == 503:
        raise _NotReadyError("it answers 503: it has no room, or a proxy finds no agent")
    if 300 <= answer.status < 400:
        raise UnreadableError(f"it answers {answer.status}, a redirect, which is not followed")
    if answer.status != 200:
        raise UnreadableError(f"it answers {answer.status} instead of a report")
    if answer.content_type != "application/json":
        kind = plain(answer.content_type, 60) or "no type"
        raise UnreadableError(f"it answers with {kind} instead of application/json")
    return report_from_body(answer.body)


def _late(stage: Stage, failed: list[FetchError], deadline_s: float) -> tuple[State, str]:
    """Return what it means that a deadline has passed."""
    if stage.is_connected:
        came = f"{stage.received_bytes} bytes of an answer came" if stage.received_bytes else (
            "it takes connections, but does not answer")  # fmt: skip
        return "timeout", f"{came} within {deadline_s:g} s"
    if failed:
        return failed[-1].kind, failed[-1].reason
    return "timeout", f"no connection within {deadline_s:g} s"
