"""Devices set up from this desk, over the system's ssh: `edge-kit flash`, many at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from edge.errors import EdgeError
from host_tools.errors import FOREIGN_ERRORS, root_cause
from host_tools.flash.flash import flash
from host_tools.flash.payload import Payload
from host_tools.flash.ssh import SshDevice, UnreachableError
from host_tools.fleet.inventory import DEFAULT_PORT, Device
from host_tools.fleet.rollout import DeviceResult, Result

MAX_FACTOR = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashPush:
    """A Way by `flash`, in a thread for each device. forks: devices at a time.

    deadline_s: for each, from when its turn has come. ssh_config: for `ssh -F`. say: gets each
    device's lines of progress.
    """

    payload: Payload
    forks: int
    deadline_s: float
    ssh_config: Path | None = None
    again: bool = False
    say: Callable[[str, str], None] = field(default=lambda device, line: None)
    clock: Callable[[], float] = time.monotonic

    def __call__(
        self, devices: Sequence[Device], wave: int, is_aborted: Callable[[], bool]
    ) -> Iterable[tuple[str, DeviceResult]]:
        """Yield what became of each device."""
        return in_threads(devices, self._one, self.forks, is_aborted)

    def _one(self, device: Device) -> DeviceResult:
        ssh = ssh_device(device, self.ssh_config, until=self.clock() + self.deadline_s)
        report = flash(
            ssh,
            self.payload,
            root=device.root,
            again=self.again,
            say=lambda line: self.say(device.name, line),
        )
        return result_from_report(report)


def in_threads(
    devices: Sequence[Device],
    one: Callable[[Device], DeviceResult],
    forks: int,
    is_aborted: Callable[[], bool] = lambda: False,
) -> Iterable[tuple[str, DeviceResult]]:
    """Yield what `one` returns for each device, so many at a time.

    Whatever error is met at a device is its failure. After is_aborted, or when nobody asks for
    more, no device is begun. An interrupt waits for those under way, whose results are yielded
    first; another one does not.
    """

    def tried(device: Device) -> DeviceResult | None:
        if is_aborted():
            return None
        try:
            return one(device)
        except UnreachableError as error:
            return DeviceResult(result="unreachable", reason=str(error))
        except EdgeError as error:
            return DeviceResult(result="failed", reason=str(error))
        except FOREIGN_ERRORS as error:
            reason = f"what it says makes no sense here: {root_cause(error)}"
            return DeviceResult(result="failed", reason=f"{device.name}: {reason}")

    with ThreadPoolExecutor(min(forks, len(devices)), thread_name_prefix="push") as pool:
        waiting = deque(devices)
        running: dict[Future[DeviceResult | None], str] = {}
        ended: Iterator[Future[DeviceResult | None]] | None = None
        interrupt: KeyboardInterrupt | SystemExit | None = None
        try:
            while waiting or running:
                try:
                    while waiting:
                        device = waiting.popleft()
                        running[pool.submit(tried, device)] = device.name
                    ended = ended or as_completed(running)
                    done = next(ended)
                except (KeyboardInterrupt, SystemExit) as error:
                    if interrupt is not None:
                        raise
                    interrupt, ended = error, None
                    waiting.clear()
                    running = {f: name for f, name in running.items() if not f.cancel()}
                    continue
                name, result = running.pop(done), done.result()
                if result is not None:
                    yield name, result
        finally:
            for future in running:
                future.cancel()
        if interrupt is not None:
            raise interrupt


def ssh_device(device: Device, config: Path | None, *, until: float | None = None) -> SshDevice:
    """Return how ssh reaches a device; an IPv6 address has no brackets there.

    A port is given by itself: not every ssh takes an IPv6 address in ssh://user@host:port.
    """
    host = device.host if device.user is None else f"{device.user}@{device.host}"
    port = None if device.port == DEFAULT_PORT else device.port  # or else what config says holds
    return SshDevice(host=host, port=port, config=config, until=until)


def result_from_report(report: dict[str, Any]) -> DeviceResult:
    """Return the result that the report of a device tells."""
    state, reason = report.get("state"), report.get("reason")
    result: Result = "failed"
    if state == "done":
        result = "committed" if report.get("changed") else "unchanged"
    elif state == "rolled-back":
        result = "rolled-back"
    words = None if reason is None else str(reason)
    return DeviceResult(result=result, reason=words, factors=factors_from(report.get("gate")))


def factors_from(gate: object) -> dict[str, float | None]:
    """Return the worst factors that a gate measured: of p95 latency over the models, of memory."""
    found: dict[str, float | None] = {}
    checks = gate.get("checks") if isinstance(gate, dict) else None
    for check in checks if isinstance(checks, list) else ():
        factor = check.get("factor") if isinstance(check, dict) else None
        for figure, ending in (("p95", "p95 latency"), ("memory", "memory")):
            if _is_factor(factor) and str(check.get("name")).endswith(ending):
                factor = float(min(factor, MAX_FACTOR))
                found[figure] = max(factor, found.get(figure) or 0.0)
    return found


def _is_factor(factor: object) -> TypeGuard[float]:
    """Whether a device says a number that a rule can be asked of: not NaN, for one."""
    return isinstance(factor, (int, float)) and not isinstance(factor, bool) and factor >= 0
