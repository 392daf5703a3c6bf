"""Stand-ins for devices, time and systemd; each passes the same contract as the real thing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge.batching import Plan
from edge.errors import InferenceError
from edge.manifest import Batching
from edge.session import Session
from edge.spec import AnyArray, Feeds, Profile, TensorSpec, check_feeds
from edge.worker import Worker
from tests.models import AFFINE_INPUTS, AFFINE_OUTPUTS, AFFINE_PROFILE, affine

DEADLINE_S = 30.0  # of a test that waits for an event: long, because it is never reached


class FakeClock:
    """A clock that moves when told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def affine_plan(*, batching: Batching | None = None, max_rows: int | None = None) -> Plan:
    """Return how requests to the affine model are joined; without batching not at all."""
    return Plan(
        batching,
        inputs=AFFINE_INPUTS,
        outputs=AFFINE_OUTPUTS,
        profile=AFFINE_PROFILE,
        max_rows=max_rows,
    )


def affine_worker(open_session: Callable[[], Session], **options: Any) -> Worker:
    """Return a worker of the affine model, with small bounds."""
    defaults: dict[str, Any] = {
        "plan": affine_plan(),
        "queue_size": 4,
        "queue_bytes": 1 << 20,
        "window_s": 0.0,
        "stall_timeout_s": 10.0,
    }
    return Worker("affine", open_session, **{**defaults, **options})


@contextlib.contextmanager
def starting_workers() -> Iterator[Callable[..., Worker]]:
    """Give a function that starts a worker of the affine model; all are stopped in the end."""
    workers = []

    def start(session: Session, **options: Any) -> Worker:
        worker = affine_worker(lambda: session, **options)
        workers.append(worker)
        worker.start()
        return worker

    yield start
    for worker in workers:
        assert worker.stop(DEADLINE_S)


class FakeSession:
    """A Session that computes with numpy; `before_run` may block, count or raise."""

    def __init__(
        self,
        *,
        compute: Callable[[AnyArray], dict[str, np.ndarray]] = affine,
        before_run: Callable[[], None] | None = None,
        inputs: tuple[TensorSpec, ...] = AFFINE_INPUTS,
        outputs: tuple[TensorSpec, ...] = AFFINE_OUTPUTS,
        profile: Profile = AFFINE_PROFILE,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.is_closed = False
        self.runs = 0
        self.threads: set[int] = set()
        self._compute = compute
        self._before_run = before_run
        self._profile = profile

    def run(self, feeds: Feeds) -> dict[str, AnyArray]:
        if self.is_closed:
            raise InferenceError("the session is closed; open the model again")
        check_feeds(feeds, self.inputs, self._profile)
        self.threads.add(threading.get_ident())
        self.runs += 1
        if self._before_run is not None:
            self._before_run()
        return self._compute(feeds[self.inputs[0].name])

    def reset_state(self) -> None:
        pass

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.is_closed = True


class Gate:
    """Holds whoever calls it until it is opened, and tells that somebody is inside.

    holds: False lets everybody pass until `hold`, as when a model is tested before it is served.
    """

    def __init__(self, *, holds: bool = True) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()
        self._holds = holds

    def __call__(self) -> None:
        if not self._holds:
            return
        self.entered.release()
        assert self._open.wait(DEADLINE_S)

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=DEADLINE_S)

    def hold(self) -> None:
        self._holds = True

    def pass_others(self) -> None:
        """Let everybody pass who is not inside."""
        self._holds = False

    def open(self) -> None:
        self._open.set()


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; it is looked at every millisecond."""
    pause = threading.Event()
    for _ in range(int(DEADLINE_S * 1000)):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("it never came to this")


def open_descriptors() -> int:
    """Return how many files and sockets this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


class FakeNotifier:
    """Records what systemd would be told."""

    def __init__(self, watchdog_interval_s: float | None = None) -> None:
        self.watchdog_interval_s = watchdog_interval_s
        self.messages: list[str] = []
        self.is_ready = threading.Event()

    def ready(self) -> None:
        self.messages.append("ready")
        self.is_ready.set()

    def stopping(self) -> None:
        self.messages.append("stopping")

    def watchdog(self) -> None:
        self.messages.append("watchdog")

    def status(self, text: str) -> None:
        self.messages.append(f"status {text}")

    def extend_start(self, seconds: float) -> None:
        self.messages.append(f"extend {seconds:g}")
