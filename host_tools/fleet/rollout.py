"""A rollout: waves of devices, one after the other, until all have the bundle or a rule says stop.

What is done stands in one file, replaced whole after each device: a desk that is killed goes on
where it was. How a wave comes to its devices is a Way: over SSH (`push`), by Ansible (`ansible`),
or through a channel that they follow (`pull`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from edge.errors import UsageError
from edge.files import atomic_write, read_capped
from host_tools.fleet.audit import AuditLog
from host_tools.fleet.inventory import Device
from host_tools.fleet.rules import FACTORS, Figures, Rule

MAX_STATE_BYTES = 64 << 20
STATE_NAME, AUDIT_NAME = "rollout.json", "audit.jsonl"

Result = Literal["committed", "unchanged", "rolled-back", "failed", "unreachable"]
Phase = Literal["running", "halted", "aborted", "done"]
GOOD: tuple[Result, ...] = ("committed", "unchanged")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceResult:
    """What became of one device. factors: of the trial against the bundle before, by name."""

    result: Result
    reason: str | None = None
    factors: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The content of rollout.json. bundle: id. results: by device, of those that had their turn.

    shares: up to which share of a channel's followers each wave goes, in percent, if by a channel.
    """

    bundle: str
    name: str
    rule: str
    waves: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...] = ()
    phase: Phase = "running"
    reason: str | None = None
    results: dict[str, DeviceResult] = field(default_factory=dict)

    def left(self, wave: tuple[str, ...]) -> tuple[str, ...]:
        """Return the devices of a wave that are not well: not tried, or not well when they were."""
        return tuple(
            name
            for name in wave
            if name not in self.results or self.results[name].result not in GOOD
        )


class Way(Protocol):
    """Brings the bundle of a rollout to the devices of a wave."""

    def __call__(self, devices: Sequence[Device], wave: int) -> Iterable[tuple[str, DeviceResult]]:
        """Yield what became of each device, by name, as soon as it is known.

        devices: those of the wave that are not well yet. wave: its index. Whatever goes wrong at a
        device is its result; an EdgeError ends the rollout, which can be resumed.
        """


class RolloutFolder:
    """The folder of one rollout: its state, and the log of everything that was asked or done."""

    def __init__(self, folder: Path, *, who: str, now: Callable[[], str]) -> None:
        self.log = AuditLog(folder / AUDIT_NAME, who=who, now=now)
        self._path = folder / STATE_NAME

    def read(self) -> Rollout | None:
        """Return the rollout that began here, None if none did; raises UsageError if it is none."""
        if not self._path.exists():
            return None
        content = read_capped(self._path, max_bytes=MAX_STATE_BYTES)
        try:
            return msgspec.json.decode(content, type=Rollout)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise UsageError(f"{self._path} is no rollout: {error}") from error

    def write(self, rollout: Rollout) -> None:
        """Replace the state."""
        atomic_write(self._path, msgspec.json.format(msgspec.json.encode(rollout), indent=1))


def run_rollout(
    folder: RolloutFolder,
    rollout: Rollout,
    devices: Mapping[str, Device],
    rule: Rule,
    way: Way,
    *,
    tell: Callable[[str, DeviceResult], object] = lambda name, result: None,
) -> Rollout:
    """Do the waves that are left; return the rollout when it is done, or a rule has halted it.

    tell: called as each device is done, in this thread.
    """
    folder.write(rollout)
    for number, wave in enumerate(rollout.waves, start=1):
        left = [devices[name] for name in rollout.left(wave)]
        if left:
            folder.log.append("wave", {"wave": number, "devices": [d.name for d in left]})
        for name, result in way(left, number - 1) if left else ():
            rollout = replace(rollout, results={**rollout.results, name: result})
            folder.write(rollout)
            folder.log.append("device", {"device": name, "result": msgspec.to_builtins(result)})
            tell(name, result)
        # Waves so far alone: what a later one did before a halt is about to be tried again.
        reached = {name for wave in rollout.waves[:number] for name in wave}
        results = {name: one for name, one in rollout.results.items() if name in reached}
        reason = rule.reason(figures_of(replace(rollout, results=results)))
        if reason is not None:
            return _ended(folder, rollout, "halted", f"after wave {number}: {reason}")
    return _ended(folder, rollout, "done", None)


def figures_of(rollout: Rollout) -> Figures:
    """Return the figures that rules ask for, over the devices that had their turn."""
    results = rollout.results.values()
    kinds = [result.result for result in results]
    return Figures(
        devices=len(kinds),
        # A device that went back is one that failed as well.
        failed=kinds.count("failed") + kinds.count("rolled-back"),
        unreachable=kinds.count("unreachable"),
        rolled_back=kinds.count("rolled-back"),
        factors={name: _worst(result.factors.get(name) for result in results) for name in FACTORS},
    )


def _ended(folder: RolloutFolder, rollout: Rollout, phase: Phase, reason: str | None) -> Rollout:
    ended = replace(rollout, phase=phase, reason=reason)
    folder.write(ended)
    folder.log.append(phase, {"reason": reason})
    return ended


def _worst(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
