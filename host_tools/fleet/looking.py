"""Looking at a fleet: polls, once or again and again, into a history and onto a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from edge.console import print_json, say
from edge.errors import UsageError
from host_tools.fleet.changes import Change, changes_between
from host_tools.fleet.discover import devices_in_ranges, is_agent
from host_tools.fleet.history import PollHistory, default_path
from host_tools.fleet.inventory import Device
from host_tools.fleet.polling import AGENT_PORT, DeviceStatus, Poller
from host_tools.fleet.rolling import devices_in
from host_tools.fleet.tables import line_of, status_table, summary_of, watch_view
from host_tools.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

DEADLINE_S, SSH_DEADLINE_S = 2.0, 15.0
MAX_CHANGES = 100  # that a watch remembers


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Which devices are looked at, and how; as the options of `fleet status`."""

    inventory: Path | None = None
    discover: tuple[str, ...] = ()
    port: int = AGENT_PORT
    only: tuple[str, ...] = ()
    deadline_s: float | None = None
    by_ssh: bool = False
    ssh_config: Path | None = None

    def poller(self) -> Poller:
        """Return who asks."""
        deadline_s = self.deadline_s or (SSH_DEADLINE_S if self.by_ssh else DEADLINE_S)
        return Poller(deadline_s=deadline_s, by_ssh=self.by_ssh, ssh_config=self.ssh_config)


@dataclass(slots=True)
class Watch:
    """A watch under way: what was last seen of each device, and what changed lately."""

    last: dict[str, DeviceStatus] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def take(self, statuses: Sequence[DeviceStatus]) -> list[Change]:
        """Take what a round saw; return what changed since the one before."""
        new = list(changes_between(self.last, statuses)) if self.last else []
        self.last = {status.device: status for status in statuses}
        self.changes = [*self.changes, *new][-MAX_CHANGES:]
        return new


def devices_of(look: Look) -> tuple[Device, ...]:
    """Return the devices to look at: of the inventory, or those that answer in the ranges.

    Raises UsageError if both or neither are given.
    """
    if (look.inventory is None) == (not look.discover):
        raise UsageError("give --inventory FILE, or --discover RANGE")
    if look.inventory is not None:
        return tuple(devices_in(look.inventory, look.only).values())
    if look.only or look.by_ssh:
        raise UsageError("--only and --by-ssh need an inventory, which --discover does without")
    asked = devices_in_ranges(look.discover, port=look.port)
    poller = Poller(deadline_s=look.deadline_s or DEADLINE_S, tries=1)
    statuses = asyncio.run(poller.poll(asked))
    found = tuple(d for d, status in zip(asked, statuses, strict=True) if is_agent(status))
    others = sum(status.state in {"malformed", "not-ready"} and not is_agent(status)
                 for status in statuses)  # fmt: skip
    say(f"{len(asked)} addresses asked: {len(found)} agents, {others} answer something else")
    return found


@contextlib.contextmanager
def history_at(path: Path | None, *, keep: bool) -> Iterator[PollHistory | None]:
    """Yield the history at a path, or the user's own; None if nothing is to be kept."""
    if not keep:
        yield None
        return
    with PollHistory.open(path or default_path()) as history:
        yield history


def poll_once(
    devices: Sequence[Device], poller: Poller, history: PollHistory | None
) -> tuple[DeviceStatus, ...]:
    """Return how each device is, and keep it."""
    statuses = asyncio.run(poller.poll(devices))
    if history is not None:
        history.add(statuses)
    return statuses


def show_once(statuses: Sequence[DeviceStatus], *, as_json: bool) -> int:
    """Print how the devices are; return 1 if any is not ok."""
    if as_json:
        print_json(statuses)
    else:
        screen = console()
        screen.print(status_table(statuses, width=screen.width))
        click.echo(summary_of(statuses))
    return 0 if statuses and all(status.state == "ok" for status in statuses) else 1


def watch(
    poll: Callable[[], Sequence[DeviceStatus]],
    *,
    interval_s: float,
    as_json: bool,
    rounds: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Poll every interval_s until Ctrl-C, or so many rounds; return 1 if any is not ok.

    On a terminal a table is kept up; elsewhere what changed is printed, line by line. as_json:
    prints a line for each round instead.
    """
    seen, screen = Watch(), console()
    statuses: Sequence[DeviceStatus] = ()
    # Ctrl-C is how a watch ends; what was being written is written whole, or not at all.
    with (
        contextlib.suppress(KeyboardInterrupt),
        _shown(screen, is_live=screen.is_terminal and not as_json) as show,
    ):
        for number in itertools.count(1):
            due = clock() + interval_s
            statuses = poll()
            changes = seen.take(statuses)
            if as_json:
                line = {"devices": statuses, "changes": changes}
                click.echo(msgspec.json.encode(line, enc_hook=str).decode())
            elif show is not None:
                show(statuses, seen.changes)
            else:
                if number == 1:
                    click.echo(summary_of(statuses))
                for change in changes:
                    click.echo(line_of(change))
            if number == rounds:
                break
            sleep(max(0.0, due - clock()))
    return 0 if statuses and all(status.state == "ok" for status in statuses) else 1


@contextlib.contextmanager
def _shown(
    screen: Console, *, is_live: bool
) -> Iterator[Callable[[Sequence[DeviceStatus], Sequence[Change]], None] | None]:
    """Yield what keeps a table up on a terminal; None where there is none."""
    if not is_live:
        yield None
        return
    from rich.live import Live

    with Live(console=screen, auto_refresh=False, vertical_overflow="crop") as live:

        def show(statuses: Sequence[DeviceStatus], changes: Sequence[Change]) -> None:
            size = screen.size
            view = watch_view(statuses, changes, width=size.width, height=size.height)
            live.update(view, refresh=True)

        yield show
