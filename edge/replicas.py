"""One model on several GPUs: a worker each, and every request to the one with the least to do."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

from edge.errors import NotReadyError, QueueFullError
from edge.inbox import Answer, Request
from edge.oip import NORMAL_PRIORITY
from edge.promise import Promise
from edge.spec import Feeds
from edge.worker import Worker

# A worker that fails gets one request so often; it is answered by another if it fails again.
PROBE_S = 1.0


class Replicas:
    """Workers of the same model, as one. All methods may be called from any thread.

    A request whose run fails is tried once more, by another worker: a GPU that is gone costs its
    requests time, not their answers.
    """

    def __init__(
        self, workers: Sequence[Worker], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.workers = tuple(workers)
        self._clock = clock
        self._probed = dict.fromkeys(self.workers, 0.0)
        if len(self.workers) > 1:
            for worker in self.workers:
                worker.rescue = functools.partial(self._rescue, worker)

    def infer(
        self, feeds: Feeds, *, deadline: float | None, priority: int = NORMAL_PRIORITY
    ) -> Answer:
        """Return the answer to one request; see `Worker.infer`."""
        return self._best(self.workers).infer(feeds, deadline=deadline, priority=priority)

    def submit(
        self,
        feeds: Feeds,
        *,
        deadline: float | None,
        priority: int = NORMAL_PRIORITY,
        wake: bool = True,
    ) -> Promise[Answer]:
        """Put one request into line at the worker with the least to do; see `Worker.submit`."""
        worker = self._best(self.workers)
        return worker.submit(feeds, deadline=deadline, priority=priority, wake=wake)

    @property
    def is_quick(self) -> bool:
        """Whether the next request is one for `run_here`; see `Worker.is_quick`."""
        return len(self.workers) == 1 and self.workers[0].is_quick

    def run_here(self) -> None:
        """Run what waits in the caller's thread if that is quick; see `Worker.run_here`."""
        self.workers[0].run_here()

    def stop(self, timeout_s: float) -> bool:
        """Stop all workers; False if one is still busy after timeout_s."""
        deadline = self._clock() + timeout_s
        for worker in self.workers:
            worker.close()
        return all([w.stop(max(0.0, deadline - self._clock())) for w in self.workers])

    @property
    def max_batch_rows(self) -> int:
        """Rows that may run together on one GPU; 1 if requests are never joined."""
        return self.workers[0].max_batch_rows

    @property
    def max_running_rows(self) -> int:
        """Rows that all workers together may have begun."""
        return sum(worker.max_running_rows for worker in self.workers)

    @property
    def queue_depth(self) -> int:
        """The number of requests that wait."""
        return sum(worker.queue_depth for worker in self.workers)

    @property
    def is_ready(self) -> bool:
        """Whether at least one worker can answer."""
        return any(worker.is_ready for worker in self.workers)

    def is_stalled(self, now: float) -> bool:
        """Whether every worker has a run that lasts too long."""
        return all(worker.is_stalled(now) for worker in self.workers)

    def _best(self, workers: Sequence[Worker]) -> Worker:
        if len(workers) == 1:
            return workers[0]
        now = self._clock()
        for worker in workers:
            if worker.consecutive_failures and now - self._probed[worker] >= PROBE_S:
                self._probed[worker] = now
                return worker
        return min(workers, key=lambda w: (not _is_sound(w, now), w.load))

    def _rescue(self, failed: Worker, request: Request) -> bool:
        """Give a request that failed to another worker; False if it has to bear its error."""
        now = self._clock()
        others = [w for w in self.workers if w is not failed and _is_sound(w, now)]
        if request.attempts or not others:
            return False
        request.attempts += 1
        try:
            min(others, key=lambda worker: worker.load).put(request)
        except (NotReadyError, QueueFullError):
            return False
        return True


def _is_sound(worker: Worker, now: float) -> bool:
    return worker.is_ready and not worker.consecutive_failures and not worker.is_stalled(now)
