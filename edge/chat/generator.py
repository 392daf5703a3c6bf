"""The Generator: the one thread that owns a Decoder, and the line of those who wait for it.

Each turn of the thread plans a step under the lock and runs it without.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from edge.chat.counters import Counters
from edge.chat.decoder import Decoder
from edge.chat.drafting import Drafter
from edge.chat.generation import Generation, GenerationRequest, Listener, check_request
from edge.chat.scheduler import Scheduler, SchedulerOptions
from edge.chat.spec import DecoderSpec
from edge.chat.stepper import UNREADY_AFTER_FAILURES, Stepper
from edge.errors import InferenceError, NotReadyError

# For a step that still runs when the time to stop is over.
LAST_STEP_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorOptions:
    """How a generator runs.

    draft_tokens: of a draft, 0 makes none. draft_lanes: with more sequences no drafts are made,
    as a step's cost grows with its tokens. stall_timeout_s: of a step that hangs.
    """

    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    draft_tokens: int = 0
    draft_lanes: int = 1
    stall_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What there is once the decoder is open."""

    decoder: Decoder
    spec: DecoderSpec
    eos: frozenset[int]
    draft_tokens: int
    scheduler: Scheduler[Generation]
    stepper: Stepper


class Generator:
    """Runs the generations of one chat model. All methods may be called from any thread.

    flush: called in the thread once listeners have been told what a step gave.
    """

    def __init__(
        self,
        name: str,
        open_decoder: Callable[[], Decoder],
        *,
        options: GeneratorOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.counters: Counters[Generation] = Counters()
        self.flush: Callable[[], None] = lambda: None
        self._open_decoder = open_decoder
        self._options = options
        self._clock = clock
        self._opened: Future[_Opened] = Future()
        self._changed = threading.Condition()  # guards the scheduler and what follows
        self._cancelled: list[Generation] = []
        self._is_open = False
        self._is_aborted = False
        # A daemon, so that a hung backend call cannot keep the process from exiting.
        self._thread = threading.Thread(target=self._main, name=f"generator-{name}", daemon=True)

    def start(self) -> None:
        """Open the decoder in the thread and wait for it; raises what opening raised."""
        self._thread.start()
        self._opened.result()

    @property
    def spec(self) -> DecoderSpec:
        """What the graph is; only once started, as all that follows."""
        return self._inside.spec

    def submit(self, request: GenerationRequest, listener: Listener) -> Generation:
        """Put a generation into line; its listener hears of it from the thread.

        Raises InputError for a prompt that the model cannot take, ContextLengthError for one that
        leaves no room for an answer, QueueFullError if too many wait, NotReadyError once stopping.
        """
        inside = self._inside
        check_request(request, inside.spec)
        generation = Generation(
            request,
            listener,
            context=inside.spec.context,
            eos=inside.eos,
            drafter=Drafter(inside.draft_tokens) if inside.draft_tokens else None,
            now=self._clock(),
        )
        with self._changed:
            if not self._is_open:
                raise self._stopping()
            inside.scheduler.add(generation)
            self._changed.notify()
        return generation

    def cancel(self, generation: Generation) -> None:
        """End a generation before the next step; does nothing if it has ended."""
        with self._changed:
            self._cancelled.append(generation)
            self._changed.notify()

    def ahead(self, generation: Generation) -> int | None:
        """Return how many will get a lane before a waiting generation; None if it has one."""
        with self._changed:
            return self._inside.scheduler.ahead(generation)

    def close(self) -> None:
        """Refuse new generations; see `stop`."""
        with self._changed:
            self._is_open = False
            self._changed.notify()

    def stop(self, timeout_s: float) -> bool:
        """Refuse new generations, finish the others, close the decoder.

        What has not ended after timeout_s ends with NotReadyError. Returns False if the thread is
        still busy LAST_STEP_S later.
        """
        self.close()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            with self._changed:
                self._is_aborted = True
                self._changed.notify()
            self._thread.join(LAST_STEP_S)
        return not self._thread.is_alive()

    @property
    def is_ready(self) -> bool:
        """Whether the decoder is open, accepting, and did not fail several times in a row."""
        return self._is_open and self._inside.stepper.consecutive_failures < UNREADY_AFTER_FAILURES

    def is_stalled(self, now: float) -> bool:
        """Whether one step has lasted longer than the stall timeout."""
        began = self._inside.stepper.step_began
        return began is not None and now - began > self._options.stall_timeout_s

    @property
    def waiting(self) -> int:
        """How many generations have no lane yet."""
        return self._inside.scheduler.waiting

    @property
    def queue_depth(self) -> int:
        """The number of generations that wait, as every runner of a model tells it."""
        return self.waiting

    @property
    def running(self) -> int:
        """How many lanes have a generation."""
        return self._inside.scheduler.running

    @property
    def lanes(self) -> int:
        """How many generations may run at once."""
        return len(self._inside.scheduler.lanes)

    @property
    def failures(self) -> int:
        """How many steps have failed in a row."""
        return self._inside.stepper.consecutive_failures

    @property
    def cache_use(self) -> float:
        """The share of all positions of the cache that running generations have filled."""
        lanes = self._inside.scheduler.lanes
        filled = sum(lane.filled for lane in lanes if lane.sequence is not None)
        return filled / (len(lanes) * self.spec.context)

    @property
    def _inside(self) -> _Opened:
        return self._opened.result(timeout=0)

    def _main(self) -> None:
        try:
            inside = self._open()
        except BaseException as error:  # noqa: BLE001 - handed to the caller of start
            self._opened.set_exception(error)
            return
        with self._changed:
            self._is_open = True
        self._opened.set_result(inside)
        try:
            while self._turn(inside):
                pass
        except Exception as error:
            logger.critical("generator died name=%s", self.name, exc_info=error)
            self._leave(inside)
        try:
            inside.decoder.close()
        except Exception as error:
            logger.error("not closed name=%s; its memory may be lost", self.name, exc_info=error)

    def _open(self) -> _Opened:
        decoder = self._open_decoder()
        scheduler: Scheduler[Generation] = Scheduler(
            lanes=decoder.lanes,
            context=decoder.spec.context,
            options=_fitting(self._options.scheduler, decoder),
            shrinks=decoder.grows,
        )
        stepper = Stepper(
            self.name,
            decoder,
            scheduler,
            counters=self.counters,
            draft_lanes=self._options.draft_lanes,
            clock=self._clock,
        )
        return _Opened(
            decoder=decoder,
            spec=decoder.spec,
            eos=frozenset(decoder.spec.eos),
            draft_tokens=min(self._options.draft_tokens, decoder.longest_step - 1),
            scheduler=scheduler,
            stepper=stepper,
        )

    def _turn(self, inside: _Opened) -> bool:
        """Run one step, or wait for work; False when all is done."""
        scheduler, stepper = inside.scheduler, inside.stepper
        with self._changed:
            while self._is_open and not (scheduler.running or scheduler.waiting or self._cancelled):
                self._changed.wait()
            gone, self._cancelled = self._cancelled, []
            for generation in gone:
                scheduler.remove(generation)
            step = None if self._is_aborted else scheduler.plan()
            goes_on = self._is_open or step is not None
        for generation in gone:
            if generation.reason is None:
                stepper.end(generation, "cancelled")
        if step is not None:
            stepper.run(step)
        if not goes_on:
            self._leave(inside)
        self.flush()
        return goes_on

    def _leave(self, inside: _Opened) -> None:
        """End what has not ended, and take no more."""
        with self._changed:
            was_open, self._is_open = self._is_open, False
            left = inside.scheduler.clear()
        for generation in left:
            died = InferenceError(f"model {self.name!r} has failed; the agent's log says why")
            inside.stepper.end(generation, "error", died if was_open else self._stopping())

    def _stopping(self) -> NotReadyError:
        return NotReadyError(f"model {self.name!r} is stopping; send the request elsewhere")


def _fitting(options: SchedulerOptions, decoder: Decoder) -> SchedulerOptions:
    longest = decoder.longest_step
    return replace(
        options,
        chunk=min(options.chunk, longest),
        shared_chunk=min(options.shared_chunk, longest),
    )
