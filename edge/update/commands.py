"""`edge-agent update`: one pass over the channel that this device follows."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.config_options import config_options, given_only
from edge.config_sources import load_config, read_config_file
from edge.console import outliving_the_terminal, print_json, say
from edge.errors import BackendUnavailableError, ConfigError, EdgeError

if TYPE_CHECKING:
    from edge.config import AgentConfig
    from edge.slots.store import Store
    from edge.update.one_pass import Outcome, Wishes

DEFAULT_SLOTS = Path("/var/lib/edge")


@click.command()
@config_options("slots", "trusted_keys", "host", "port")
@click.option(
    "--settings",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Which channel to follow. [default: /etc/edge/update.json]",
)
@click.option("--channel", metavar="URL", help="Address or folder of the channel.")
@click.option(
    "--channel-root", metavar="FILE", help="The root.json that is trusted from the start."
)
@click.option("--follow", metavar="NAME", help="What to follow in the channel. [default: stable]")
@click.option(
    "--device", metavar="ID", help="Sorts this device into waves; default: by machine-id."
)
@click.option("--bytes-per-s", type=click.IntRange(1024), help="Download no faster than this.")
@click.option("--again", is_flag=True, help="Take a release that this device rolled back before.")
@click.option("--stage-only", is_flag=True, help="Fetch and verify; leave the trial for later.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print how it ended as JSON.")
def update(
    *,
    settings: Path | None,
    channel: str | None,
    channel_root: str | None,
    follow: str | None,
    device: str | None,
    bytes_per_s: int | None,
    again: bool,
    stage_only: bool,
    dry_run: bool,
    as_json: bool,
    **flags: object,
) -> int:
    """Look once whether the channel has something newer for this device, and install it.

    Exit 0: up to date, or a new bundle was committed. 1: what the channel says or offers was
    refused, or the trial was rolled back. 2: the settings are wrong. 3: the channel does not
    answer, or its signatures have expired. In every case the bundle in service stays, unless a
    better one was committed.
    """
    from edge.update.settings import DEFAULT_SETTINGS_FILE, followed

    config = load_config(given_only(flags), os.environ, read_config_file)
    chosen = {
        "channel": channel,
        "channel_root": channel_root,
        "follow": follow,
        "device": device,
        "bytes_per_s": bytes_per_s,
    }
    if settings is not None and not settings.is_file():
        raise ConfigError(f"--settings: there is no file {settings}")
    place = followed(chosen, settings or DEFAULT_SETTINGS_FILE, read_config_file)
    if not place.channel_root.is_file():
        raise ConfigError(
            f"no trusted root at {place.channel_root}: put the channel's metadata/1.root.json there"
        )
    try:
        from edge.update.one_pass import Wishes
    except ImportError as error:
        raise BackendUnavailableError(
            f"updates need python-tuf ({error}); pip install 'edge-kit[update]'"
        ) from error
    wishes = Wishes(
        slots=config.slots or DEFAULT_SLOTS,
        trusted_keys=config.trusted_keys,
        followed=place,
        dry_run=dry_run,
        again=again,
        stage_only=stage_only,
    )
    try:
        outcome = _pass(wishes, config)
    except EdgeError as error:
        if as_json:
            print_json({"verdict": "failed", "code": error.code, "reason": str(error)})
        raise
    print_json(outcome) if as_json else click.echo(_summary(outcome))
    return 0 if outcome.is_good else 1


def _pass(wishes: Wishes, config: AgentConfig) -> Outcome:
    from edge.target import detect_target
    from edge.update.one_pass import Surroundings, run_pass
    from edge.update.place import origin_from_url
    from edge.update.report import report_failure, report_outcome

    now = datetime.now(tz=timezone.utc)
    origin = origin_from_url(wishes.followed.channel, bytes_per_s=wishes.followed.bytes_per_s)
    around = Surroundings(
        origin=origin,
        target=detect_target(),
        now=now,
        gate=lambda store: _judge(store, config),
        say=say,
    )
    try:
        outcome = run_pass(wishes, around)
    except EdgeError as error:
        if not wishes.dry_run and (wishes.slots / "channel").is_dir():
            report_failure(wishes.slots, now, error)
        raise
    finally:
        origin.close()
    if not wishes.dry_run:
        report_outcome(wishes.slots, now, outcome)
    return outcome


def _judge(store: Store, config: AgentConfig) -> bool:
    from edge.gate.commands import last_log_lines, url_of
    from edge.gate.gate import Gate, Judge

    judge = Judge(url=url_of(config), say=say, log=last_log_lines)
    with outliving_the_terminal():
        return Gate(store, judge).try_staged().passed


def _summary(outcome: Outcome) -> str:
    release = outcome.release
    name = "" if release is None else f" {release.name} {release.version}"
    lines = [f"{outcome.verdict}:{name}: {outcome.reason}"]
    if outcome.override is not None:
        lines.append(f"  {outcome.override}")
    if outcome.needed:
        lines.append(f"  {len(outcome.needed)} files, {outcome.needed_bytes / 1e6:.3f} MB")
    for what, keys in (("now trusted", outcome.keys_added), ("revoked", outcome.keys_removed)):
        lines += [f"  key {what}: {key}" for key in keys]
    if outcome.warning is not None:
        lines.append(f"  warning: {outcome.warning}")
    lines.append(f"  the channel's word is good until {outcome.fresh_until}")
    return "\n".join(lines)
