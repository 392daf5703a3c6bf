"""`edge-agent install`, `rollback` and `slots`: bundles that a device can always go back from."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.config import CONFIG_KEY, AgentConfig
from edge.config_options import config_options, given_only
from edge.config_sources import load_config, read_config_file
from edge.console import outliving_the_terminal, print_json, say, stop_on_sigterm
from edge.errors import EdgeError, SlotsBusyError, UsageError
from edge.gate.commands import gate_options, judge_from, tell_report

if TYPE_CHECKING:
    from edge.slots.installing import Installed, Plan, Wish
    from edge.slots.state import SlotBundle, SlotsState

_INSTALL_KEYS = ("slots", "trusted_keys", "allow_unsigned", "host", "port")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")


@click.command()
@click.argument("bundle", type=click.Path(file_okay=False, path_type=Path))
@config_options(*_INSTALL_KEYS)
@click.option("--stage-only", is_flag=True, help="Bring the bundle here, and do not try it yet.")
@click.option("--again", is_flag=True, help="Also if it was rolled back on this device before.")
@gate_options
@_dry_run
@_as_json
def install(
    *, bundle: Path, stage_only: bool, again: bool, dry_run: bool, as_json: bool, **options: Any
) -> int:
    """Install BUNDLE into the idle slot, try it, and keep it or go back; exit 1 if it went back.

    Safe to repeat and to interrupt: the device serves the old bundle or the new one, whole. With
    --dry-run, BUNDLE may hold its manifest and signature alone.
    """
    keys = {key: options.pop(key) for key in (*_INSTALL_KEYS, CONFIG_KEY)}
    config = _config(keys)
    from edge.slots.installing import fetch_from, plan
    from edge.slots.installing import install as install_files
    from edge.slots.store import Store

    root, wish = _root(config), _wish(bundle, config, again=again)
    if dry_run:
        return _tell_plan(plan(Store.seen(root), wish), as_json=as_json)
    stop_on_sigterm()
    store, report = Store.open(root), None
    with store.changing("edge-agent install"):
        installed = install_files(store, wish, fetch_from(bundle), say=say)
        if not installed.is_committed and not stage_only:
            from edge.gate.gate import Gate

            with outliving_the_terminal():
                report = Gate(store, judge_from(config, options)).try_staged()
                store.clean()
    result: str = "unchanged" if installed.is_committed else "staged"
    if report is not None:
        result = report.verdict
    if as_json:
        reason = None if report is None else report.reason or None
        print_json({"result": result, "reason": reason, **_facts_of(installed), "report": report})
        return int(report is not None and not report.passed)
    if report is not None:
        tell_report(report)
    click.echo(f"{result}: {words(installed.bundle)} in slot {installed.slot}")
    return int(report is not None and not report.passed)


@click.command()
@config_options("slots", "trusted_keys", "allow_unsigned")
@click.option("--reason", default="by hand", show_default=True, help="Why, for the record.")
@_dry_run
@_as_json
def rollback(*, reason: str, dry_run: bool, as_json: bool, **flags: object) -> int:
    """Go back: end an update that is under way, or else serve the previous bundle again.

    What is gone back from is not installed again, unless `install --again` asks for it. A previous
    bundle that is damaged, or that no trusted key signed any more, is not gone back to.
    """
    config = _config(flags)
    root = _root(config)
    if not root.is_dir():
        raise UsageError(f"there are no slots at {root}; give those of this device")
    from edge.slots.opening import open_slot
    from edge.slots.state import RollbackAsked, decide
    from edge.slots.store import Store

    store = Store.seen(root)
    before = store.state
    if before.previous is not None:
        open_slot(config, root, before.idle)
    if dry_run:
        after = decide(before, RollbackAsked(reason=reason))
    else:
        after = store.roll_back(reason)
        # Whoever holds the slots cleans up as soon as it meets the rollback.
        with contextlib.suppress(SlotsBusyError), store.changing("edge-agent rollback"):
            store.clean()
    assert after.last is not None  # noqa: S101 - a rollback is an outcome
    if as_json:
        print_json(
            {
                "result": "planned" if dry_run else "rolled-back",
                "from": after.last.bundle,
                "serves": after.served,
                "reason": after.last.reason,
            }
        )
        return 0
    verb = "would roll back" if dry_run else "rolled back"
    click.echo(f"{verb} {words(after.last.bundle)}\nthe device serves {words(after.served)}")
    return 0


@click.group()
def slots() -> None:
    """Look at the two slots; count a start; free disk space."""


@slots.command()
@config_options("slots")
@_as_json
def status(*, as_json: bool, **flags: object) -> None:
    """Show what the slots hold, what is served, and the last outcome."""
    root = _root(_config(flags))
    from edge.slots.store import Store

    store = Store.seen(root)
    state, space = store.state, store.space_for(())
    if as_json:
        print_json(
            {
                "serving": state.serving,
                "state": state,
                "free_bytes": space.free_bytes,
                "kept_free_bytes": space.kept_free_bytes,
            }
        )
        return
    for line in _lines_of(state):
        click.echo(line)
    click.echo(f"free on this disk: {space.free_bytes / 1e6:,.0f} MB")


@slots.command()
@config_options("slots")
@_dry_run
@_as_json
def begin(*, dry_run: bool, as_json: bool, **flags: object) -> None:
    """Count a start of the agent, and end a trial that had too many.

    For the unit, before the agent. Never fails for want of a disk that can be written: that must
    not keep the agent from starting.
    """
    root = _root(_config(flags))
    from edge.slots.state import StartCounted, decide
    from edge.slots.store import Store

    store = Store.seen(root)
    try:
        before = store.state
        after = decide(before, StartCounted())
        if not dry_run and before.coming is not None:
            after = store.count_start()
    except EdgeError as error:
        say(f"warning: this start is not counted: {error}")
        if as_json:
            print_json({"counted": False, "error": str(error)})
        return
    if after.changes != before.changes and after.last is not None:
        verb = "would roll back" if dry_run else "rolled back"
        say(f"{verb} {words(after.last.bundle)}: {after.last.reason}")
    starts = 0 if after.candidate is None else after.candidate.starts
    if as_json:
        counted = after != before and not dry_run
        print_json({"counted": counted, "starts": starts, "serving": after.serving})
    elif dry_run and after.changes == before.changes:
        click.echo(f"would count start {starts}" if starts else "no trial: nothing to count")


@slots.command()
@config_options("slots")
@_dry_run
@_as_json
def clean(*, dry_run: bool, as_json: bool, **flags: object) -> None:
    """Remove files that neither slot names."""
    root = _root(_config(flags))
    from edge.slots.store import Store

    store = Store.seen(root)
    if dry_run:
        freed = store.unnamed_bytes()
    else:
        with store.changing("edge-agent slots clean"):
            freed = store.clean()
    if as_json:
        print_json({"freed_bytes": freed, "dry_run": dry_run})
        return
    click.echo(f"{'would free' if dry_run else 'freed'} {freed:,} bytes")


def words(bundle: SlotBundle | None) -> str:
    """Return a bundle in words, for people."""
    if bundle is None:
        return "nothing"
    release = "" if bundle.release is None else f", release {bundle.release}"
    return f"{bundle.name} {bundle.version} ({bundle.id[:12]}{release})"


def _config(flags: dict[str, object]) -> AgentConfig:
    return load_config(given_only(flags), os.environ, read_config_file)


def _root(config: AgentConfig) -> Path:
    if config.slots is None:
        raise UsageError("no folder of slots is configured; give --slots DIR, or set the key slots")
    return config.slots


def _wish(bundle: Path, config: AgentConfig, *, again: bool) -> Wish:
    from edge.slots.installing import Wish, content_of
    from edge.target import detect_target
    from edge.trust import trusted_keys_in

    manifest, signature = content_of(bundle)
    return Wish(
        manifest=manifest,
        signature=signature,
        keys=trusted_keys_in(config.trusted_keys),
        target=detect_target(),
        again=again,
        allow_unsigned=config.allow_unsigned,
    )


def _tell_plan(plan: Plan, *, as_json: bool) -> int:
    if as_json:
        print_json(plan)
        return int(plan.problem is not None)
    if plan.problem is not None:
        click.echo(f"would refuse {words(plan.bundle)}: {plan.problem}")
        return 1
    verb = "would leave" if plan.is_unchanged else "would install"
    size = sum(file.size for file in plan.missing)
    click.echo(
        f"{verb} {words(plan.bundle)}\n"
        f"{len(plan.missing)} of {plan.needed_files} files are missing, {size:,} bytes; "
        f"{plan.free_bytes:,} are free"
    )
    return 0


def _facts_of(installed: Installed) -> dict[str, object]:
    return {
        "bundle": installed.bundle,
        "slot": installed.slot,
        "fetched_files": installed.fetched_files,
        "fetched_bytes": installed.fetched_bytes,
    }


def _lines_of(state: SlotsState) -> list[str]:
    lines = []
    for slot, bundle in (("a", state.a), ("b", state.b)):
        candidate = state.candidate
        role = "previous" if bundle is not None else ""
        if state.committed == slot:
            role = "committed"
        elif candidate is not None and candidate.slot == slot:
            role = candidate.phase
            role += f", {candidate.starts} starts" if candidate.phase == "trial" else ""
        served = "  <- served" if state.serving == slot else ""
        lines.append(f"slot {slot}: {words(bundle)}{f' [{role}]' if role else ''}{served}")
    if state.serving is None:
        lines.append("nothing is served; install a bundle")
    if state.last is not None:
        reason = "" if state.last.reason is None else f": {state.last.reason}"
        lines.append(f"last: {state.last.result} {words(state.last.bundle)}{reason}")
    lines += [f"refused: {refused.id[:12]}: {refused.reason}" for refused in state.refused]
    return lines


SLOTS_COMMANDS = (install, rollback, slots)
