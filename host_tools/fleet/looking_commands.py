"""`edge-kit fleet status`, `history`, `prometheus` and `report`: how the devices are, and were."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edge.console import print_json, say
from edge.errors import UsageError
from host_tools.fleet.options import AS_JSON, INVENTORY, ONLY
from host_tools.terminal import FILE, console

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(s|m|h|d)")


def _seconds(context: click.Context, option: click.Parameter, value: str) -> float:
    """Return the seconds of a span of time such as 24h."""
    found = _SPAN.fullmatch(value)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"--since {value!r} is no span of time; write 90s, 30m, 24h or 7d")
    return float(found[1]) * _UNITS[found[2]]


HISTORY = click.option(
    "--history", type=FILE, help="File of what polls saw. [default: in the user's state folder]"
)
SINCE_DAY = click.option("--since", callback=_seconds, default="24h", show_default=True,
                         help="How far to look back: 90s, 30m, 24h, 7d.")  # fmt: skip
SINCE_WEEK = click.option("--since", callback=_seconds, default="7d", show_default=True,
                          help="How far to look back: 90s, 30m, 24h, 7d.")  # fmt: skip
SECONDS = click.FloatRange(0.1, 3600.0)


def _poll_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says how devices are asked."""
    for option in reversed((
        ONLY,
        click.option("--deadline-s", type=SECONDS,
                     help="For a device to answer, all in all. [default: 2; 15 by ssh]"),
        click.option("--by-ssh", is_flag=True,
                     help="Ask through ssh, for agents that listen on 127.0.0.1 alone."),
        click.option("--ssh-config", type=FILE, help="File for `ssh -F`: keys, jump hosts."),
        HISTORY,
    )):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.option("--inventory", type=FILE, help="YAML file that names the devices.")
@click.option("--discover", multiple=True, metavar="RANGE",
              help="Look for agents there instead, as in 10.0.0.0/24. Repeatable.")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True,
              help="Of --discover: where agents listen.")  # fmt: skip
@_poll_options
@click.option("--no-history", is_flag=True, help="Keep nothing of what is seen.")
@click.option("--watch", "is_watch", is_flag=True, help="Ask again and again, show what changes.")
@click.option("--interval-s", type=SECONDS, default=10.0, show_default=True,
              help="Of --watch: from one round to the next.")  # fmt: skip
@AS_JSON
def status(
    *,
    history: Path | None,
    no_history: bool,
    is_watch: bool,
    interval_s: float,
    as_json: bool,
    **given: Any,
) -> int:
    """Ask every device how it is, all at once; exit 1 if any is not ok.

    ok, degraded (serves, with an alarm, drift or a broken promise), not-ready, unreachable,
    timeout, malformed. With --watch --json every round is one line.
    """
    from host_tools.fleet.looking import (
        Look,
        devices_of,
        history_at,
        poll_once,
        show_once,
        watch,
    )

    if no_history and history is not None:
        raise UsageError("give --history or --no-history")
    look = Look(**given)
    with history_at(history, keep=not no_history) as kept:
        devices, poller = devices_of(look), look.poller()
        if is_watch:
            return watch(
                lambda: poll_once(devices, poller, kept), interval_s=interval_s, as_json=as_json
            )
        return show_once(poll_once(devices, poller, kept), as_json=as_json)


@click.command("history")
@click.argument("device")
@SINCE_DAY
@HISTORY
@AS_JSON
def device_history(*, device: str, since: float, history: Path | None, as_json: bool) -> None:
    """Print how DEVICE was at the polls of this desk, and since when; --json prints each poll."""
    from host_tools.fleet.changes import stretches_from
    from host_tools.fleet.history import PollHistory, default_path
    from host_tools.fleet.tables import stretch_table

    with PollHistory.open(history or default_path(), create=False) as kept:
        polls = tuple(kept.polls(since_s=time.time() - since, device=device))
        known = () if polls else kept.devices()
    if not polls and device not in known:
        raise UsageError(f"the history {kept.path} knows no device {device!r}")
    if as_json:
        print_json(polls)
        return
    console().print(stretch_table(tuple(stretches_from(polls))))
    say(f"{len(polls)} polls")


@click.command()
@INVENTORY
@ONLY
@click.option("--out", type=FILE, default="targets.json", show_default=True, help="File to write.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, write nothing.")
@AS_JSON
def prometheus(
    *, inventory: Path, only: tuple[str, ...], out: Path, dry_run: bool, as_json: bool
) -> None:
    """Write the devices as targets for Prometheus (file_sd), with their names and groups.

    Prometheus reads the file again whenever it changes, and never half of it.
    """
    from edge.files import atomic_write
    from host_tools.fleet.rolling import devices_in
    from host_tools.fleet.scrape_targets import bytes_from_groups, target_groups

    groups = target_groups(tuple(devices_in(inventory, only).values()))
    if not dry_run:
        atomic_write(out, bytes_from_groups(groups))
    if as_json:
        print_json(groups)
        return
    click.echo(f"{out}: {len(groups)} targets{' would be written' if dry_run else ''}")


@click.command()
@INVENTORY
@_poll_options
@SINCE_WEEK
@click.option("--no-poll", is_flag=True, help="Report what is known already, ask nobody.")
@click.option("--out", type=FILE, default="fleet.html", show_default=True, help="File to write.")
@AS_JSON
def report(
    *,
    inventory: Path,
    history: Path | None,
    since: float,
    no_poll: bool,
    out: Path,
    as_json: bool,
    **given: Any,
) -> None:
    """Write one HTML page about the fleet: latency, GPU, energy, throttling, versions, drift.

    It needs no network: open it, mail it, keep it. Devices are asked once more before.
    """
    from edge.files import atomic_write
    from host_tools.fleet.figures import figures_in
    from host_tools.fleet.looking import Look, devices_of, history_at, poll_once
    from host_tools.fleet.report import page_from

    look = Look(inventory=inventory, **given)
    devices = devices_of(look)
    with history_at(history, keep=True) as kept:
        assert kept is not None  # noqa: S101 - it is kept
        if not no_poll:
            poll_once(devices, look.poller(), kept)
        now = time.time()
        fleet = figures_in(kept, devices, begin_s=now - since, end_s=now)
    atomic_write(out, page_from(fleet).encode())
    if as_json:
        print_json(fleet)
        return
    click.echo(f"{out}: {len(devices)} devices, {fleet.polls} polls")


LOOKING_COMMANDS = (status, device_history, prometheus, report)
