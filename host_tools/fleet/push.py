"""Devices set up from this desk, over the system's ssh: `edge-kit flash`, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from host_tools.flash.flash import flash
from host_tools.flash.payload import Payload
from host_tools.flash.ssh import SshDevice, UnreachableError
from host_tools.fleet.inventory import DEFAULT_PORT, Device
from host_tools.fleet.rollout import DeviceResult, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashPush:
    """A Way by `flash`, in a thread for each device. forks: devices at a time.

    ssh_config: for `ssh -F`. say: gets each device's lines of progress.
    """

    payload: Payload
    forks: int
    ssh_config: Path | None = None
    again: bool = False
    say: Callable[[str, str], None] = field(default=lambda device, line: None)

    def __call__(
        self, devices: Sequence[Device], wave: int, is_aborted: Callable[[], bool]
    ) -> Iterable[tuple[str, DeviceResult]]:
        """Yield what became of each device."""
        return in_threads(devices, self._one, self.forks, is_aborted)

    def _one(self, device: Device) -> DeviceResult:
        ssh = SshDevice(host=address_of(device), config=self.ssh_config)
        try:
            report = flash(
                ssh,
                self.payload,
                root=device.root,
                again=self.again,
                say=lambda line: self.say(device.name, line),
            )
        except UnreachableError as error:
            return DeviceResult(result="unreachable", reason=str(error))
        return result_from_report(report)


def in_threads(
    devices: Sequence[Device],
    one: Callable[[Device], DeviceResult],
    forks: int,
    is_aborted: Callable[[], bool] = lambda: False,
) -> Iterable[tuple[str, DeviceResult]]:
    """Yield what `one` returns for each device, so many at a time.

    An error at a device is its failure. After is_aborted, or when nobody asks for more, no device
    is begun.
    """

    def tried(device: Device) -> DeviceResult | None:
        if is_aborted():
            return None
        try:
            return one(device)
        except EdgeError as error:
            return DeviceResult(result="failed", reason=str(error))

    with ThreadPoolExecutor(min(forks, len(devices)), thread_name_prefix="push") as pool:
        running = {pool.submit(tried, device): device.name for device in devices}
        try:
            for done in as_completed(running):
                result = done.result()
                if result is not None:
                    yield running[done], result
        finally:
            for waiting in running:
                waiting.cancel()


def address_of(device: Device) -> str:
    """Return the device as ssh takes it: ssh://user@host:port."""
    user = "" if device.user is None else f"{device.user}@"
    host = f"[{device.host}]" if ":" in device.host else device.host
    return f"{user}{host}" if device.port == DEFAULT_PORT else f"ssh://{user}{host}:{device.port}"


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
            if isinstance(factor, (int, float)) and str(check.get("name")).endswith(ending):
                found[figure] = max(float(factor), found.get(figure) or 0.0)
    return found
