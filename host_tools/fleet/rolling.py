"""A rollout as it is asked for at the desk: planned, continued or begun, and told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from edge.bundle import MANIFEST_NAME
from edge.console import print_json, say
from edge.errors import UsageError
from edge.files import read_capped, storage_errors
from edge.manifest import MAX_MANIFEST_BYTES
from edge.slots.state import bundle_id
from host_tools.fleet.audit import End
from host_tools.fleet.inventory import Device, chosen, read_inventory
from host_tools.fleet.rollout import DeviceResult, Rollout, RolloutFolder, Way, run_rollout
from host_tools.fleet.rules import rule_from_text
from host_tools.fleet.waves import channel_shares, planned_waves, waves_from_text
from host_tools.terminal import user_name

if TYPE_CHECKING:
    from host_tools.fleet.ways import By


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a rollout is asked to be. state: its folder. only: devices or groups, all if empty."""

    bundle: Path
    by: By
    inventory: Path
    only: tuple[str, ...]
    waves: str
    halt_on: str
    state: Path
    resume: bool
    dry_run: bool
    as_json: bool


def roll_out(wish: Wish, way_for: Callable[[Rollout], Way]) -> int:
    """Plan, or go on, and roll out; return 1 if a device is not well in the end, or it stopped.

    way_for: called with the plan, also for a dry run; raises UsageError if it cannot be carried
    out.
    """
    if wish.by == "channel" and wish.only:
        raise UsageError(
            "--by channel does not take --only: a wave of a channel is a share of all its "
            "followers, so others would fetch as well; leave it out, or push with --by ssh"
        )
    devices = devices_in(wish.inventory, wish.only)
    rule = rule_from_text(wish.halt_on)
    identity = _bundle_id(wish.bundle)
    waves = planned_waves(tuple(devices), identity, waves_from_text(wish.waves, len(devices)))
    planned = Rollout(
        bundle=identity,
        name=wish.bundle.name,
        rule=str(rule),
        waves=waves,
        shares=channel_shares(waves, identity) if wish.by == "channel" else (),
    )
    folder = rollout_folder(wish.state)
    if wish.dry_run:
        planned = _continued(folder, planned, wish)
        way_for(planned)
        print_json(planned) if wish.as_json else _tell_waves(planned)
        return 0
    with storage_errors("make", wish.state):
        wish.state.mkdir(parents=True, exist_ok=True)
    with folder.alone() as is_alone:
        if not is_alone:
            raise UsageError(
                f"a rollout runs in {wish.state} already, process {folder.runner()}; wait for it, "
                f"or end it with `edge-kit fleet abort --state {wish.state}`"
            )
        event = "begin" if folder.read() is None else "resume"
        planned = _continued(folder, planned, wish)
        way = way_for(planned)
        facts = {"bundle": identity, "rule": str(rule), "waves": planned.waves}
        folder.log.append(event, {**facts, "way": type(way).__name__})
        ended = run_rollout(folder, planned, devices, rule, way, tell=_tell_device)
    print_json(ended) if wish.as_json else _tell_end(ended)
    tell_log_end(folder.log.end)
    return int(ended.phase != "done" or any(map(ended.left, ended.waves)))


def abort_rollout(state: Path, *, dry_run: bool, as_json: bool) -> None:
    """End the rollout in a folder, or ask the process in which it runs to end it; tell which."""
    folder = rollout_folder(state)
    runner, begun = folder.runner(), folder.read()
    if begun is None and runner is None:
        raise UsageError(f"{state} holds no rollout")
    if runner is None and begun is not None and begun.phase == "done":
        raise UsageError(f"the rollout in {state} is done; there is nothing to abort")
    if dry_run:
        begun = begun if runner is not None else _aborted(begun)
    else:
        folder.ask_to_abort()
        with folder.alone() as is_alone:
            begun = folder.read()  # as it is when nobody writes it any more
            if is_alone:
                runner, begun = None, _aborted(begun)
                if begun is not None:
                    folder.write(begun)
            folder.log.append("aborted" if is_alone else "abort asked", {"process": runner})
        tell_log_end(folder.log.end)
    if as_json:
        print_json({**(msgspec.to_builtins(begun) or {}), "process": runner})
        return
    name = "a rollout" if begun is None else f"{begun.name} ({begun.bundle[:12]})"
    tried = 0 if begun is None else len(begun.results)
    verb = "would abort" if dry_run else "aborted"
    click.echo(f"{verb}: {name}, {tried} devices tried")
    if runner is not None:
        click.echo(f"  it runs in process {runner}, which ends after the devices under way")


def devices_in(inventory: Path, only: tuple[str, ...]) -> dict[str, Device]:
    """Return the chosen devices of an inventory by name; raises UsageError if there is none."""
    devices = {device.name: device for device in chosen(read_inventory(inventory), only)}
    if not devices:
        raise UsageError(f"{inventory} names no device")
    return devices


def rollout_folder(state: Path) -> RolloutFolder:
    """Return the folder of a rollout, whose log names the user and the time."""

    def now() -> str:
        return datetime.now(tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    return RolloutFolder(state, who=user_name(), now=now)


def tell_log_end(end: End) -> None:
    """Say what a copy of the log is compared with: whoever cuts its end off cannot hide that."""
    say(f"the log ends with {end.digest}")


def _bundle_id(bundle: Path) -> str:
    return bundle_id(read_capped(bundle / MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES))


def _continued(folder: RolloutFolder, planned: Rollout, wish: Wish) -> Rollout:
    """Return the plan, or the rollout that goes on in a folder.

    Raises UsageError if that is not what was asked.
    """
    state, begun = wish.state, folder.read()
    if begun is None:
        if folder.is_abort_asked():
            raise UsageError(f"{state} holds an aborted rollout; give another --state folder")
        return planned
    if folder.is_abort_asked():
        begun = replace(begun, phase="aborted")
    if begun.phase == "aborted" or begun.bundle != planned.bundle:
        raise UsageError(
            f"{state} holds the rollout of {begun.name} ({begun.bundle[:12]}, {begun.phase}); give "
            "another --state folder"
        )
    if not wish.resume:
        raise UsageError(f"{state} holds this rollout, {begun.phase}; give --resume to go on")
    if {name for wave in begun.waves for name in wave} != {n for w in planned.waves for n in w}:
        raise UsageError(
            f"{state} holds a rollout to other devices; give the same inventory and --only"
        )
    return replace(begun, rule=planned.rule, phase="running", reason=None)


def _aborted(begun: Rollout | None) -> Rollout | None:
    if begun is None or begun.phase in {"aborted", "done"}:
        return begun
    return replace(begun, phase="aborted", reason="by hand")


def _tell_waves(planned: Rollout) -> None:
    shares = planned.shares or (None,) * len(planned.waves)
    for number, (wave, share) in enumerate(zip(planned.waves, shares, strict=True), start=1):
        left = planned.left(wave)
        names = ", ".join(left[:6]) + (" ..." if len(left) > 6 else "")
        among = "" if share is None else f", {share:g}% of all who follow the channel"
        well = "" if len(left) == len(wave) else f", {len(wave) - len(left)} well already"
        click.echo(f"wave {number}: {len(wave)} devices{among}{well}: {names}")
    click.echo(f"stops after a wave if {planned.rule}")


def _tell_device(name: str, result: DeviceResult) -> None:
    say(f"{name}: {result.result}" + (f": {result.reason}" if result.reason else ""))


def _tell_end(ended: Rollout) -> None:
    counts: dict[str, int] = {}
    for result in ended.results.values():
        counts[result.result] = counts.get(result.result, 0) + 1
    left = sum(len(wave) for wave in ended.waves) - len(ended.results)
    words = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
    click.echo(f"{ended.phase}: {words}, {left} not tried")
    if ended.phase == "aborted":
        click.echo(f"  {ended.reason}; devices that have the bundle keep it")
    elif ended.reason is not None:
        click.echo(f"  {ended.reason}; look at these devices, then --resume, or `fleet abort`")
