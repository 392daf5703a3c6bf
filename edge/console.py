"""How a command line of the kit behaves: what it prints and where, exit codes, log records."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import click

from edge.errors import EdgeError

INTERRUPTED_EXIT_CODE = 130
# sd-daemon(3): journald takes the priority of a line from this prefix.
_JOURNAL_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class CommandGroup(click.Group):
    """A group with a `--debug` option, which shows the traceback of an EdgeError."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except EdgeError:
            if context.params["debug"]:
                traceback.print_exc()
            raise


def run_command_line(command: click.Command, name: str) -> None:
    """Run the command and exit: with its own status, or one `error: ...` line and its code."""
    try:
        status = command.main(prog_name=name, standalone_mode=False)
    except EdgeError as error:
        status = _fail(str(error), error.exit_code)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else name
        status = _fail(f"{error.format_message()} See `{where} --help`.", error.exit_code)
    except click.ClickException as error:
        status = _fail(error.format_message(), error.exit_code)
    except click.Abort:
        status = _fail("interrupted", INTERRUPTED_EXIT_CODE)
    sys.exit(status)


def configure_logging(level: str, environ: Mapping[str, str]) -> None:
    """Send log records of level and above to stderr, as journald likes them when it listens."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter(for_journal="JOURNAL_STREAM" in environ))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def stop_on_sigterm() -> None:
    """Make SIGTERM unwind the stack, so that an agent that was started is stopped as well."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def print_json(value: object) -> None:
    """Print a value on standard output, for programs."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=1))


@contextlib.contextmanager
def outliving_the_terminal() -> Iterator[None]:
    """Go on when the terminal or the SSH session goes away: what is under way must be ended."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL if before is None else before)


def say(line: str) -> None:
    """Print a line on standard error, for people; that nobody reads it any more is no error."""
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


def one_line(text: str) -> str:
    """Return text without its line breaks."""
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())


class _LineFormatter(logging.Formatter):
    """One line per record: journald adds the time itself and wants the priority first."""

    def __init__(self, *, for_journal: bool) -> None:
        text = "%(name)s: %(message)s" if for_journal else "%(asctime)s %(levelname)s %(name)s: "
        super().__init__(
            text if for_journal else text + "%(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ"
        )
        self.converter = time.gmtime
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        line = one_line(super().format(record))
        if not self._for_journal:
            return line
        return f"<{_JOURNAL_PRIORITY.get(record.levelname, 6)}>{line}"


def _fail(message: str, exit_code: int) -> int:
    click.echo("error: " + one_line(message), err=True)
    return exit_code
