"""A rollout: waves of devices, one after the other, until all have the bundle or a rule says stop.

What is done stands in one file, replaced whole after each device: a desk that is killed goes on
where it was. How a wave comes to its devices is a Way: over SSH (`push`), by Ansible (`ansible`),
or through a channel that they follow (`pull`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from edge.console import one_line
from edge.errors import UsageError
from edge.files import atomic_write, read_capped, storage_errors
from host_tools.fleet.audit import AuditLog
from host_tools.fleet.inventory import Device
from host_tools.fleet.rules import FACTORS, Figures, Rule
from host_tools.terminal import plain

MAX_STATE_BYTES = 64 << 20
MAX_REASON = 2000  # characters
LOOK_S = 0.5  # far longer than it takes to look who holds the lock
STATE_NAME, AUDIT_NAME, LOCK_NAME, ABORT_NAME = "rollout.json", "audit.jsonl", "lock", "abort"

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

    @property
    def is_tried(self) -> bool:
        """Whether every device had its turn."""
        return all(name in self.results for wave in self.waves for name in wave)

    def left(self, wave: tuple[str, ...]) -> tuple[str, ...]:
        """Return the devices of a wave that are not well: not tried, or not well when they were."""
        return tuple(
            name
            for name in wave
            if name not in self.results or self.results[name].result not in GOOD
        )


class Way(Protocol):
    """Brings the bundle of a rollout to the devices of a wave."""

    def __call__(
        self, devices: Sequence[Device], wave: int, is_aborted: Callable[[], bool]
    ) -> Iterable[tuple[str, DeviceResult]]:
        """Yield what became of each device, by name, as soon as it is known.

        devices: those of the wave that are not well yet. wave: its index. is_aborted: asked before
        each device is begun, where that is possible; what is under way is finished. Whatever goes
        wrong at a device is its result; an EdgeError ends the rollout, which can be resumed.
        """


class RolloutFolder:
    """The folder of one rollout: its state, and the log of everything that was asked or done.

    One process at a time rolls out of it; another may ask it to stop.
    """

    def __init__(self, folder: Path, *, who: str, now: Callable[[], str]) -> None:
        self.log = AuditLog(folder / AUDIT_NAME, who=who, now=now)
        self._path = folder / STATE_NAME
        self._lock, self._abort = folder / LOCK_NAME, folder / ABORT_NAME

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

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep other rollouts out of this folder; yields False if one runs already."""
        with storage_errors("open", self._lock):
            file = self._lock.open("a+")
        with file:
            try:
                with storage_errors("lock", self._lock):
                    until = time.monotonic() + LOOK_S
                    while not (is_alone := _is_locked(file.fileno(), fcntl.LOCK_EX)):
                        if time.monotonic() > until:
                            break
                        time.sleep(LOOK_S / 20)  # `runner` holds it for a moment
                    if is_alone:
                        os.ftruncate(file.fileno(), 0)
                        os.write(file.fileno(), b"%d" % os.getpid())
                yield is_alone
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)

    def runner(self) -> str | None:
        """Return the number of the process whose rollout runs here, None if none does."""
        if not self._lock.exists():
            return None
        with storage_errors("read", self._lock), self._lock.open() as file:
            if _is_locked(file.fileno(), fcntl.LOCK_SH):
                return None
            return file.read(20) or "unknown"

    def ask_to_abort(self) -> None:
        """Let a rollout that runs here, in whatever process, begin nothing more."""
        atomic_write(self._abort, b"")

    def is_abort_asked(self) -> bool:
        """Whether somebody has asked for it; that is never taken back."""
        return os.path.lexists(self._abort)


def run_rollout(
    folder: RolloutFolder,
    rollout: Rollout,
    devices: Mapping[str, Device],
    rule: Rule,
    way: Way,
    *,
    tell: Callable[[str, DeviceResult], object] = lambda name, result: None,
) -> Rollout:
    """Do the waves that are left; return the rollout when it is done, halted or aborted.

    A rule halts it, or a wave of which no device came out well, whatever the rule: there was
    nothing to judge the bundle by. tell: called as each device is done, in this thread.
    """
    folder.write(rollout)
    for number, wave in enumerate(rollout.waves, start=1):
        if folder.is_abort_asked():
            return _ended(folder, rollout, "aborted", f"by hand, before wave {number}")
        left = [devices[name] for name in rollout.left(wave)]
        if left:
            folder.log.append("wave", {"wave": number, "devices": [d.name for d in left]})
        for name, result in way(left, number - 1, folder.is_abort_asked) if left else ():
            if result.reason is not None:  # a device may say anything, of any length
                result = replace(result, reason=plain(one_line(result.reason), MAX_REASON))
            rollout = replace(rollout, results={**rollout.results, name: result})
            folder.write(rollout)
            folder.log.append("device", {"device": name, "result": msgspec.to_builtins(result)})
            tell(name, result)
        if folder.is_abort_asked() and not rollout.is_tried:
            return _ended(folder, rollout, "aborted", f"by hand, in wave {number}")
        # Waves so far alone: what a later one did before a halt is about to be tried again.
        reached = {name for wave in rollout.waves[:number] for name in wave}
        results = {name: one for name, one in rollout.results.items() if name in reached}
        reason = rule.reason(figures_of(replace(rollout, results=results)))
        if reason is None and len(rollout.left(wave)) == len(wave):
            reason = "no device of it came out well"
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


def _is_locked(descriptor: int, kind: int) -> bool:
    """Lock a file at once, or tell that it is locked otherwise."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _worst(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
