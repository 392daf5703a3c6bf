"""The command line of the device: `edge-agent serve | verify | doctor | bench | ...`.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from edge import __version__
from edge.bench.bench_command import bench
from edge.bench.profile_command import profile
from edge.capture.commands import capture, replay
from edge.config import AgentConfig
from edge.config_options import config_options, given_only
from edge.config_sources import describe_config, load_config, read_config_file
from edge.console import CommandGroup, configure_logging, print_json, run_command_line, say
from edge.drift.commands import drift
from edge.errors import EdgeError, UsageError
from edge.gate.commands import gate
from edge.slots.commands import SLOTS_COMMANDS
from edge.update.commands import update

if TYPE_CHECKING:
    from edge.bundle import Bundle

_VERIFY_KEYS = ("bundle", "slots", "trusted_keys", "allow_unsigned")
_DOCTOR_KEYS = ("trusted_keys", "cache", "host", "port")


@click.group(
    cls=CommandGroup,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="edge-agent")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(*, debug: bool) -> None:
    """Serve a verified INT8 bundle on this device."""


@cli.command()
@config_options(*(key.name for key in fields(AgentConfig)))
@click.option("--print-config", is_flag=True, help="Print the configuration as JSON and exit.")
def serve(*, print_config: bool, **flags: object) -> int:
    """Verify the bundle, test it, and serve it until told to stop.

    Every flag is also a key of the configuration file and an environment variable: --port is
    "port" and EDGE_PORT. Flags win over variables, variables over the file.
    """
    given = given_only(flags)
    if print_config:
        described = describe_config(given, os.environ, read_config_file)
        print_json(described)
        return 0
    config = load_config(given, os.environ, read_config_file)
    configure_logging(config.log_level, os.environ)
    from edge.serve import serve as serve_bundle

    return serve_bundle(config)


@cli.command()
@config_options(*_VERIFY_KEYS)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def verify(*, as_json: bool, **flags: object) -> None:
    """Check signature and digests of the bundle, as `serve` does before it opens a model."""
    config = load_config(given_only(flags), os.environ, read_config_file)
    from edge.slots.opening import open_configured

    try:
        bundle = open_configured(config)
    except EdgeError as error:
        if as_json:
            verdict = {"ok": False, "code": error.code, "error": str(error)}
            print_json(verdict)
        raise
    if as_json:
        print_json({"ok": True, **_facts_of(bundle)})
        return
    facts, signer = _facts_of(bundle), bundle.signed_by
    click.echo(
        f"ok: {facts['name']} {facts['version']}, {facts['files']} files intact, "
        + (
            "NO TRUSTED SIGNATURE, accepted on request"
            if signer is None
            else f"signed by {signer.keyid[:12]} ({signer.name})"
        )
    )


@cli.command()
@config_options(*_DOCTOR_KEYS)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(*, as_json: bool, **flags: object) -> int:
    """Look for what keeps this machine from serving on its GPU; exit 1 if something does."""
    config = load_config(given_only(flags), os.environ, read_config_file)
    from edge.doctor import Machine, examine
    from edge.target import detect_target

    target = detect_target()
    findings = examine(target, config, Machine())
    problems = [finding for finding in findings if finding.state == "problem"]
    if as_json:
        print_json({"ok": not problems, "target": target, "findings": findings})
        return int(bool(problems))
    for finding in findings:
        mark = {"ok": "ok  ", "warning": "WARN", "problem": "FAIL"}[finding.state]
        click.echo(_wrapped(f"{mark} {finding.name}: {finding.detail}"))
        if finding.help:
            click.echo(_wrapped(f"     -> {finding.help}"))
    return int(bool(problems))


@cli.command("build-engine")
def build_engine() -> None:
    """Build one engine for `edge-kit build --on`, which speaks to this over SSH.

    Takes the job on standard input and answers on standard output, both in frames of msgpack.
    """
    if sys.stdin.isatty():
        raise UsageError("build-engine takes a job from `edge-kit build --on`, not from a keyboard")
    from edge.engine_job import serve_job

    serve_job(sys.stdin.buffer, sys.stdout.buffer)


@cli.command("install-unit")
@click.option("--yes", is_flag=True, help="Install the unit instead of printing it.")
@click.option(
    "--root",
    default="/",
    metavar="DIR",
    help="Root of the system to install into. [default: /]",
)
@click.option(
    "--executable",
    metavar="PATH",
    help="The edge-agent to start, as seen from that root. [default: this one]",
)
@click.option("--json", "as_json", is_flag=True, help="Print groups, warnings and files as JSON.")
def install_unit(*, yes: bool, root: str, executable: str | None, as_json: bool) -> None:
    """Print or install the systemd unit, with the groups that own this machine's GPU.

    The units of the gate and of the updater are installed beside it; whoever wants them enables
    them.
    """
    from edge.unit import (
        FURTHER_UNITS,
        GATE_TIMER,
        GATE_UNIT,
        UNIT_FOLDER,
        UNIT_NAME,
        further_unit,
        install,
        install_text,
        unit_for_machine,
    )

    if executable is None:
        executable, needs = _own_executable(), _own_files()
    else:
        needs = ()
    unit = unit_for_machine(PurePosixPath(executable), needs=needs, root=Path(root))
    for warning in unit.warnings:
        say(f"warning: {warning}")
    folder = Path(root) / UNIT_FOLDER
    states: dict[str, str] = {}  # of a file: what was done
    if yes:
        states[str(folder / UNIT_NAME)] = "installed" if install(unit, Path(root)) else "unchanged"
        for name in FURTHER_UNITS:
            is_new = install_text(further_unit(name, PurePosixPath(executable)), name, Path(root))
            states[str(folder / name)] = "installed" if is_new else "unchanged"
    if as_json:
        facts = {"groups": unit.groups, "warnings": unit.warnings, "files": states}
        print_json(facts if yes else {**facts, "unit": unit.text})
        return
    if not yes:
        click.echo(unit.text, nl=False)
        return
    for place, state in states.items():
        click.echo(f"{state}: {place}")
    say(
        f"next: systemctl daemon-reload && systemctl enable --now {UNIT_NAME} {GATE_UNIT} "
        f"{GATE_TIMER}\n"
        f"then: systemctl status {UNIT_NAME}\n"
        "updates: write /etc/edge/update.json, then systemctl enable --now edge-update.timer"
    )


for _command in (bench, profile, capture, replay, drift, *SLOTS_COMMANDS, gate, update):
    cli.add_command(_command)


def main() -> None:
    """Run the command line of the agent."""
    run_command_line(cli, "edge-agent")


def _wrapped(line: str) -> str:
    columns = min(shutil.get_terminal_size().columns, 100)
    return click.wrap_text(line, width=columns, subsequent_indent=" " * 8)


def _facts_of(bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest
    here = [artifact for artifact in manifest.artifacts if artifact.path not in bundle.absent]
    return {
        "name": manifest.name,
        "version": manifest.version,
        "signed_by": bundle.signed_by.keyid if bundle.signed_by else None,
        "models": [model.name for model in manifest.models],
        "files": len(here),
        "bytes": sum(artifact.size for artifact in here),
    }


def _own_files() -> tuple[PurePosixPath, ...]:
    interpreter, package = Path(sys.executable).resolve(), Path(__file__).resolve().parent
    return (PurePosixPath(interpreter), PurePosixPath(package))


def _own_executable() -> str:
    beside = Path(sys.executable).parent / "edge-agent"
    found = str(beside) if beside.is_file() else shutil.which("edge-agent")
    if found is None:
        raise UsageError("no edge-agent executable was found; give --executable /path/edge-agent")
    return str(Path(found).absolute())
