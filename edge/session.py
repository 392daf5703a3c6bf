"""The seam every backend implements: an opened model that can run.

Four promises, one contract suite (tests/session_contract.py) for every implementation:
feeds are checked against specs and profile before the device is touched; returned arrays belong
to the caller and are never written again; state stays on the device; close is idempotent.
Precision, threads, streams and graph capture are constructor matters, never in the Protocol.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

from edge.spec import AnyArray, Feeds, TensorSpec

# So long without a request, a session may do what makes later runs faster; see `prepare`.
PAUSE_S = 0.02

Finish = Callable[[], dict[str, AnyArray]]


class Session(Protocol):
    """An opened model. Not thread-safe: one Worker owns it from open to close."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that `run` takes; state inputs are excluded."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that `run` gives; state outputs are excluded."""

    def run(self, feeds: Feeds) -> dict[str, AnyArray]:
        """Return every output for one set of feeds.

        Raises InputError for feeds outside specs or profile, InferenceError if the backend fails.
        """

    def reset_state(self) -> None:
        """Forget all device state; a no-op for a model without state."""

    def close(self) -> None:
        """Free the model; further calls of `run` raise InferenceError, of `close` do nothing."""


class AnyThreadSession(Session, Protocol):
    """A Session whose `run` may be called from any thread, one at a time."""

    @property
    def runs_anywhere(self) -> bool:
        """True; where there is no such attribute, only the thread that opened it may run it."""


class PreparingSession(Session, Protocol):
    """A Session that can make later runs faster, in the thread that runs it."""

    @property
    def is_prepared(self) -> bool:
        """Whether `prepare` has nothing to do."""

    def prepare(self) -> None:
        """Do one piece of that work; it may take a tenth of a second, so it is for a pause."""


class PipelinedSession(Session, Protocol):
    """A Session whose device computes while the host prepares the next run."""

    @property
    def depth(self) -> int:
        """How many runs may have begun and not finished; with 1 there is no `start`."""

    def start(self, feeds: Feeds) -> Finish:
        """Begin a run and return what waits for it and gives its outputs; raises as `run`.

        The feeds have been read when this returns. Runs end in the order of their beginning.
        """


def is_prepared(session: Session) -> bool:
    """Whether a session has nothing to do in a pause; see `PreparingSession`."""
    prepared: bool = getattr(session, "is_prepared", True)
    return prepared


def prepare(session: Session) -> None:
    """Let a session use a pause; see `PreparingSession`."""
    session.prepare()  # type: ignore[attr-defined] # is_prepared has said that it can


def start_of(session: Session) -> Callable[[Feeds], Finish]:
    """Return how a run begins; where the session cannot do it in two steps, all is in the last."""
    if getattr(session, "depth", 1) > 1:
        start: Callable[[Feeds], Finish] = session.start  # type: ignore[attr-defined] # see above
        return start
    return lambda feeds: functools.partial(session.run, feeds)
