"""`edge-agent capture` and `replay`: real requests as a file, and that file sent again."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from edge.config import DEFAULT_URL
from edge.console import print_json, say
from edge.errors import CaptureError, NoAgentError, StorageError
from edge.files import storage_errors

if TYPE_CHECKING:
    from edge.capture.capture_file import Capture
    from edge.http_client import AgentClient, Received

POLL_S = 0.5
TIMEOUT_S = 60.0


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--url", default=DEFAULT_URL, show_default=True, help="The agent to record.")
@click.option(
    "--seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="How long to record.",
)
@click.option(
    "--max-bytes",
    default=64 << 20,
    show_default=True,
    type=click.IntRange(1, 1 << 30),
    help="Bytes of requests and answers after which the recording ends.",
)
@click.option(
    "--share",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the requests to record, chosen at random; replay 0.1 at --speed 10.",
)
@click.option(
    "--redact",
    multiple=True,
    metavar="INPUT",
    help="Input whose contents are left out, with the answers that follow from it; repeatable.",
)
def capture(
    *,
    file: Path,
    url: str,
    seconds: float,
    max_bytes: int,
    share: float,
    redact: tuple[str, ...],
) -> None:
    """Record inference requests that a running agent gets, with its answers, into FILE.

    The agent must have been started with allow_capture. Of the headers only those are kept that
    say how to read a body; FILE is readable by its owner only. Interrupt to end early.
    """
    import msgspec

    from edge.capture.capture_file import CAPTURE_PATH
    from edge.http_client import AgentClient

    wish = {"seconds": seconds, "max_bytes": max_bytes, "share": share, "redact": redact}
    with closing(AgentClient(url, timeout_s=TIMEOUT_S)) as client, _new_file(file) as writer:
        writer.write(_frames(client.send("POST", CAPTURE_PATH, body=msgspec.json.encode(wish))))
        say(f"recording for {seconds:g} s; interrupt to end early")
        try:
            with _on_interrupt() as stop:
                _drain(client, writer, stop)
        except BaseException:
            with contextlib.suppress(NoAgentError):
                client.send("DELETE", CAPTURE_PATH)
            raise
    click.echo(_summary(file))


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--url", default=DEFAULT_URL, show_default=True, help="The agent to send to.")
@click.option(
    "--against",
    metavar="URL",
    help="A second agent, sent to after the first; compare these two instead of the recording.",
)
@click.option(
    "--speed",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1e6),
    help="Pace against the recording; 0 sends as fast as there are connections free.",
)
@click.option(
    "--tolerance",
    default=1e-3,
    show_default=True,
    type=click.FloatRange(0),
    help="Largest relative error of an output, ||now - before|| / ||before||.",
)
@click.option(
    "--connections",
    default=32,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Requests under way at a time, at most.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def replay(
    *,
    file: Path,
    url: str,
    against: str | None,
    speed: float,
    tolerance: float,
    connections: int,
    as_json: bool,
) -> int:
    """Send the requests in FILE again, and compare answers and latency; exit 1 if they differ.

    Recorded latency is the agent's own, from the whole request to the answer. Now it is measured
    here, from when a request was due.
    """
    from edge.capture.replay import replay as send_again
    from edge.capture.replay_report import lines_from_report, report_from_replay

    recorded = _read(file)
    if recorded.problem is not None:
        say(f"warning: {file}: {recorded.problem}; the rest is used")
    if not recorded.exchanges:
        raise CaptureError(f"{file} holds no requests; record while there is traffic")
    sent = [
        send_again(
            recorded.exchanges,
            place,
            speed=speed,
            connections=connections,
            timeout_s=TIMEOUT_S,
        )
        for place in (url, against)
        if place is not None
    ]
    report = report_from_replay(
        recorded.exchanges,
        sent[0],
        tolerance=tolerance,
        against=sent[1] if against is not None else None,
    )
    if as_json:
        print_json(report)
    else:
        for line in lines_from_report(report, tolerance=tolerance):
            click.echo(line)
    return int(not report.is_same)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a new file for its owner only; one to which nothing was written is removed again."""
    with storage_errors("write", path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise StorageError(f"{path} exists already; give another name, or remove it") from error
        with os.fdopen(descriptor, "wb") as writer:
            try:
                yield writer
            finally:
                if writer.tell() == 0:
                    path.unlink()


@contextlib.contextmanager
def _on_interrupt() -> Iterator[threading.Event]:
    """Yield an event that is set by SIGINT, so that no answer under way is lost."""
    stop = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _drain(client: AgentClient, writer: IO[bytes], stop: threading.Event) -> None:
    from edge.capture.capture_file import CAPTURE_PATH, STATE_HEADER

    is_stopped = False
    while True:
        received = client.send("GET", CAPTURE_PATH)
        writer.write(_frames(received))
        if received.headers[STATE_HEADER.lower()] != "recording":
            return
        if not received.body and not is_stopped:
            stop.wait(POLL_S)
        if stop.is_set() and not is_stopped:
            is_stopped = True
            client.send("DELETE", CAPTURE_PATH)


def _frames(received: Received) -> bytes:
    """Return the frames of an answer; raises CaptureError with what the agent says instead."""
    import msgspec

    from edge.capture.capture_file import STATE_HEADER

    if received.status == 200 and STATE_HEADER.lower() in received.headers:
        return received.body
    try:
        reason = msgspec.json.decode(received.body, type=dict[str, str])["error"]
    except (msgspec.MsgspecError, KeyError):
        reason = "it is no agent that can record"
    raise CaptureError(f"the agent answered {received.status}: {reason}")


def _read(file: Path) -> Capture:
    from edge.capture.capture_file import read_capture

    with storage_errors("read", file), file.open("rb") as reader:
        return read_capture(reader)


def _summary(file: Path) -> str:
    recorded = _read(file)
    end = recorded.end
    size = file.stat().st_size
    text = f"{file}: {len(recorded.exchanges)} requests, {size} bytes"
    if end is None:
        return f"{text}; {recorded.problem}"
    return (
        f"{text}; ended by {end.reason}; {end.dropped} dropped for want of memory, "
        f"{end.unredactable} not redactable, {end.streamed} streamed and so not recorded"
    )
