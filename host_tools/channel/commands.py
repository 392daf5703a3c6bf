"""`edge-kit channel`: make, change and look at the repository that devices follow."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge.console import print_json, say
from edge.errors import UsageError
from host_tools.terminal import FILE, FOLDER, user_name

if TYPE_CHECKING:
    from host_tools.channel.repository import Change, Repository
    from host_tools.channel.signing import Signers
    from host_tools.channel.write_change import Done

Command = TypeVar("Command", bound=Callable[..., Any])
CHANNEL = click.argument("channel", type=FOLDER)
KEYS = click.option(
    "--keys",
    type=FOLDER,
    multiple=True,
    required=True,
    help="Folder of private keys. Repeatable: root keys lie on sticks of their own.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would change; write nothing.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def _options(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_CHANGES = _options(CHANNEL, KEYS, DRY_RUN, AS_JSON)


@click.group("channel")
def channel() -> None:
    """Publish bundles to devices: a signed repository of static files (TUF).

    init -> publish -> promote -> (next waves) promote; refresh the timestamp from a timer. Any web
    server, a USB stick or a folder can hand it out.
    """


@channel.command()
@CHANNEL
@click.option("--product", required=True, help="Name that the bundles are packed with.")
@click.option("--keys", type=FOLDER, required=True, help="Folder for the new private keys.")
@click.option("--bundle-key", "bundle_keys", type=FILE, multiple=True, help="A .pub. Repeatable.")
@click.option(
    "--root-keys",
    type=click.IntRange(1, 20),
    default=3,
    show_default=True,
    help="Root keys to make.",
)
@click.option(
    "--root-threshold",
    type=click.IntRange(1, 20),
    default=2,
    show_default=True,
    help="Root keys that must sign.",
)
@click.option(
    "--targets-keys",
    type=click.IntRange(1, 20),
    default=1,
    show_default=True,
    help="Publishers' keys to make.",
)
@click.option(
    "--targets-threshold",
    type=click.IntRange(1, 20),
    default=1,
    show_default=True,
    help="Publishers' keys that must sign.",
)
@click.option("--days", multiple=True, metavar="ROLE=DAYS", help="Life of a role's signatures.")
@DRY_RUN
@AS_JSON
def init(channel: Path, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Make a channel in an empty folder, and the keys of its roles."""
    from host_tools.channel.found import Wishes, found

    done = found(channel, Wishes(**options), now=_now(), dry_run=dry_run)
    _report(done, as_json=as_json)
    if not dry_run:
        say(
            f"next: move all but one of the root keys in {options['keys']} off this machine, and "
            f"put {channel}/metadata/1.root.json onto the devices as /etc/edge/channel-root.json"
        )


@channel.command()
@_CHANGES
@click.argument("bundle", type=FOLDER)
def publish(bundle: Path, **options: Any) -> None:
    """Add BUNDLE to CHANNEL; nobody gets it before `promote`."""
    from host_tools.channel.operations import published

    def plan(repository: Repository, signers: Signers) -> Done:
        change, release = published(repository, bundle, signers, _now())
        return _done("publish", change, release=release.id, version=release.version)

    _change(plan, **options)


@channel.command()
@_CHANGES
@click.argument("release")
@click.option("--to", default="stable", show_default=True, help="Name that devices follow.")
@click.option("--waves", metavar="1,10,100", help="Shares of the devices in percent; default: all.")
@click.option("--all", "to_all", is_flag=True, help="Go to the last wave at once.")
@click.option("--allow-downgrade", metavar="REASON", help="Let devices go back to this release.")
@click.option(
    "--hours",
    type=click.IntRange(1, 8760),
    default=72,
    show_default=True,
    help="For how long the downgrade is allowed.",
)
@click.option("--by", help="Who allows it; default: the user.")
def promote(
    release: str,
    to: str,
    waves: str | None,
    to_all: bool,
    allow_downgrade: str | None,
    hours: int,
    by: str | None,
    **options: Any,
) -> None:
    """Offer RELEASE to the devices that follow a channel, or to their next wave.

    RELEASE is a version, an id, or the beginning of one.
    """
    from edge.update.channel import Override
    from host_tools.channel.document import Promotion, with_promotion
    from host_tools.channel.operations import redocumented, text_from_time

    override = None
    if allow_downgrade is not None:
        until = text_from_time(_now() + timedelta(hours=hours))
        override = Override(by=by or user_name(), reason=allow_downgrade, until=until)
    wanted = Promotion(
        release=release, to=to, waves=_shares(waves), to_all=to_all, override=override
    )

    def plan(repository: Repository, signers: Signers) -> Done:
        document = with_promotion(repository.channel, wanted)
        offer = document.offers[to]
        return _done(
            "promote",
            redocumented(repository, document, signers, _now()),
            release=offer.release,
            to=to,
            wave=f"{offer.wave + 1}/{len(offer.waves)}",
            percent=offer.waves[offer.wave],
            override=offer.override,
        )

    _change(plan, **options)


@channel.command()
@_CHANGES
@click.argument("release", required=False)
@click.option("--key", help="A bundle key instead of a release: name, id, or its beginning.")
@click.option("--reason", required=True, help="Told to the devices.")
def revoke(release: str | None, key: str | None, reason: str, **options: Any) -> None:
    """Take back RELEASE, or the bundle key --key; devices then refuse it."""
    from host_tools.channel.document import find_key, with_revoked_key
    from host_tools.channel.operations import redocumented, release_revoked

    if (release is None) == (key is None):
        raise UsageError("give either a release or --key")

    def plan(repository: Repository, signers: Signers) -> Done:
        if release is not None:
            change = release_revoked(repository, release, reason, signers, _now())
        else:
            assert key is not None  # noqa: S101 - checked above
            found = find_key(repository.keys.listed, key)
            document = with_revoked_key(repository.channel, found, reason)
            change = redocumented(repository, document, signers, _now())
        return _done("revoke", change, release=release, key=key, reason=reason)

    _change(plan, **options)


@channel.command()
@_CHANGES
@click.argument("role", type=click.Choice(["root", "targets", "snapshot", "timestamp", "bundle"]))
@click.option("--new", type=FILE, multiple=True, help="A .pub file of `keygen`. Repeatable.")
@click.option("--drop", multiple=True, help="Id of a key that goes, or its beginning. Repeatable.")
@click.option("--threshold", type=click.IntRange(1, 20), help="How many must sign from now on.")
def rotate(
    role: str, new: tuple[Path, ...], drop: tuple[str, ...], threshold: int | None, **options: Any
) -> None:
    """Give ROLE other keys; without --new and --drop renew the root.

    A new root is signed by the old root keys and by the new ones. `bundle` adds keys that may sign
    bundles; `revoke --key` takes one back.
    """
    from host_tools.channel.operations import bundle_key_from_file
    from host_tools.channel.rotation import Rotation, rotated
    from host_tools.channel.signing import public_key

    if role == "bundle" and (drop or threshold or not new):
        raise UsageError("bundle keys are added with --new and taken back with `revoke --key`")

    def plan(repository: Repository, signers: Signers) -> Done:
        if role == "bundle":
            added = tuple(bundle_key_from_file(path) for path in new)
            wanted = Rotation(role="root", bundle_keys=added)
        else:
            keys = tuple(public_key(path) for path in new)
            wanted = Rotation(role=role, new=keys, drop=drop, threshold=threshold)
        change = rotated(repository, wanted, signers, _now())
        return _done("rotate", change, role=role, new=[path.name for path in new], drop=drop)

    _change(plan, **options)


@channel.command()
@_CHANGES
def refresh(**options: Any) -> None:
    """Renew the timestamp, and what else is half expired and has its keys in --keys."""
    from host_tools.channel.operations import refreshed

    _change(
        lambda repository, signers: _done("refresh", refreshed(repository, signers, _now())),
        **options,
    )


@channel.command()
@CHANNEL
@click.option(
    "--warn-days",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Exit 1 if a role expires within this.",
)
@AS_JSON
def status(channel: Path, warn_days: int, as_json: bool) -> int:
    """Show what CHANNEL offers to whom, and when its signatures expire."""
    from host_tools.channel.repository import read_repository
    from host_tools.channel.status import print_status, status_of

    found = status_of(read_repository(channel), _now(), warn_days=warn_days)
    print_json(found) if as_json else print_status(found)
    return int(bool(found.expiring))


def _change(
    plan: Callable[[Repository, Signers], Done],
    *,
    channel: Path,
    keys: tuple[Path, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    from host_tools.channel.write_change import make_change

    done = make_change(channel, keys, plan, now=_now(), user=user_name(), dry_run=dry_run)
    _report(done, as_json=as_json)


def _done(verb: str, change: Change, **facts: object) -> Done:
    from host_tools.channel.write_change import Done

    return Done(verb=verb, change=change, facts=facts)


def _report(done: Done, *, as_json: bool) -> None:
    if as_json:
        print_json(done.document())
    else:
        click.echo(done.summary())


def _shares(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part.strip().removesuffix("%")) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--waves {text!r}: write percents, such as 1,10,100") from error


def _now() -> datetime:
    """Return the time, which SOURCE_DATE_EPOCH replaces for builds that must repeat."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return datetime.now(tz=timezone.utc)
    try:
        return datetime.fromtimestamp(int(epoch), tz=timezone.utc)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"SOURCE_DATE_EPOCH={epoch!r} is no count of seconds since 1970; unset it"
        ) from error
