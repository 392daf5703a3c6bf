"""The answer to a request that is under way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Generic, Literal, TypeVar, cast

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Promise(Generic[T]):
    """What `concurrent.futures.Future` is, for one waiting caller and at a third of its cost.

    That one makes and enters a Condition for each request. May be used from any thread.
    """

    __slots__ = ("_callbacks", "_error", "_lock", "_result", "_state")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state: Literal["pending", "running", "cancelled", "done"] = "pending"
        self._callbacks: list[Callable[[Promise[T]], object]] = []
        self._result: T | None = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether there is an answer, an error, or nobody who waits."""
        return self._state in {"done", "cancelled"}

    def cancelled(self) -> bool:
        """Whether it was cancelled before it ran."""
        return self._state == "cancelled"

    def cancel(self) -> bool:
        """Give it up unless it runs or is done; False then."""
        with self._lock:
            if self._state not in {"pending", "cancelled"}:
                return False
            is_new, self._state = self._state == "pending", "cancelled"
        if is_new:
            self._call_back()
        return True

    def set_running_or_notify_cancel(self) -> bool:
        """Begin to make the answer; False if it was cancelled."""
        with self._lock:
            if self._state == "pending":
                self._state = "running"
            return self._state == "running"

    def set_result(self, result: T) -> None:
        """Give the answer."""
        self._result = result
        self._finish()

    def set_exception(self, error: BaseException) -> None:
        """Give the error in place of an answer."""
        self._error = error
        self._finish()

    def result(self, timeout_s: float | None = None) -> T:
        """Return the answer, waiting for it, or raise its error.

        Raises CancelledError if it was cancelled, FutureTimeoutError when the time is over.
        """
        error = self.exception(timeout_s)
        if error is not None:
            raise error
        return cast(T, self._result)

    def exception(self, timeout_s: float | None = None) -> BaseException | None:
        """Return the error, None if there is an answer; waits and raises as `result`."""
        if not self.done():
            self._wait(timeout_s)
        if self._state == "cancelled":
            raise CancelledError
        return self._error

    def add_done_callback(self, function: Callable[[Promise[T]], object]) -> None:
        """Call a function with this when it is done: in the thread that ends it, or now."""
        with self._lock:
            if not self.done():
                self._callbacks.append(function)
                return
        self._call(function)

    def _wait(self, timeout_s: float | None) -> None:
        is_done = threading.Event()
        self.add_done_callback(lambda _: is_done.set())
        if not is_done.wait(timeout_s):
            raise FutureTimeoutError

    def _finish(self) -> None:
        with self._lock:
            assert self._state in {"pending", "running"}, self._state  # noqa: S101
            self._state = "done"
        self._call_back()

    def _call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for function in callbacks:
            self._call(function)

    def _call(self, function: Callable[[Promise[T]], object]) -> None:
        try:
            function(self)
        except Exception as error:
            logger.error("what was to be done with an answer failed", exc_info=error)
