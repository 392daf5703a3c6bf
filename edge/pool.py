"""A few threads that do what they are given."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Pool:
    """Daemons, so that one that hangs cannot keep the process from exiting.

    What is submitted must not raise: nobody is there to hear it.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Have a job done by the next thread that is free."""
        self._jobs.put(job)

    def close(self) -> None:
        """Let the threads end, once they have done what they do."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it may hold a whole request, and the next one may be long in coming
