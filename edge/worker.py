"""The Worker: opens a Session, runs requests on it one batch at a time, and closes it.

The inbox between callers and the worker's thread is bounded, and a request whose deadline has
passed is dropped before it costs any compute.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from edge.batching import Plan
from edge.errors import EdgeError, InferenceError, InputError
from edge.inbox import Answer, Inbox, Request, too_late
from edge.oip import NORMAL_PRIORITY
from edge.session import Session
from edge.spec import Feeds

UNREADY_AFTER_FAILURES = 3

logger = logging.getLogger(__name__)


class Worker:
    """Runs the requests of one model. All methods may be called from any thread.

    plan: how requests are joined. queue_size, queue_bytes: what may wait. window_s: the longest
    wait for company. note_run: told the rows and seconds of every run.
    """

    def __init__(
        self,
        name: str,
        open_session: Callable[[], Session],
        *,
        plan: Plan,
        queue_size: int,
        queue_bytes: int,
        window_s: float,
        stall_timeout_s: float,
        note_run: Callable[[int, float], None] = lambda rows, run_s: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.consecutive_failures = 0
        self._open_session = open_session
        self._plan = plan
        self._note_run = note_run
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._inbox = Inbox(
            name,
            plan,
            max_requests=queue_size,
            max_bytes=queue_bytes,
            window_s=window_s,
            clock=clock,
        )
        self._run_started: float | None = None
        self._opened: Future[None] = Future()
        # A daemon, so that a hung backend call cannot keep the process from exiting.
        self._thread = threading.Thread(target=self._main, name=f"worker-{name}", daemon=True)

    def start(self) -> None:
        """Open the session in the worker's thread and wait for it; raises what opening raised."""
        self._thread.start()
        self._opened.result()

    def infer(
        self, feeds: Feeds, *, deadline: float | None, priority: int = NORMAL_PRIORITY
    ) -> Answer:
        """Return the answer to one request, waiting for its turn; see `submit`.

        Raises DeadlineError when the deadline passes first, and whatever `Session.run` raises.
        """
        now = self._clock()
        answer = self.submit(feeds, deadline=deadline, priority=priority)
        try:
            return answer.result(None if deadline is None else max(0.0, deadline - now))
        except FutureTimeoutError:
            answer.cancel()
            raise too_late(self.name) from None

    def submit(
        self, feeds: Feeds, *, deadline: float | None, priority: int = NORMAL_PRIORITY
    ) -> Future[Answer]:
        """Put one request into line; cancelling what is returned takes it out again.

        deadline: on the worker's clock; None waits for ever. priority: see `inbox`.
        Raises QueueFullError if the inbox is full, NotReadyError once stopping.
        """
        request = Request(
            feeds=feeds,
            extent=self._plan.extent(feeds),
            submitted=self._clock(),
            deadline=deadline,
            priority=priority,
        )
        self._inbox.put(request)
        return request.answer

    def stop(self, timeout_s: float) -> bool:
        """Refuse new requests, finish the queued ones, close the session.

        Returns False if the thread is still busy after timeout_s.
        """
        self._inbox.close()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def max_batch_rows(self) -> int:
        """Rows that may run together; 1 if requests are never joined."""
        return self._plan.max_rows

    @property
    def queue_depth(self) -> int:
        """The number of requests that wait."""
        return self._inbox.depth

    @property
    def is_ready(self) -> bool:
        """Whether the session is open, accepting, and did not fail several times in a row.

        Requests are still tried after failures: the first that succeeds makes the model ready.
        """
        return self._inbox.is_open and self.consecutive_failures < UNREADY_AFTER_FAILURES

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
        self._inbox.open()
        self._opened.set_result(None)
        while self._inbox.wait():
            self._run(session, self._inbox.take())
        session.close()

    def _run(self, session: Session, batch: Sequence[Request]) -> None:
        """Run requests as one and answer them."""
        if not batch:
            return
        self._run_started = started = self._clock()
        try:
            outputs = session.run(self._plan.join([request.feeds for request in batch]))
        except Exception as error:  # noqa: BLE001 - one request must not end the loop
            self._run_alone(session, batch, error)
            return
        finally:
            self._run_started = None
        compute_s = self._clock() - started
        if self.consecutive_failures:
            logger.info("model recovered name=%s", self.name)
            self.consecutive_failures = 0
        extents = [request.extent for request in batch]
        rows = sum(extent.rows for extent in extents)
        self._inbox.note_run(len(batch), rows, compute_s)
        self._note_run(rows, compute_s)
        for request, part in zip(batch, self._plan.split(outputs, extents), strict=True):
            queue_s = started - request.submitted
            request.answer.set_result(
                Answer(outputs=part, queue_s=queue_s, compute_s=compute_s, batch_rows=rows)
            )

    def _run_alone(self, session: Session, batch: Sequence[Request], error: Exception) -> None:
        """Answer a failed batch: the error for one request, another try by itself for several."""
        if len(batch) > 1:
            for request in batch:
                self._run(session, [request])
            return
        if not isinstance(error, InputError):
            self._count_failure(error)
            error = _inference_error(self.name, error)
        batch[0].answer.set_exception(error)

    def _count_failure(self, error: Exception) -> None:
        self.consecutive_failures += 1
        if self.consecutive_failures == 1:
            expected = isinstance(error, EdgeError)
            logger.error(
                "run failed name=%s: %s", self.name, error, exc_info=None if expected else error
            )
        elif self.consecutive_failures == UNREADY_AFTER_FAILURES:
            logger.error("model unready name=%s failures=%d", self.name, UNREADY_AFTER_FAILURES)


def _inference_error(name: str, error: Exception) -> EdgeError:
    if isinstance(error, EdgeError):
        return error
    wrapped = InferenceError(f"model {name!r} failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
