"""`edge-kit flash` and `edge-kit wheelhouse`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.console import print_json, say
from edge.errors import EdgeError, UsageError
from host_tools.flash import DEFAULT_EXTRAS
from host_tools.fleet.options import (
    DEADLINE,
    FORKS,
    HALT_ON,
    ONLY,
    RESUME,
    STATE,
    WAVES,
    refuse_given,
)
from host_tools.terminal import FILE, FOLDER

if TYPE_CHECKING:
    from host_tools.flash.flash import Json

_OK = ("done", "placed")
_OF_MANY = ("only", "waves", "halt_on", "forks", "state", "resume")
_OF_ONE = ("ignore_doctor", "device_root")
_OVER_SSH = ("again", "ignore_doctor", "device_root", "ssh_config", "deadline_minutes")


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[USER@DEVICE] BUNDLE")
@click.option(
    "--many",
    type=FILE,
    help="Inventory of devices, instead of one: by Ansible, wave by wave, as `fleet rollout` does.",
)
@ONLY
@WAVES
@HALT_ON
@FORKS
@STATE
@RESUME
@click.option(
    "--wheelhouse", type=FOLDER, required=True, help="Folder that `edge-kit wheelhouse` wrote."
)
@click.option(
    "--key",
    "keys",
    type=FILE,
    multiple=True,
    required=True,
    help="Public key that the device shall trust; one has signed BUNDLE. Repeatable.",
)
@click.option("--config", type=FILE, help="Configuration for the agent, merged with what is there.")
@click.option("--image", type=FOLDER, help="Write into this mounted system instead of a device.")
@click.option("--again", is_flag=True, help="Try a bundle that was rolled back there once more.")
@click.option("--ignore-doctor", is_flag=True, help="Go on although doctor finds a problem.")
@click.option("--ssh-config", type=FILE, help="File for `ssh -F`: ports, keys, jump hosts.")
@DEADLINE
@click.option(
    "--device-root", default="/", show_default=True, help="Root of the system on the device."
)
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def flash(
    words: tuple[str, ...], image: Path | None, many: Path | None, as_json: bool, **options: Any
) -> int:
    """Set up a device over SSH: agent, keys, units and BUNDLE, tried and committed or taken back.

    Safe to repeat, and to interrupt: the same command goes on. With --image the same files go into
    a mounted system, and its first boot does the rest. Exit 1: refused or rolled back.

    With --many every device of an inventory is set up, by Ansible; --only to --resume are for that.
    An error is JSON as well with --json: state, error, reason, exit_code.
    """
    with _told_errors(as_json):
        if len(words) != (2 if image is None and many is None else 1) or (image and many):
            raise UsageError(
                "give USER@DEVICE and BUNDLE, --image DIR and BUNDLE, or --many INVENTORY and "
                "BUNDLE"
            )
        if many is not None:
            refuse_given(_OF_ONE, "--many, whose inventory has the roots,")
            return _flash_many(Path(words[0]), many, as_json=as_json, **options)
        refuse_given(_OF_MANY, "a flash without --many")
        if image is not None:
            refuse_given(_OVER_SSH, "--image")
        return _told(_flash_one(words, image, **options), as_json)


def _flash_many(bundle: Path, inventory: Path, *, as_json: bool, **options: Any) -> int:
    from host_tools.fleet.rolling import Wish, roll_out
    from host_tools.fleet.ways import way_maker

    of_many = {name: options[name] for name in _OF_MANY if name != "forks"}
    wish = Wish(bundle=bundle, by="ansible", inventory=inventory, dry_run=options["dry_run"],
                as_json=as_json, **of_many)  # fmt: skip
    return roll_out(wish, way_maker("ansible", bundle, {**options, "channel": None,
                                                        "channel_keys": ()}))  # fmt: skip


def _flash_one(words: tuple[str, ...], image: Path | None, **options: Any) -> Json:
    """Flash a device or an image and return the report."""
    from host_tools.flash.payload import config_from_file, make_payload

    payload = make_payload(
        Path(words[-1]),
        wheelhouse=options["wheelhouse"],
        keys=options["keys"],
        config=config_from_file(options["config"]),
    )
    if image is not None:
        from host_tools.flash.image import flash_image

        return flash_image(payload, image, dry_run=options["dry_run"], say=say)
    from host_tools.flash.flash import flash as flash_device
    from host_tools.flash.ssh import SshDevice
    from host_tools.progress import progress_bar

    until = time.monotonic() + 60.0 * options["deadline_minutes"]
    device = SshDevice(host=words[0], config=options["ssh_config"], until=until)
    kept = ("again", "ignore_doctor", "dry_run")
    with progress_bar() as tick:
        return flash_device(
            device,
            payload,
            root=options["device_root"],
            say=say,
            tick=tick,
            **{name: options[name] for name in kept},
        )


@contextlib.contextmanager
def _told_errors(as_json: bool) -> Iterator[None]:
    """Print an error as JSON too, where a program reads; the exit code is that of the error."""
    try:
        yield
    except EdgeError as error:
        if as_json:
            told = {"state": "error", "error": error.code, "reason": str(error)}
            print_json({**told, "exit_code": error.exit_code})
        raise


def _told(report: Json, as_json: bool) -> int:
    if as_json:
        print_json(report)
    else:
        words = report["state"] if report["changed"] else f"{report['state']}, nothing changed"
        click.echo(f"{words}: {report['reason']}" if "reason" in report else words)
    return 0 if report["state"] in _OK else 1


@click.command()
@click.option(
    "--for",
    "arch",
    type=click.Choice(["aarch64", "x86_64"]),
    required=True,
    help="Architecture of the device: aarch64 is a Jetson's.",
)
@click.option(
    "--python",
    default="3.10",
    show_default=True,
    help="Of the device: 3.10 on JetPack 6, 3.12 on 7.",
)
@click.option(
    "--extra",
    "extras",
    multiple=True,
    default=DEFAULT_EXTRAS,
    show_default=True,
    help="What of edge-kit to bring: ort, chat, update, rtx, nvml. Repeatable.",
)
@click.option(
    "--wheel",
    "wheels",
    type=FILE,
    multiple=True,
    help="A wheel of your own, such as a PyCUDA that a Jetson built. Repeatable.",
)
@click.option("--constraint", type=FILE, help="Versions to keep to, as for `pip -c`.")
@click.option(
    "--out", type=FOLDER, default="wheelhouse", show_default=True, help="Folder to write."
)
@click.option("--dry-run", is_flag=True, help="Say what would be asked for, download nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print wheelhouse.json.")
def wheelhouse(
    arch: Any, python: str, out: Path, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Download all that an agent needs on a device without a network, pip included."""
    from host_tools.flash.wheelhouse import make_wheelhouse, planned_wheelhouse

    if dry_run:
        plan = planned_wheelhouse(out, arch=arch, python=python, **options)
        if as_json:
            print_json(plan)
            return
        wanted = ", ".join(plan.wanted)
        click.echo(f"{out}: for Python {python} on {arch} would hold {wanted}, and what they need")
        return
    house = make_wheelhouse(out, arch=arch, python=python, say=say, **options)
    if as_json:
        print_json(house)
        return
    size = sum(wheel.size for wheel in house.wheels)
    click.echo(
        f"{out}: {len(house.wheels)} wheels, {size / (1 << 20):.1f} MiB, agent {house.agent}"
    )


FLASH_COMMANDS = (flash, wheelhouse)
