"""The Worker: one thread that owns a Session from open to close and runs one request at a time.

Callers wait in `infer`; the inbox between them and the thread is bounded, and a request whose
deadline has passed is dropped before it costs any compute.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from edge.errors import (
    DeadlineError,
    EdgeError,
    InferenceError,
    InputError,
    NotReadyError,
    QueueFullError,
)
from edge.session import Session
from edge.spec import AnyArray, Feeds

UNREADY_AFTER_FAILURES = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The outputs of one request, and how long it waited and ran."""

    outputs: dict[str, AnyArray]
    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    feeds: Feeds
    submitted: float
    deadline: float | None
    answer: Future[Answer]


class Worker:
    """Runs the requests of one model. All methods may be called from any thread."""

    def __init__(
        self,
        name: str,
        open_session: Callable[[], Session],
        *,
        queue_size: int,
        stall_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.consecutive_failures = 0
        self._open_session = open_session
        self._queue_size = queue_size
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._inbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._admission = threading.Lock()
        self._is_accepting = False
        self._is_stopping = False
        self._run_started: float | None = None
        self._opened: Future[None] = Future()
        # A daemon, so that a hung backend call cannot keep the process from exiting.
        self._thread = threading.Thread(target=self._main, name=f"worker-{name}", daemon=True)

    def start(self) -> None:
        """Open the session in the worker's thread and wait for it; raises what opening raised."""
        self._thread.start()
        self._opened.result()

    def infer(self, feeds: Feeds, *, deadline: float | None) -> Answer:
        """Return the answer to one request, waiting for its turn.

        deadline: on the worker's clock; None waits for ever.
        Raises QueueFullError at once if the inbox is full, NotReadyError once stopping,
        DeadlineError when the deadline passes first, and whatever `Session.run` raises.
        """
        now = self._clock()
        request = _Request(feeds=feeds, submitted=now, deadline=deadline, answer=Future())
        with self._admission:
            if not self._is_accepting:
                raise NotReadyError(f"model {self.name!r} is stopping; send the request elsewhere")
            if self._inbox.qsize() >= self._queue_size:
                raise QueueFullError(
                    f"model {self.name!r} has {self._queue_size} requests waiting; retry later"
                )
            self._inbox.put(request)
        try:
            return request.answer.result(None if deadline is None else max(0.0, deadline - now))
        except FutureTimeoutError:
            request.answer.cancel()
            raise _too_late(self.name) from None

    def stop(self, timeout_s: float) -> bool:
        """Refuse new requests, finish the queued ones, close the session.

        Returns False if the thread is still busy after timeout_s.
        """
        with self._admission:
            self._is_accepting = False
            self._is_stopping = True
            self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def queue_depth(self) -> int:
        """The number of requests that wait."""
        return self._inbox.qsize()

    @property
    def is_ready(self) -> bool:
        """Whether the session is open, accepting, and did not fail several times in a row.

        Requests are still tried after failures: the first that succeeds makes the model ready.
        """
        return self._is_accepting and self.consecutive_failures < UNREADY_AFTER_FAILURES

    def is_stalled(self, now: float) -> bool:
        """Whether one run has lasted longer than the stall timeout."""
        started = self._run_started
        return started is not None and now - started > self._stall_timeout_s

    def _main(self) -> None:
        try:
            session = self._open_session()
        except BaseException as error:  # noqa: BLE001 - handed to the caller of start
            self._opened.set_exception(error)
            return
        with self._admission:
            self._is_accepting = not self._is_stopping
        self._opened.set_result(None)
        while (request := self._inbox.get()) is not None:
            self._answer(session, request)
        session.close()

    def _answer(self, session: Session, request: _Request) -> None:
        if not request.answer.set_running_or_notify_cancel():
            return
        started = self._clock()
        if request.deadline is not None and started >= request.deadline:
            request.answer.set_exception(_too_late(self.name))
            return
        self._run_started = started
        try:
            outputs = session.run(request.feeds)
        except InputError as error:
            request.answer.set_exception(error)
        except Exception as error:  # noqa: BLE001 - one request must not end the loop
            self._count_failure(error)
            request.answer.set_exception(_inference_error(self.name, error))
        else:
            if self.consecutive_failures:
                logger.info("model recovered name=%s", self.name)
                self.consecutive_failures = 0
            request.answer.set_result(
                Answer(
                    outputs=outputs,
                    queue_s=started - request.submitted,
                    compute_s=self._clock() - started,
                )
            )
        finally:
            self._run_started = None

    def _count_failure(self, error: Exception) -> None:
        self.consecutive_failures += 1
        if self.consecutive_failures == 1:
            expected = isinstance(error, EdgeError)
            logger.error(
                "run failed name=%s: %s", self.name, error, exc_info=None if expected else error
            )
        elif self.consecutive_failures == UNREADY_AFTER_FAILURES:
            logger.error("model unready name=%s failures=%d", self.name, UNREADY_AFTER_FAILURES)


def _too_late(name: str) -> DeadlineError:
    return DeadlineError(
        f"model {name!r} did not answer within the time limit; send fewer requests at once, or "
        "raise request_timeout_s"
    )


def _inference_error(name: str, error: Exception) -> EdgeError:
    if isinstance(error, EdgeError):
        return error
    wrapped = InferenceError(f"model {name!r} failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
