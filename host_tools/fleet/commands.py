"""`edge-kit fleet`: list and look at devices, roll a bundle out to them, read the log of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.console import print_json, say
from edge.errors import UsageError
from host_tools.fleet.looking_commands import LOOKING_COMMANDS
from host_tools.fleet.options import (
    AS_JSON,
    DEADLINE,
    FORKS,
    HALT_ON,
    INVENTORY,
    ONLY,
    RESUME,
    STATE,
    WAVES,
    refuse_given,
)
from host_tools.terminal import FILE, FOLDER

if TYPE_CHECKING:
    from host_tools.fleet.ways import By


# Options that have no meaning for a way to the devices; `ways` knows those that have no default.
_NOT_OF: dict[str, tuple[str, ...]] = {
    "ssh": ("follow", "wait_minutes"),
    "ansible": ("follow", "wait_minutes"),
    "channel": ("deadline_minutes",),
}


@click.group()
def fleet() -> None:
    """Many devices: how they are, and a bundle rolled out to them, which stops where it fails."""


for _command in LOOKING_COMMANDS:
    fleet.add_command(_command)


@fleet.command("list")
@INVENTORY
@ONLY
@AS_JSON
def list_devices(*, inventory: Path, only: tuple[str, ...], as_json: bool) -> None:
    """List the devices of an inventory."""
    from host_tools.fleet.inventory import chosen, read_inventory
    from host_tools.fleet.push import ssh_device

    devices = chosen(read_inventory(inventory), only)
    if as_json:
        print_json(devices)
        return
    for device in devices:
        host = " ".join(word for word in ssh_device(device, None).words if word != "--")
        click.echo(f"{device.name:<24} {host:<32} {' '.join(device.groups)}")


def _push_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a bundle is pushed with, to which devices."""
    for option in reversed((
        click.argument("bundle", type=FOLDER),
        INVENTORY,
        ONLY,
        click.option("--wheelhouse", type=FOLDER, help="That `edge-kit wheelhouse` wrote."),
        click.option("--key", "keys", type=FILE, multiple=True,
                     help="Public key that the devices shall trust. Repeatable."),
        click.option("--config", type=FILE, help="Configuration for the agents."),
        click.option("--again", is_flag=True, help="Try a bundle that was rolled back once more."),
        click.option("--ssh-config", type=FILE, help="File for `ssh -F`: keys, jump hosts."),
        WAVES,
    )):  # fmt: skip
        command = option(command)
    return command


@fleet.command()
@_push_options
@click.option("--by", type=click.Choice(["ssh", "ansible", "channel"]), default="ssh",
              show_default=True, help="How the bundle comes to the devices.")  # fmt: skip
@click.option("--channel", type=FOLDER, help="Of --by channel: the folder of the channel.")
@click.option("--channel-keys", type=FOLDER, multiple=True,
              help="Of --by channel: a folder with keys of its roles. Repeatable.")  # fmt: skip
@click.option("--follow", default="stable", show_default=True,
              help="Of --by channel: the name that devices follow.")  # fmt: skip
@click.option("--wait-minutes", default=90.0, show_default=True, type=click.FloatRange(0.1, 10_000),
              help="Of --by channel: until a device should have come.")  # fmt: skip
@HALT_ON
@FORKS
@DEADLINE
@STATE
@RESUME
@click.option("--dry-run", is_flag=True, help="Print the waves, change nothing.")
@AS_JSON
def rollout(*, by: By, bundle: Path, **given: Any) -> int:
    """Bring BUNDLE to the devices, wave by wave; exit 1 if a device is not well, or it stopped.

    Which device comes in which wave depends on its name and the bundle alone. After each wave the
    rule is asked. What was interrupted, or stopped, goes on with --resume: devices that are well
    are left alone, the others are tried again.

    --by ssh and --by ansible push, and need --wheelhouse and --key. --by channel opens the waves
    of a channel that the devices follow, in which BUNDLE was published, and watches them fetch it.
    """
    from dataclasses import fields

    from host_tools.fleet.rolling import Wish, roll_out
    from host_tools.fleet.ways import way_maker

    refuse_given(_NOT_OF[by], f"--by {by}")
    names = {field.name for field in fields(Wish)} & set(given)
    wish = Wish(bundle=bundle, by=by, **{name: given.pop(name) for name in names})
    return roll_out(wish, way_maker(by, bundle, given))


@fleet.command("ansible")
@_push_options
@click.option(
    "--out", type=FOLDER, default="edge-kit-ansible", show_default=True, help="Folder to write."
)
@click.option("--dry-run", is_flag=True, help="Say what would be written, write nothing.")
@AS_JSON
def ansible_project(
    *,
    bundle: Path,
    inventory: Path,
    only: tuple[str, ...],
    wheelhouse: Path | None,
    keys: tuple[Path, ...],
    config: Path | None,
    again: bool,
    ssh_config: Path | None,
    waves: str,
    out: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a folder for Ansible that rolls BUNDLE out: playbook, role, inventory, payload.

    Run it with `ansible-playbook rollout.yml` there. A wave with a device that is not well is the
    last.
    """
    from host_tools.flash.payload import config_from_file, make_payload
    from host_tools.fleet.by_ansible import PLAYBOOK, write_project
    from host_tools.fleet.rolling import devices_in
    from host_tools.fleet.waves import serial_of

    if wheelhouse is None or not keys:
        raise UsageError("give --wheelhouse and --key")
    devices = tuple(devices_in(inventory, only).values())
    payload = make_payload(
        bundle, wheelhouse=wheelhouse, keys=keys, config=config_from_file(config)
    )
    serial = serial_of(waves, len(devices))
    if not dry_run:
        write_project(out, payload, devices, waves=serial, ssh_config=ssh_config, again=again)
    if as_json:
        names = [device.name for device in devices]
        print_json({"folder": out, "playbook": PLAYBOOK, "devices": names, "serial": serial})
        return
    if dry_run:
        click.echo(f"{out}: {len(devices)} devices would be written, in waves of {serial}")
        return
    click.echo(f"{out}: {len(devices)} devices; cd {out} && ansible-playbook {PLAYBOOK}")


@fleet.command()
@STATE
@click.option("--dry-run", is_flag=True, help="Say what would be aborted, change nothing.")
@AS_JSON
def abort(*, state: Path, dry_run: bool, as_json: bool) -> None:
    """End the rollout in --state: it cannot be resumed; devices stay as they are.

    One that runs, in whatever process, finishes the devices that it has begun, and begins no other.
    """
    from host_tools.fleet.rolling import abort_rollout

    abort_rollout(state, dry_run=dry_run, as_json=as_json)


@fleet.command()
@STATE
@AS_JSON
def audit(*, state: Path, as_json: bool) -> None:
    """Check the log of a rollout, that nothing was altered or left out, and print it."""
    from host_tools.fleet.audit import entries
    from host_tools.fleet.rolling import tell_log_end
    from host_tools.fleet.rollout import AUDIT_NAME

    found = tuple(entries(state / AUDIT_NAME))
    if as_json:
        print_json([entry for entry, _ in found])
    else:
        for entry, _ in found:
            click.echo(f"{entry.time} {entry.who} {entry.event} {entry.facts}")
    say(f"{len(found)} entries, each follows from the one before")
    if found:
        tell_log_end(found[-1][1])
