"""The requests of one model that wait, and the decision when enough of them wait to be run.

A batch starts at once when nobody else is expected. Who is expected follows from the last batch:
its callers, when they wait for their answers, come back together. To wait for them can pay only as
long as a run costs before its first row: with run(n) = fixed + n * row, one run of m rows after a
wait w beats two runs at once if w + fixed + m * row < 2 * fixed + m * row, that is w < fixed. The
fixed cost is learnt from the runs; the window also shrinks whenever waiting was in vain.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from statistics import median_low

import msgspec

from edge.batching import Extent, Plan
from edge.errors import DeadlineError, NotReadyError, QueueFullError
from edge.oip import NORMAL_PRIORITY
from edge.promise import Promise
from edge.spec import AnyArray, Feeds
from edge.tensor_bytes import held_bytes

_FORGOTTEN = 0.05  # of what is known about runs, by each of them
_SMALLEST_WINDOW_S = 50e-6
_RECENT_RUNS = 15


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The outputs of one request, how long it waited and ran, and the rows it ran with."""

    outputs: dict[str, AnyArray]
    queue_s: float
    compute_s: float
    batch_rows: int


class Request(msgspec.Struct, kw_only=True, eq=False):
    """One request; deadline: on the inbox's clock, None waits for ever.

    attempts: runs of it that failed; from the first on its answer counts as running. size:
    bytes of its tensors.
    """

    feeds: Feeds
    extent: Extent
    submitted: float
    deadline: float | None
    priority: int = NORMAL_PRIORITY
    attempts: int = 0
    answer: Promise[Answer] = msgspec.field(default_factory=Promise)
    size: int = 0

    def __post_init__(self) -> None:
        self.size = sum(map(held_bytes, self.feeds.values()))

    @property
    def order(self) -> tuple[int, float]:
        """Before whom it is served."""
        return self.priority, self.submitted


class RunCost:
    """run(n) = fixed + n * row, fitted to the last runs by least squares; older ones fade."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._squares = self._products = 0.0
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT_RUNS)
        self._median_rows, self._median_s = 1, 0.0
        self._row_s: float | None = None

    def add(self, rows: int, run_s: float) -> None:
        """Take in one run."""
        keep = 1.0 - _FORGOTTEN
        self._weight = keep * self._weight + 1.0
        self._rows = keep * self._rows + rows
        self._seconds = keep * self._seconds + run_s
        self._squares = keep * self._squares + rows * rows
        self._products = keep * self._products + rows * run_s
        self._recent.append((rows, run_s))
        self._median_rows = median_low(rows for rows, _ in self._recent)
        self._median_s = median_low(run_s for _, run_s in self._recent)
        self._row_s = None
        spread = self._weight * self._squares - self._rows**2
        if spread > 1e-6 * self._weight * self._squares:
            slope_s = (self._weight * self._products - self._rows * self._seconds) / spread
            self._row_s = max(0.0, slope_s)

    @property
    def fixed_s(self) -> float:
        """The cost before the first row; 0 while all runs had the same rows."""
        if self._row_s is None:
            return 0.0
        return max(0.0, (self._seconds - self._row_s * self._rows) / self._weight)

    def predicted_s(self, rows: int) -> float:
        """What a run of so many rows usually takes; infinite before the first.

        From medians: a run that had to wait for a processor says nothing about the next. No row
        is taken to cost more than its share of the median run.
        """
        if not self._recent:
            return math.inf
        row_s = self._median_s / self._median_rows
        if self._row_s is not None:
            row_s = min(row_s, self._row_s)
        return self._median_s + row_s * max(0, rows - self._median_rows)


class Inbox:
    """Bounded by count and by bytes. `put` is for callers, the rest for the one who runs."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        max_requests: int,
        max_bytes: int,
        window_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._plan = plan
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()  # quicker to enter than the condition
        self._changed = threading.Condition(self._lock)
        self._waiting: list[Request] = []
        self._bytes = 0
        self._is_open = False
        self._is_closed = False
        self._expected = 0
        self._runs = RunCost()
        self._largest_window_s = window_s
        self.window_s = window_s  # the longest wait for company, as it is now

    @property
    def depth(self) -> int:
        """The number of requests that wait."""
        return len(self._waiting)

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return self._is_open

    @property
    def is_closed(self) -> bool:
        """Whether no request will come any more."""
        return self._is_closed

    def open(self) -> None:
        """Take requests from now on, unless it was closed before."""
        with self._lock:
            self._is_open = not self._is_closed

    def close(self) -> None:
        """Take no more; what waits is still given out, then `wait` returns False."""
        with self._lock:
            self._is_open, self._is_closed = False, True
            self._changed.notify_all()

    def put(self, request: Request, *, wake: bool = True) -> None:
        """Add a request; raises NotReadyError when closed, QueueFullError when full.

        wake: tell who waits in `wait` or `take`; without, the caller takes it or calls `wake`.
        """
        with self._lock:
            if not self._is_open:
                raise NotReadyError(f"model {self._name!r} is stopping; send the request elsewhere")
            size = request.size
            if len(self._waiting) >= self._max_requests:
                raise QueueFullError(
                    f"model {self._name!r} has {self._max_requests} requests waiting; retry later"
                )
            if self._waiting and self._bytes + size > self._max_bytes:
                raise QueueFullError(
                    f"model {self._name!r} has {self._bytes} bytes of requests waiting; retry later"
                )
            self._waiting.append(request)
            self._bytes += size
            if wake:
                self._changed.notify()

    def wake(self) -> None:
        """Tell who waits in `wait` or `take` to look again."""
        with self._lock:
            self._changed.notify()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until there is a request; False once closed and empty, or when the time is over."""
        with self._lock:
            self._changed.wait_for(lambda: self._waiting or self._is_closed, timeout_s)
            return bool(self._waiting)

    def take(self) -> list[Request]:
        """Return the requests to run now, all running; late and cancelled ones are answered.

        May be empty. The most urgent comes first, then the oldest, then all that fit them.
        """
        with self._lock:
            if self._expected > 1 and len(self._waiting) < self._expected:
                self._wait_for_company()
            return self._taken()

    def take_now(self, most_s: float) -> list[Request]:
        """Return what `take` would without waiting, if all that waits will run within most_s."""
        with self._lock:
            return self._taken() if self._predicted_s() <= most_s else []

    def take_full(self) -> list[Request]:
        """Return the requests of a batch if so many wait that no more could join; else none.

        For who has a batch running: a smaller one should rather grow until that is done.
        """
        with self._lock:
            return self._taken() if self._is_full() else []

    def is_quick(self, most_s: float) -> bool:
        """Whether one row more will have run within most_s."""
        return self._runs.predicted_s(len(self._waiting) + 1) <= most_s

    def note_run(self, requests: int, rows: int, run_s: float) -> None:
        """Learn from a batch that is done: how many callers may come back, and what runs cost."""
        self._expected = requests + len(self._waiting)
        self._runs.add(rows, run_s)

    def _predicted_s(self) -> float:
        return self._runs.predicted_s(sum(request.extent.rows for request in self._waiting))

    def _taken(self) -> list[Request]:
        self._waiting.sort(key=lambda request: request.order)
        batch: list[Request] = []
        left: list[Request] = []
        taken, now = None, self._clock()
        for request in self._waiting:
            more = request.extent
            extent = more if taken is None else self._plan.joined(taken, more)
            if extent is None:
                left.append(request)
            elif self._starts(request, now):
                batch.append(request)
                taken = extent
        self._waiting = left
        self._bytes = sum(request.size for request in left)
        return batch

    def _wait_for_company(self) -> None:
        window_s = min(self.window_s, self._runs.fixed_s)
        if window_s < _SMALLEST_WINDOW_S or self._is_closed:
            return
        came = self._changed.wait_for(self._is_complete, window_s)
        factor = 2.0 if came else 0.5
        self.window_s = min(self._largest_window_s, max(_SMALLEST_WINDOW_S, self.window_s * factor))

    def _is_complete(self) -> bool:
        return self._is_full() or len(self._waiting) >= self._expected or self._is_closed

    def _is_full(self) -> bool:
        return sum(request.extent.rows for request in self._waiting) >= self._plan.max_rows

    def _starts(self, request: Request, now: float) -> bool:
        """Whether a request is still wanted; then it is marked as running."""
        if not request.attempts and not request.answer.set_running_or_notify_cancel():
            return False
        if request.deadline is not None and now >= request.deadline:
            request.answer.set_exception(too_late(self._name))
            return False
        return True


def too_late(name: str) -> DeadlineError:
    """Return the error of a request whose time is over."""
    return DeadlineError(
        f"model {name!r} did not answer within the time limit; send fewer requests at once, or "
        "raise request_timeout_s"
    )
