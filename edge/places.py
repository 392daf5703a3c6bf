"""The requests inside one opened model: bounded, and waited for before the model is closed."""

from __future__ import annotations

import threading

from edge.errors import QueueFullError


class Places:
    """A request takes a place before it is parsed and gives it back once it is answered.

    May be used from any thread.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._taken = 0
        self._is_open = True
        self._lock = threading.Lock()  # quicker to enter than the condition
        self._changed = threading.Condition(self._lock)

    @property
    def taken(self) -> int:
        """How many are inside."""
        return self._taken

    def take(self) -> bool:
        """Take a place; False once closed: another model has replaced this one, ask that.

        Raises QueueFullError if there is none left.
        """
        with self._lock:
            if not self._is_open:
                return False
            self.check()
            self._taken += 1
            return True

    def check(self) -> None:
        """Raise QueueFullError if no place is left now."""
        if self._taken >= self._limit:
            raise QueueFullError(
                f"{self._limit} requests for model {self._name!r} are being answered already; "
                "retry later"
            )

    def give_back(self) -> None:
        """Leave a place."""
        with self._lock:
            self._taken -= 1
            if not self._is_open:
                self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Let nobody in any more and wait for those inside; False if some are still there."""
        with self._changed:
            self._is_open = False
            return self._changed.wait_for(lambda: self._taken == 0, timeout_s)
