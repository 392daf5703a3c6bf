"""Set up the agent and a bundle on the device where this runs, from a payload folder."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO, Callable, Iterator, List, Optional

from host_tools.flash.device.facts import PAYLOAD, described, facts
from host_tools.flash.device.files import (
    DONE,
    ENVIRONMENT,
    USAGE,
    Json,
    StopError,
    receive,
)
from host_tools.flash.device.machine import POLL_S, READY_S
from host_tools.flash.device.pending import noted_in, outdated, settle, tries_again
from host_tools.flash.device.status import status
from host_tools.flash.device.steps import BEFORE, DOCUMENT_NAME, MAX_DOCUMENT_BYTES, Setup

WAIT_S = 300.0


def main(arguments: Optional[List[str]] = None, stdin: Optional[BinaryIO] = None) -> int:
    """Run one verb; print what became of it and return the exit code."""
    options = _parser().parse_args(arguments)
    # What the agent reads as another user is made here, whatever the login's umask.
    os.umask(0o022)
    # A setup whose terminal is closed goes on to its end.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stream = sys.stdin.buffer if stdin is None else stdin
    try:
        told, status = _VERBS[options.verb](options, stream), DONE
    except StopError as stop:
        told = {"state": stop.state, "reason": str(stop), "changed": False, **stop.more}
        status = stop.exit_code
    except OSError as error:
        told = {"state": "failed", "reason": str(error), "changed": False}
        status = ENVIRONMENT
    with _unheard():
        _tell(options, told)
    return status


def _tell(options: argparse.Namespace, told: Json) -> None:
    if options.json or options.verb == "status":
        sys.stdout.write(json.dumps(told, indent=1, sort_keys=True) + "\n")
    elif "reason" in told:
        _say("{}: {}".format(told["state"], told["reason"]))
    elif options.verb == "facts":
        sys.stdout.write(described(told) + "\n")
    else:
        sys.stdout.write(told["state"] + ("" if told["changed"] else ", nothing changed") + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Go on without a listener: a connection that was cut must not stop a step half way."""
    try:
        yield
    except BrokenPipeError:
        # What is left in the buffers would be an error again at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="device_setup",
        description=__doc__,
        epilog="Exit codes: 0 done, 1 refused, failed or rolled back, 2 usage, 3 the system "
        "said no, 4 files are missing: send them and run it again.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    verbs.required = True
    for name, text in (
        ("facts", "tell what this device is"),
        ("status", "tell what became of a bundle here"),
        ("receive", "write files from standard input into the payload"),
        ("apply", "take every step that the files in the payload allow"),
        ("place", "write files only, into an image; `apply` follows at its first boot"),
    ):
        verb = verbs.add_parser(name, help=text)
        if name == "status":
            verb.add_argument("bundle", metavar="ID")
        elif name != "facts":
            verb.add_argument("payload", metavar="PAYLOAD")
            verb.add_argument(
                "--wait-s", type=float, default=WAIT_S, help="how long for another setup [300]"
            )
        verb.add_argument("--root", default="/", metavar="DIR", help="root of the system [/]")
        verb.add_argument("--json", action="store_true", help="print the outcome as JSON")
        if name == "apply":
            verb.add_argument("--dry-run", action="store_true", help="tell what would change")
            verb.add_argument("--boot", action="store_true", help="go on with what was cut")
            verb.add_argument("--again", action="store_true", help="even if it was rolled back")
            verb.add_argument("--ignore-doctor", action="store_true", help="even if it is ill")
            verb.add_argument(
                "--ready-s", type=float, default=READY_S, help="how long an agent may start [300]"
            )
    return parser


def _facts(options: argparse.Namespace, stream: BinaryIO) -> Json:
    return facts(Path(options.root))


def _status(options: argparse.Namespace, stream: BinaryIO) -> Json:
    return status(Path(options.root), options.bundle)


def _receive(options: argparse.Namespace, stream: BinaryIO) -> Json:
    with _alone(Path(options.payload), options.wait_s):
        count = receive(Path(options.payload), stream)
    return {"state": "received", "changed": count > 0, "files": count}


def _apply(options: argparse.Namespace, stream: BinaryIO) -> Json:
    root = Path(options.root)
    if options.dry_run and options.payload == "-":
        setup = Setup(root / PAYLOAD, stream.read(MAX_DOCUMENT_BYTES), root, say=_say, dry_run=True)
        return _outcome(setup, setup.apply)
    payload = Path(options.payload)
    with contextlib.nullcontext() if options.dry_run else _alone(payload, options.wait_s):
        setup = Setup(payload, _document(payload), root, say=_say, dry_run=options.dry_run)
        if options.boot:
            _go_on(setup, options)
        return _outcome(
            setup,
            lambda: setup.apply(
                again=options.again,
                ignore_doctor=options.ignore_doctor,
                ready_s=options.ready_s,
            ),
            is_boot=options.boot,
        )


def _go_on(setup: Setup, options: argparse.Namespace) -> None:
    """Take up the flags of a setup that was cut; raises StopError if it is out of date."""
    noted, slots = noted_in(setup.payload), setup.machine.slots()
    reason = outdated(noted, setup.document, slots, setup.wanted["bundle"]["id"])
    if reason is not None:
        settle(setup.payload)
        raise StopError("refused", reason)
    options.again = tries_again(noted, slots)
    options.ignore_doctor = noted["flags"].get("ignore_doctor", False)


def _place(options: argparse.Namespace, stream: BinaryIO) -> Json:
    payload, root = Path(options.payload), Path(options.root)
    with _alone(payload, options.wait_s):
        setup = Setup(payload, _document(payload), root, say=_say)
        return _outcome(setup, setup.place, state="placed")


def _outcome(
    setup: Setup, work: Callable[[], None], state: str = "done", *, is_boot: bool = False
) -> Json:
    """Return what became of a setup; raises StopError with the steps that were taken.

    A setup that ended is settled, but for one that a boot may finish: what failed at a boot, as
    nobody was told, and what a sender brings files for.
    """
    try:
        work()
    except (StopError, OSError) as error:
        is_final = not is_boot
        if isinstance(error, StopError):
            is_final = error.state == "rolled-back" or (not is_boot and error.state != "needs")
        # A switch that was cut half way is for a boot to finish, or to take back.
        if is_final and not setup.dry_run and not (setup.payload / BEFORE).exists():
            settle(setup.payload)
        if not isinstance(error, StopError):
            raise
        stop = error
        stop.more.update(steps=setup.steps, changed=setup.changed)
        raise
    if state == "done" and not setup.dry_run:
        settle(setup.payload)
    return {"state": state, "changed": setup.changed, "steps": setup.steps, "gate": setup.gate}


@contextlib.contextmanager
def _alone(payload: Path, wait_s: float) -> Iterator[None]:
    """Keep a second setup of this device out; wait for one whose sender lost its connection."""
    payload.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + wait_s
    is_waiting = False
    with (payload.parent / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    reason = "another setup of this device is under way"
                    raise StopError("refused", reason) from error
            if not is_waiting:
                _say("another setup of this device is under way; waiting for it")
                is_waiting = True
            time.sleep(POLL_S)
        yield


def _document(payload: Path) -> bytes:
    path = payload / DOCUMENT_NAME
    try:
        with path.open("rb") as file:
            return file.read(MAX_DOCUMENT_BYTES)
    except FileNotFoundError as error:
        raise StopError("refused", "{} is missing; send it first".format(path), USAGE) from error


def _say(line: str) -> None:
    with _unheard():
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


_VERBS = {"facts": _facts, "status": _status, "receive": _receive, "apply": _apply, "place": _place}
