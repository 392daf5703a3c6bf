"""The process of an agent: it waits for a first bundle, serves, and makes way for the next one."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from edge.agent import EXTEND_EVERY_S, EXTENSION_S, LOOK_S, Agent
from edge.config import AgentConfig
from edge.errors import EdgeError
from edge.notify import Notifier
from edge.slots.watching import SlotsWatch

# To the service manager: start me again, this is no failure (EX_TEMPFAIL of sysexits.h).
EXIT_REPLACED = 75
# The event loop and the workers pass requests to and fro; with Python's 5 ms, whoever is busy keeps
# the other waiting: p99 of 64 connections 85 ms instead of 57, and 30 % less throughput.
SWITCH_INTERVAL_S = 0.0005

logger = logging.getLogger(__name__)


def serve(config: AgentConfig, *, environ: Mapping[str, str] = os.environ) -> int:
    """Run the agent until SIGTERM or SIGINT and return its exit status.

    When the slots serve another bundle, a new process takes the place of this one: the service
    manager starts it, after EXIT_REPLACED, or else this one becomes it. Where nothing is installed
    yet, it waits for a bundle. Raises the EdgeError that keeps it from serving.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    notifier = Notifier.from_environ(environ)
    with _on_stop_signal(sys.exit):  # while verifying there is nothing to finish
        watch = None if config.slots is None else SlotsWatch(config.slots)
        if watch is not None and watch.state.served is None:
            _await_change(watch, notifier, f"waiting for a first bundle in {config.slots}")
            watch = SlotsWatch(watch.root)
    try:
        with _on_stop_signal(sys.exit):
            agent = Agent.open(config, notifier=notifier)
        with _on_stop_signal(agent.request_stop):
            agent.run(on_ready=_spare_collector)
    except EdgeError as error:
        # The service manager counts the starts of a trial. Without one, the gate is to find an
        # agent again that can serve the bundle before.
        if watch is None or not watch.on_trial or notifier.is_supervised:
            raise
        logger.error("the bundle on trial cannot be served: %s", error)
        with _on_stop_signal(sys.exit):
            _await_change(watch, notifier, "waiting for the gate to go back")
        return _replaced(notifier)
    return _replaced(notifier) if agent.is_replaced else 0


def _await_change(watch: SlotsWatch, notifier: Notifier, why: str) -> None:
    logger.info("%s", why)
    notifier.status(why)
    passed = 0.0
    while not watch.has_changed():
        if passed % EXTEND_EVERY_S == 0:
            notifier.extend_start(EXTENSION_S)
        time.sleep(LOOK_S)
        passed += LOOK_S


def _replaced(notifier: Notifier) -> int:
    """Return the status that makes the service manager start anew, or start anew."""
    if not notifier.is_supervised:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this command
    return EXIT_REPLACED


def _spare_collector() -> None:
    """Hide what the start has made from the garbage collector, and that is nearly everything.

    To look through it again and again kept requests waiting: the p99 of refusals was 50 to 140 ms.
    """
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _on_stop_signal(stop: Callable[[], object]) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    before = {kind: signal.signal(kind, handle) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
