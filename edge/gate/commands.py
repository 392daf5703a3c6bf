"""`edge-agent gate`, and the options of the gate for the commands that end in a trial."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.config import CONFIG_KEY, AgentConfig
from edge.config_options import config_options, given_only
from edge.config_sources import load_config, read_config_file
from edge.console import outliving_the_terminal, print_json, say, stop_on_sigterm
from edge.errors import UsageError
from edge.gate.limits import Limits

if TYPE_CHECKING:
    from edge.gate.gate import Judge
    from edge.gate.report import GateReport
    from edge.slots.state import SlotBundle

_LOG_LINES = 50
_OPTIONS: tuple[tuple[str, str], ...] = (
    ("ready_s", "Seconds until the trial must serve; building engines comes on top."),
    ("probation_s", "Seconds for which the trial is watched."),
    ("p95_factor", "Largest p95 latency, as a factor of the bundle before."),
    ("memory_factor", "Most memory, as a factor of the bundle before."),
    ("recorded_factor", "Most of both, as a factor of what the manifest recorded."),
    ("error_share", "Share of requests that may fail."),
)


def gate_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options from which `judge_from` makes a Judge."""
    defaults = {key.name: key.default for key in fields(Limits)}
    for name, text in reversed(_OPTIONS):
        command = click.option(
            "--" + name.replace("_", "-"),
            default=defaults[name],
            show_default=True,
            type=click.FloatRange(0),
            help=text,
        )(command)
    return click.option(
        "--replay",
        "capture",
        type=click.Path(dir_okay=False, exists=True, path_type=Path),
        help="Requests that `capture` recorded, to be answered by the trial as by the bundle "
        "before.",
    )(command)


def judge_from(config: AgentConfig, options: dict[str, Any]) -> Judge:
    """Return the judge that the options of `gate_options` describe; takes them out of options."""
    from edge.gate.gate import Judge

    capture = options.pop("capture")
    limits = Limits(**{name: options.pop(name) for name, _ in _OPTIONS})
    return Judge(url=url_of(config), limits=limits, capture=capture, say=say, log=last_log_lines)


def url_of(config: AgentConfig) -> str:
    """Return where the agent of this device is reached from the device itself."""
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - replaced, not bound
    host = anywhere.get(config.host, config.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.port}"


def last_log_lines() -> tuple[str, ...]:
    """Return what systemd's journal has of the agent; nothing where there is no journal."""
    journalctl = shutil.which("journalctl")
    if journalctl is None or not Path("/run/systemd/system").is_dir():
        return ()
    words = [journalctl, "-u", "edge-agent", "-n", str(_LOG_LINES), "--no-pager", "-o", "cat"]
    try:
        ended = subprocess.run(words, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(ended.stdout.decode("utf-8", "replace").splitlines())


def tell_report(report: GateReport) -> None:
    """Print a report for people."""
    for check in report.checks:
        mark = "ok  " if check.passed else "FAIL"
        click.echo(f"{mark} {check.name}: {check.measured} (limit: {check.limit})")
        if check.reason:
            click.echo(f"     {check.reason}")
    if report.reason:
        click.echo(f"reason: {report.reason}")


@click.command()
@config_options("slots", "host", "port")
@gate_options
@click.option("--wait", is_flag=True, help="Until whoever installs or judges is done, or dead.")
@click.option("--dry-run", is_flag=True, help="Say what is on trial, and do not judge it.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def gate(*, wait: bool, dry_run: bool, as_json: bool, **options: Any) -> int:
    """Judge the bundle that is on trial: keep it, or go back; exit 1 if it went back.

    `install` and `update` do this themselves. What was interrupted, by a power cut too, is
    finished here. Without a trial it does nothing.
    """
    keys = {key: options.pop(key) for key in ("slots", "host", "port", CONFIG_KEY)}
    config = load_config(given_only(keys), os.environ, read_config_file)
    if config.slots is None:
        raise UsageError("no folder of slots is configured; give --slots DIR, or set the key slots")
    if not config.slots.is_dir():
        raise UsageError(f"there are no slots at {config.slots}; install a bundle first")
    from edge.gate.gate import Gate
    from edge.slots.store import Store

    judge, report = judge_from(config, options), None
    if dry_run:
        state = Store.seen(config.slots).state
        trial = state.coming if state.served == state.coming else None
        if trial is not None:
            _tell_trial(trial, as_json=as_json)
            return 0
    else:
        stop_on_sigterm()
        store = Store.open(config.slots)
        with store.changing("edge-agent gate", wait=wait), outliving_the_terminal():
            report = Gate(store, judge).finish()
            store.clean()
    if report is None:
        if as_json:
            print_json({"verdict": "nothing-on-trial"})
        else:
            click.echo("nothing is on trial")
        return 0
    if as_json:
        print_json(report)
    else:
        tell_report(report)
        click.echo(f"{report.verdict}: {report.bundle[:12]}")
    return int(not report.passed)


def _tell_trial(trial: SlotBundle, *, as_json: bool) -> None:
    if as_json:
        print_json({"verdict": "would-judge", "bundle": trial})
    else:
        click.echo(f"would judge {trial.name} {trial.version} ({trial.id[:12]})")
