"""Talk to systemd: readiness, status and watchdog over NOTIFY_SOCKET, as sd_notify(3) says."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

logger = logging.getLogger(__name__)

SEND_TIMEOUT_S = 1.0


class Notifier:
    """Sends state changes to the service manager; does nothing when there is none.

    Any thread may call it. A message that cannot be sent is logged, never raised.
    watchdog_interval_s: how often `watchdog` must be called, half of what systemd allows; None
    when no watchdog is set for this process.
    """

    def __init__(self, *, address: str | None, watchdog_interval_s: float | None) -> None:
        self.watchdog_interval_s = watchdog_interval_s
        self._address = address
        self._failed = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], *, pid: int | None = None) -> Notifier:
        """Return the notifier that the variables of this process describe."""
        return cls(
            address=environ.get("NOTIFY_SOCKET") or None,
            watchdog_interval_s=_watchdog_interval_s(environ, os.getpid() if pid is None else pid),
        )

    @property
    def is_supervised(self) -> bool:
        """Whether a service manager waits for what this process says."""
        return self._address is not None

    def ready(self) -> None:
        """Say that start-up is complete."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the shutdown has begun."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Say that work is progressing."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Set the one line that `systemctl status` shows."""
        self._send("STATUS=" + " ".join(text.split()))

    def extend_start(self, seconds: float) -> None:
        """Ask for this much time from now on before the start counts as failed."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        # A leading "@" stands for the zero byte of an abstract socket.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_TIMEOUT_S)
                sender.sendto(message.encode(), address)
        except OSError as error:
            if not self._failed:
                logger.warning("systemd not notified address=%s: %s", self._address, error)
            self._failed = True
        else:
            self._failed = False


def _watchdog_interval_s(environ: Mapping[str, str], pid: int) -> float | None:
    microseconds = environ.get("WATCHDOG_USEC", "")
    meant_for = environ.get("WATCHDOG_PID", str(pid))
    if not microseconds.isdecimal() or int(microseconds) == 0 or meant_for != str(pid):
        return None
    return int(microseconds) / 2e6
