"""Carries out steps: runs them, samples from their logits and tells the listeners.

What fails ends the sequences it belongs to with an error; nothing is raised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from edge.chat.counters import Counters, Reason
from edge.chat.decoder import Decoder, FloatArray
from edge.chat.generation import Generation
from edge.chat.scheduler import Scheduler
from edge.chat.sequence import Lane
from edge.chat.step import Part, Step, carry_out
from edge.errors import EdgeError, InferenceError

UNREADY_AFTER_FAILURES = 3

logger = logging.getLogger(__name__)


class Stepper:
    """Belongs to the thread that owns the decoder.

    draft_lanes: with more sequences no drafts are made. step_began: when the step that runs began.
    """

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        scheduler: Scheduler[Generation],
        *,
        counters: Counters[Generation],
        draft_lanes: int,
        clock: Callable[[], float],
    ) -> None:
        self.consecutive_failures = 0
        self.step_began: float | None = None
        self._name = name
        self._decoder = decoder
        self._scheduler = scheduler
        self._counters = counters
        self._draft_lanes = draft_lanes
        self._clock = clock

    def run(self, step: Step[Generation]) -> None:
        """Carry out a step of the scheduler."""
        began = self.step_began = self._clock()
        try:
            logits = carry_out(step, self._decoder, top=_top_of(step))
        except Exception as error:  # noqa: BLE001 - one step must not end the loop
            self.step_began = None
            self._fail_step(step, error)
            return
        self.step_began = None
        now = self._clock()
        self._counters.note_step(step, now - began)
        if self.consecutive_failures:
            logger.info("model recovered name=%s", self._name)
            self.consecutive_failures = 0
        for part in step.parts:
            generation = part.sequence
            if generation.began is None:
                generation.began = began
                self._counters.queue_s.add(began - generation.submitted)
                self._counters.prompt_tokens += generation.prompt_length
            if part.samples:
                self._take(part, logits[part.row], now)
            else:
                self._scheduler.advance(part, 0)
        for part in step.parts:
            if part.sequence.drafter is not None:
                self._draft(part.sequence)

    def end(self, generation: Generation, reason: Reason, error: EdgeError | None = None) -> None:
        """Tell a listener that its generation is over; the scheduler must be rid of it."""
        generation.reason = reason
        now = self._clock()
        self._counters.ended[reason] += 1
        self._counters.total_s.add(now - generation.submitted)
        try:
            generation.listener.on_end(generation.end(reason, now, error))
        except Exception as failure:
            logger.error("listener failed name=%s", self._name, exc_info=failure)

    def _take(self, part: Part[Generation], rows: FloatArray, now: float) -> None:
        """Sample, and tell the listener what came."""
        generation = part.sequence
        try:
            piece, appended = generation.take(rows, part.draft)
        except Exception as error:  # noqa: BLE001 - a sampler must not end the loop
            self._fail(part.lane, error)
            return
        self._scheduler.advance(part, appended)
        self._count(part, appended, now)
        if generation.reason is not None:
            self._scheduler.remove(generation)
        if piece.text or piece.tokens:
            try:
                generation.listener.on_piece(piece)
            except Exception as error:
                logger.error("listener failed name=%s", self._name, exc_info=error)
                self._scheduler.remove(generation)
                self.end(generation, "error", _inference_error(self._name, error))
                return
        if generation.reason is not None:
            self.end(generation, generation.reason)

    def _count(self, part: Part[Generation], appended: int, now: float) -> None:
        generation, counters = part.sequence, self._counters
        counters.generated_tokens += appended
        if generation.last is None:
            generation.first = now
            counters.first_token_s.add(now - generation.submitted)
            counters.reused_tokens += generation.reused
            counters.prefix_hits += generation.reused > 0
        else:
            counters.between_tokens_s.add((now - generation.last) / appended, appended)
        generation.last = now
        if part.draft and generation.drafter is not None:
            counters.drafted += len(part.draft)
            counters.accepted += appended - 1
            generation.drafter.note(appended - 1)

    def _draft(self, generation: Generation) -> None:
        if generation.reason is None and generation.generated and generation.drafter is not None:
            room = generation.limit - generation.length - 1
            if self._scheduler.running <= self._draft_lanes:
                generation.draft = generation.drafter.draft(generation.tokens, room)

    def _fail_step(self, step: Step[Generation], error: Exception) -> None:
        self._counters.failed_steps += 1
        self.consecutive_failures += 1
        if self.consecutive_failures == 1:
            expected = isinstance(error, EdgeError)
            logger.error(
                "step failed name=%s: %s", self._name, error, exc_info=None if expected else error
            )
        elif self.consecutive_failures == UNREADY_AFTER_FAILURES:
            logger.error("model unready name=%s failures=%d", self._name, UNREADY_AFTER_FAILURES)
        # Where lanes were to be moved, nobody knows what is in any of them.
        lanes = self._scheduler.lanes if step.moves else [part.lane for part in step.parts]
        for lane in lanes:
            self._fail(lane, error)

    def _fail(self, lane: Lane[Generation], error: Exception) -> None:
        """Empty a lane and end its sequence, if it has one, with an error."""
        generation = lane.sequence
        self._scheduler.forget(lane)
        try:
            self._decoder.clear_lane(lane.index)
        except Exception as another:
            logger.error("lane %d not cleared name=%s", lane.index, self._name, exc_info=another)
        if generation is not None:
            self.end(generation, "error", _inference_error(self._name, error))


def _top_of(step: Step[Generation]) -> int | None:
    """Return how many of the largest logits decide on all tokens of a step; None is all."""
    most = 1
    for part in step.parts:
        if part.samples:
            top = part.sequence.top
            if top is None:
                return None
            most = max(most, top)
    return most


def _inference_error(name: str, error: Exception) -> EdgeError:
    if isinstance(error, EdgeError):
        return error
    wrapped = InferenceError(f"model {name!r} failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
