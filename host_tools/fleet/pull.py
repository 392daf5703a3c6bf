"""A Way for devices that fetch by themselves: the waves of their channel, one after the other.

The desk opens a wave in the channel, looks over SSH at what became of each device, and opens the
next. A device decides by the same hash as the plan whether a wave reaches it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from host_tools.errors import FOREIGN_ERRORS, root_cause
from host_tools.flash.ssh import UnreachableError
from host_tools.fleet.inventory import Device
from host_tools.fleet.push import factors_from, ssh_device
from host_tools.fleet.rollout import DeviceResult

MAX_LOOK_S = 60.0  # for a device to tell

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was seen at a device. is_final: that will not change; else the result if it stays so."""

    result: DeviceResult
    is_final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelPull:
    """A Way by a channel. bundle: its id. open_wave: offers it up to the wave of an index.

    ask: returns what the device script says of a bundle; raises UnreachableError. wait_s: until a
    device that has not come is one that failed. every_s: between two looks. forks: looks at a time.
    say: gets what a device is waiting for, when that changes.
    """

    bundle: str
    open_wave: Callable[[int], None]
    ask: Callable[[Device], Json]
    wait_s: float
    forks: int
    every_s: float = 10.0
    say: Callable[[str, str], None] = field(default=lambda device, line: None)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __call__(
        self, devices: Sequence[Device], wave: int, is_aborted: Callable[[], bool]
    ) -> Iterator[tuple[str, DeviceResult]]:
        """Yield what became of each device; after is_aborted no more is waited for."""
        self.open_wave(wave)
        until = self.clock() + self.wait_s
        waiting = {device.name: device for device in devices}
        said: dict[str, str | None] = {}
        with ThreadPoolExecutor(min(self.forks, len(devices)), thread_name_prefix="look") as pool:
            while waiting and not is_aborted():
                is_late = self.clock() >= until
                looks = pool.map(self._look, list(waiting.values()))
                for name, look in zip(list(waiting), looks, strict=True):
                    reason = look.result.reason
                    if look.is_final or is_late:
                        del waiting[name]
                        yield name, look.result
                    elif said.get(name) != reason:
                        self.say(name, str(reason))
                        said[name] = reason
                if waiting:
                    self.sleep(self.every_s)

    def _look(self, device: Device) -> Look:
        try:
            return look_from(self.ask(device), device, self.bundle)
        except UnreachableError as error:
            result = DeviceResult(result="unreachable", reason=str(error))
            return Look(result=result, is_final=False)
        except EdgeError as error:
            return _failed(str(error))
        except FOREIGN_ERRORS as error:
            return _failed(f"what it says makes no sense here: {root_cause(error)}")


def ask_over_ssh(device: Device, bundle: str, ssh_config: Path | None) -> Json:
    """Return what the device script says of a bundle there."""
    ssh = ssh_device(device, ssh_config, until=time.monotonic() + MAX_LOOK_S)
    return ssh.run("status", bundle, "--root", device.root)


def look_from(told: Json, device: Device, bundle: str) -> Look:
    """Return what the words of a device mean for a bundle; pure."""
    outcome = _at(told, "outcome")
    factors = factors_from(_at(outcome, "report"))
    committed = _at(told, "slots", "committed")
    if isinstance(committed, str) and _at(told, "slots", committed, "id") == bundle:
        return Look(result=DeviceResult(result="committed", factors=factors), is_final=True)
    refused = _at(told, "slots", "refused")
    for one in refused if isinstance(refused, list) else ():
        if _at(one, "id") == bundle:
            reason = str(_at(one, "reason"))
            result = DeviceResult(result="rolled-back", reason=reason, factors=factors)
            return Look(result=result, is_final=True)
    identity = _at(told, "identity")
    if identity != device.name:
        return _failed(
            f"in its channel it is called {identity}, so that another wave may reach it; write "
            f'{{"device": "{device.name}"}} to /etc/edge/update.json there',
            is_final=True,
        )
    verdict, reason = _at(told, "channel", "verdict"), _at(told, "channel", "reason")
    if verdict is None:
        return _failed("it has not asked its channel yet; is edge-update.timer enabled?")
    says = f"its last pass, at {_at(told, 'channel', 'at')}: {verdict}: {reason}"
    refuses = verdict == "refused" and _at(told, "channel", "release", "id") == bundle
    return _failed(says, is_final=refuses)


def _failed(reason: str, *, is_final: bool = False) -> Look:
    return Look(result=DeviceResult(result="failed", reason=reason), is_final=is_final)


def _at(told: object, *keys: str) -> Any:
    """Return what lies at a path of keys, None if nothing does: a device may say anything."""
    for key in keys:
        if not isinstance(told, dict):
            return None
        told = told.get(key)
    return told
