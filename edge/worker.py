"""The Worker: opens a Session, runs requests on it batch by batch, and closes it.

The inbox between callers and the worker's thread is bounded, and a request whose deadline has
passed is dropped before it costs any compute. Where the session can, the next batch is staged
while one runs. Runs that take less time than to wake a thread are left to the caller's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from edge.batching import Plan
from edge.errors import EdgeError, InferenceError, InputError
from edge.inbox import Answer, Inbox, Request, too_late
from edge.oip import NORMAL_PRIORITY
from edge.promise import Promise
from edge.session import PAUSE_S, Finish, Session, is_prepared, prepare, start_of
from edge.spec import Feeds

UNREADY_AFTER_FAILURES = 3
# What a caller may run itself: to hand it to the worker's thread and back costs about 0.1 ms.
QUICK_RUN_S = 0.5e-3

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """A batch that begins or has begun; then finish waits for its outputs."""

    batch: Sequence[Request]
    started: float
    finish: Finish | None = None


class Worker:
    """Runs the requests of one model. All methods may be called from any thread.

    plan: how requests are joined. queue_size, queue_bytes: what may wait. window_s: the longest
    wait for company. note_run: told the rows and seconds of every run. rescue: asked about every
    request whose run failed; True if somebody else answers it.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.consecutive_failures = 0
        self._open_session = open_session
        self._plan = plan
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
        self.note_run: Callable[[int, float], None] = lambda rows, run_s: None
        self.rescue: Callable[[Request], bool] = lambda request: False
        self.memory_bytes: int | None = None  # of the device, as the session tells once it is open
        self._session: Session | None = None
        self._turn = threading.Lock()  # who holds it runs the session
        self._prepared = threading.Condition()
        self._runs_anywhere = False
        self._depth = 1
        self._running: tuple[_Run, ...] = ()
        self._ended = clock()  # of the last run
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
        self,
        feeds: Feeds,
        *,
        deadline: float | None,
        priority: int = NORMAL_PRIORITY,
        wake: bool = True,
    ) -> Promise[Answer]:
        """Put one request into line; cancelling what is returned takes it out again.

        deadline: on the worker's clock; None waits for ever. priority: see `inbox`. wake: start
        the worker's thread; without, the caller calls `run_here` soon.
        Raises QueueFullError if the inbox is full, NotReadyError once stopping.
        """
        request = Request(
            feeds=feeds,
            extent=self._plan.extent(feeds),
            submitted=self._clock(),
            deadline=deadline,
            priority=priority,
        )
        self._inbox.put(request, wake=wake)
        return request.answer

    @property
    def is_quick(self) -> bool:
        """Whether the next request is one for `run_here`, as far as can be told now."""
        return self._runs_anywhere and self._inbox.is_quick(QUICK_RUN_S)

    def run_here(self) -> None:
        """Run what waits in the caller's thread if that is quick, else leave it to the worker's."""
        if self._turn.acquire(blocking=False):
            try:
                if self._session is not None and self._runs_anywhere:
                    batch = self._inbox.take_now(QUICK_RUN_S)
                    run = self._begin(self._session, batch)
                    if run is not None:
                        self._end(self._session, run)
            finally:
                self._turn.release()
        if self._inbox.depth:
            self._inbox.wake()

    def settle(self, timeout_s: float) -> bool:
        """Wait until the session has prepared for what it ran; False if it takes longer."""
        with self._prepared:
            return self._prepared.wait_for(
                lambda: self._session is None or is_prepared(self._session), timeout_s
            )

    def put(self, request: Request) -> None:
        """Put a request of another worker of this model into line; raises as `submit`."""
        self._inbox.put(request)

    def close(self) -> None:
        """Refuse new requests; see `stop`."""
        self._inbox.close()

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
    def max_running_rows(self) -> int:
        """Rows that may have begun at a time."""
        return self._depth * self._plan.max_rows

    @property
    def load(self) -> int:
        """The number of requests that wait or run."""
        return self._inbox.depth + sum(len(run.batch) for run in self._running)

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
        return any(now - run.started > self._stall_timeout_s for run in self._running)

    def _main(self) -> None:
        try:
            session = self._session = self._open_session()
        except BaseException as error:  # noqa: BLE001 - handed to the caller of start
            self._opened.set_exception(error)
            return
        self.memory_bytes = getattr(session, "memory_bytes", None)
        self._depth = getattr(session, "depth", 1)
        self._runs_anywhere = getattr(session, "runs_anywhere", False)
        self._inbox.open()
        self._opened.set_result(None)
        while True:
            if self._inbox.wait(None if is_prepared(session) else PAUSE_S):
                with self._turn:
                    self._run_waiting(session)
            elif self._inbox.is_closed:
                break
            else:
                self._use_pause(session)
        with self._turn:
            self._session = None
            try:
                session.close()
            except Exception as error:
                logger.error(
                    "not closed name=%s; its memory may be lost", self.name, exc_info=error
                )

    def _use_pause(self, session: Session) -> None:
        with self._turn:
            try:
                prepare(session)
            except Exception as error:
                logger.error("not prepared name=%s; it runs slower", self.name, exc_info=error)
        with self._prepared:
            self._prepared.notify_all()

    def _run_waiting(self, session: Session) -> None:
        """Run a batch, and further ones as long as a full one can begin before the last is done."""
        run = self._begin(session, self._inbox.take())
        while run is not None:
            ahead = None
            if self._depth > 1:
                ahead = self._begin(session, self._inbox.take_full())
            self._end(session, run)
            run = ahead

    def _begin(self, session: Session, batch: Sequence[Request]) -> _Run | None:
        """Start to run requests as one; None if there are none or they have their answers."""
        if not batch:
            return None
        run = _Run(batch=batch, started=self._clock())
        self._running += (run,)
        try:
            run.finish = start_of(session)(self._plan.join([request.feeds for request in batch]))
        except Exception as error:  # noqa: BLE001 - one request must not end the loop
            self._is_over(run)
            self._fail(session, batch, error)
            return None
        return run

    def _end(self, session: Session, run: _Run) -> None:
        """Wait for what has begun and answer it."""
        assert run.finish is not None  # noqa: S101 - _begin has set it
        try:
            outputs = run.finish()
        except Exception as error:  # noqa: BLE001 - one request must not end the loop
            self._is_over(run)
            self._fail(session, run.batch, error)
            return
        begun = max(run.started, self._ended)  # it may have waited for the one before
        self._is_over(run)
        compute_s = self._ended - begun
        if self.consecutive_failures:
            logger.info("model recovered name=%s", self.name)
            self.consecutive_failures = 0
        extents = [request.extent for request in run.batch]
        rows = sum(extent.rows for extent in extents)
        self._inbox.note_run(len(run.batch), rows, compute_s)
        self.note_run(rows, compute_s)
        for request, part in zip(run.batch, self._plan.split(outputs, extents), strict=True):
            queue_s = begun - request.submitted
            request.answer.set_result(
                Answer(outputs=part, queue_s=queue_s, compute_s=compute_s, batch_rows=rows)
            )

    def _is_over(self, run: _Run) -> None:
        self._ended = self._clock()
        self._running = tuple(other for other in self._running if other is not run)

    def _fail(self, session: Session, batch: Sequence[Request], error: Exception) -> None:
        """Answer a failed batch: elsewhere, one by one, or with the error if there is but one."""
        if not isinstance(error, InputError):
            batch = [request for request in batch if not self.rescue(request)]
        if len(batch) > 1:
            for request in batch:
                run = self._begin(session, [request])
                if run is not None:
                    self._end(session, run)
            return
        if not isinstance(error, InputError):
            self._count_failure(error)
            error = _inference_error(self.name, error)
        for request in batch:
            request.answer.set_exception(error)

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
