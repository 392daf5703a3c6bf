"""The thread in which all models' windows are compared, so that no request waits for it."""

from __future__ import annotations

import threading

from edge.drift.webhook import Webhook
from edge.serving import Serving

INTERVAL_S = 0.5
_JOIN_S = 5.0


class DriftWatching:
    """Gives the watch of every served model a turn, again and again, and tells of changes.

    webhook: the address that is told, None for nobody. Raises ConfigError for one that is none.
    """

    def __init__(
        self, serving: Serving, webhook: str | None, *, interval_s: float = INTERVAL_S
    ) -> None:
        self._serving = serving
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="drift", daemon=True)
        self._webhook = None if webhook is None else Webhook(webhook)
        if self._webhook is not None:
            serving.on_drift = self._webhook.tell

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        if self._webhook is not None:
            self._webhook.start()

    def stop(self) -> None:
        """End, after the turn that is under way."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
        if self._webhook is not None:
            self._webhook.stop()

    def _work(self) -> None:
        while not self._stop.wait(self._interval_s):
            for served in self._serving.served.values():
                if served.drift is not None:
                    served.drift.turn()
