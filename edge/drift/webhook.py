"""Tells an address when drift begins or ends."""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading

import msgspec

from edge.drift.watch import DriftReport
from edge.errors import ConfigError, EdgeError, UsageError
from edge.http_client import AgentClient

TIMEOUT_S = 5.0
RETRY_S = (1.0, 5.0, 30.0)
MAX_WAITING = 32
_JOIN_S = 2.0

logger = logging.getLogger(__name__)


class Webhook:
    """POSTs each change of state as JSON, in a thread of its own; redirects are not followed.

    What is not taken with a status below 300 is sent again after each of `retry_s`, then given up.
    """

    def __init__(self, url: str, *, retry_s: tuple[float, ...] = RETRY_S) -> None:
        """Raises ConfigError for what is no http or https address."""
        try:
            self._client = AgentClient(url, timeout_s=TIMEOUT_S, whole_s=TIMEOUT_S)
        except UsageError as error:
            raise ConfigError(
                f"drift_webhook: {url!r} is no address; write http://HOST:PORT/PATH, or https"
            ) from error
        self._host = socket.gethostname()
        self._retry_s = retry_s
        self._events: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="drift-webhook", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def tell(self, model: str, report: DriftReport) -> None:
        """Send a change soon; dropped where too many wait already."""
        body = msgspec.json.encode({"host": self._host, "model": model, "drift": report})
        try:
            self._events.put_nowait(body)
        except queue.Full:
            logger.warning("drift webhook: %d changes wait; this one is dropped", MAX_WAITING)

    def stop(self) -> None:
        """End; what waits is not sent."""
        self._stop.set()
        if self._thread.ident is not None:
            with contextlib.suppress(queue.Full):
                self._events.put_nowait(None)
            self._thread.join(_JOIN_S)

    def _work(self) -> None:
        while not self._stop.is_set() and (body := self._events.get()) is not None:
            self._send(body)
        self._client.close()

    def _send(self, body: bytes) -> None:
        problem = ""
        for pause_s in (*self._retry_s, None):
            try:
                received = self._client.send(
                    "POST", "", headers={"Content-Type": "application/json"}, body=body
                )
            except EdgeError as error:
                problem = str(error)
            else:
                if received.status < 300:
                    return
                problem = f"{self._client.address} answered {received.status}"
            if pause_s is None or self._stop.wait(pause_s):
                break
        logger.warning("drift webhook: a change was not delivered: %s", problem)
