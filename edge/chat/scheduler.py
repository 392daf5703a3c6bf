"""Who runs next: decisions only, with no device, thread or clock.

Sequences get a lane in the order in which they came. A step either runs the prompt of one of them,
a chunk at a time, or one token of every sequence whose prompt is done. The two take turns, so that
a long prompt delays the others by one chunk at a time. Of several prompts the one with least left
and the oldest take turns: short ones are not kept waiting, and long ones come to an end.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Generic

import numpy as np

from edge.chat.decoder import IntArray, capacity_for
from edge.chat.prefix import MIN_COPIED, longest_prefix, place
from edge.chat.sequence import Lane, S
from edge.chat.step import Move, Part, Step
from edge.errors import QueueFullError

# An idle lane between busy ones is computed in vain at every step; to swap two lanes costs about as
# much as this many times. Then busy lanes become neighbours, and at most twice the best is spent.
IDLE_ROWS_PER_MOVE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """Bounds of a scheduler.

    max_waiting: sequences without a lane. chunk: tokens of a prompt in one step. shared_chunk:
    the same while other sequences wait for their next token. roomy_steps: a cache that grows is
    read in its whole length at every step; when no sequence has needed more than a quarter of it
    for so many steps, it shrinks.
    """

    max_waiting: int = 64
    chunk: int = 512
    shared_chunk: int = 64
    roomy_steps: int = 64


class Scheduler(Generic[S]):
    """The sequences that wait and run. Not thread-safe.

    A step that `plan` gave has been carried out, and `advance` called for each of its parts, before
    anything else is called. shrinks: whether the decoder's cache grows and shrinks.
    """

    def __init__(
        self, *, lanes: int, context: int, options: SchedulerOptions, shrinks: bool = False
    ) -> None:
        self._lanes: list[Lane[S]] = [Lane(index=index) for index in range(lanes)]
        self._waiting: deque[S] = deque()
        self._context = context
        self._options = options
        self._shrinks = shrinks
        self._admitted = 0
        self._prefill_is_next = True
        self._oldest_is_next = False
        self._idle_rows = 0
        self._capacity = 0  # of the cache, if it grows
        self._roomy_steps = 0
        self._all_rows = np.zeros((lanes, 1), np.int64)

    @property
    def waiting(self) -> int:
        """How many sequences have no lane yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many lanes have a sequence."""
        return sum(lane.sequence is not None for lane in self._lanes)

    @property
    def lanes(self) -> tuple[Lane[S], ...]:
        """All lanes, to be read only."""
        return tuple(self._lanes)

    def ahead(self, sequence: S) -> int | None:
        """Return how many will get a lane before a waiting sequence; None if it does not wait."""
        return next((i for i, other in enumerate(self._waiting) if other is sequence), None)

    def add(self, sequence: S) -> None:
        """Put a sequence into line; raises QueueFullError if no lane is free and the line full."""
        if len(self._waiting) >= self._options.max_waiting + len(self._lanes) - self.running:
            raise QueueFullError(
                f"{self.running} sequences run and {len(self._waiting)} wait; retry later"
            )
        self._waiting.append(sequence)

    def remove(self, sequence: S) -> None:
        """Take a sequence out, wherever it is; its lane keeps what has been computed."""
        lane = self._lane_of(sequence)
        if lane is not None:
            lane.sequence = None
        else:
            with contextlib.suppress(ValueError):  # it may have ended
                self._waiting.remove(sequence)

    def forget(self, lane: Lane[S]) -> None:
        """Free a lane and do not use what it holds."""
        lane.sequence = None
        lane.keep(0)

    def clear(self) -> list[S]:
        """Take all sequences out and return them."""
        gone = [lane.sequence for lane in self._lanes if lane.sequence is not None]
        gone += self._waiting
        self._waiting.clear()
        for lane in self._lanes:
            lane.sequence = None
        return gone

    def plan(self) -> Step[S] | None:
        """Give lanes to those that wait and return the next step; None if there is none."""
        moves: list[Move] = []
        self._admit(moves)
        while True:
            pending = [lane for lane in self._lanes if lane.pending > 1]
            ready = [lane for lane in self._lanes if lane.pending == 1]
            if not pending and not ready:
                return None
            if not pending or (ready and not self._prefill_is_next):
                self._prefill_is_next = True
                return self._decode_step(ready, moves)
            lane = self._next_prompt(pending)
            self._take_prefix(lane, moves)
            if lane.pending > 1:
                self._prefill_is_next = False
                return self._prefill_step(lane, moves, is_shared=bool(ready))

    def advance(self, part: Part[S], appended: int) -> None:
        """Note that a part has run, and how many tokens its sequence got by it.

        The first may be any; every other continued the draft.
        """
        filled = part.start + part.fed + max(0, appended - 1)
        part.lane.tokens = part.sequence.tokens[:filled]
        part.sequence.draft = ()

    def _lane_of(self, sequence: S) -> Lane[S] | None:
        return next((lane for lane in self._lanes if lane.sequence is sequence), None)

    def _admit(self, moves: list[Move]) -> None:
        while self._waiting:
            prompt = self._waiting[0].tokens
            placement = place(prompt, self._lanes)
            if placement is None:
                return
            lane = placement.lane
            if placement.source is not None:
                moves.append(_copy(placement.source, lane, placement.reused))
            self._admitted += 1
            lane.sequence = self._waiting.popleft()
            lane.sequence.reused = placement.reused
            lane.tokens = prompt[: placement.reused]
            lane.used = self._admitted

    def _prefill_step(self, lane: Lane[S], moves: list[Move], *, is_shared: bool) -> Step[S]:
        sequence = _sequence_in(lane)
        most = self._options.shared_chunk if is_shared else self._options.chunk
        start, fed = lane.filled, min(lane.pending, most)
        part = Part(
            sequence=sequence,
            lane=lane,
            row=0,
            start=start,
            fed=fed,
            samples=fed == lane.pending,
        )
        return Step(
            first=lane.index,
            tokens=sequence.tokens[None, start : start + fed],
            start=np.array([start]),
            rows=np.array([[fed - 1]]),
            parts=(part,),
            is_prefill=True,
            moves=tuple(moves),
            shrink=self._shrinkage(start + fed),
        )

    def _next_prompt(self, pending: list[Lane[S]]) -> Lane[S]:
        self._oldest_is_next = not self._oldest_is_next
        if self._oldest_is_next:
            return min(pending, key=lambda lane: lane.used)
        return min(pending, key=lambda lane: (lane.pending, lane.used))

    def _take_prefix(self, lane: Lane[S], moves: list[Move]) -> None:
        """Copy what another lane has computed of a prompt since its sequence got this one."""
        sequence = _sequence_in(lane)
        best, common = longest_prefix(sequence.tokens, self._lanes)
        if best is not None and common - lane.filled >= MIN_COPIED:
            moves.append(_copy(best, lane, common))
            sequence.reused += common - lane.filled
            lane.tokens = sequence.tokens[:common]

    def _decode_step(self, ready: list[Lane[S]], moves: list[Move]) -> Step[S]:
        lanes = self._span(ready)
        if len(lanes) > len(ready):
            self._idle_rows += len(lanes) - len(ready)
            if self._idle_rows >= IDLE_ROWS_PER_MOVE:
                self._idle_rows = 0
                self._gather(ready, moves)
                ready = [lane for lane in self._lanes if lane.pending == 1]
                lanes = self._span(ready)
        width = self._width(lanes, ready)
        shrink = self._shrinkage(max(lane.filled for lane in lanes if lane.sequence) + width)
        room = self._capacity if self._shrinks else self._context
        tokens = np.zeros((len(lanes), width), np.int64)
        parts = []
        for row, lane in enumerate(lanes):
            if lane.pending == 1:
                part = _next_token(lane, row, width)
                tokens[row, 0] = part.sequence.tokens[-1]
                tokens[row, 1 : 1 + len(part.draft)] = part.draft
                parts.append(part)
            elif lane.sequence is None:
                lane.keep(room - width)  # what runs there is written behind what it holds
        return Step(
            first=lanes[0].index,
            tokens=tokens,
            start=np.array([lane.filled for lane in lanes]),
            rows=self._row_numbers(len(lanes), width),
            parts=tuple(parts),
            is_prefill=False,
            moves=tuple(moves),
            shrink=shrink,
        )

    def _row_numbers(self, lanes: int, width: int) -> IntArray:
        if width > self._all_rows.shape[1]:
            self._all_rows = np.tile(np.arange(width), (len(self._lanes), 1))
        return self._all_rows[:lanes, :width]

    def _span(self, ready: list[Lane[S]]) -> list[Lane[S]]:
        return self._lanes[ready[0].index : ready[-1].index + 1]

    def _width(self, lanes: list[Lane[S]], ready: list[Lane[S]]) -> int:
        """Return how many tokens each lane runs: no lane may run beyond the context."""
        longest = max(len(lane.sequence.draft) for lane in ready if lane.sequence is not None)
        if longest == 0:
            return 1
        room = min(self._context - lane.filled for lane in lanes if lane.sequence is not None)
        return min(1 + longest, room)

    def _gather(self, ready: list[Lane[S]], moves: list[Move]) -> None:
        """Swap lanes until those that are ready are neighbours, with as few swaps as possible."""
        inside = [lane.pending == 1 for lane in self._lanes]
        size = len(ready)
        begin = max(range(len(inside) - size + 1), key=lambda i: sum(inside[i : i + size]))
        window = range(begin, begin + size)
        holes = [i for i in window if not inside[i]]
        strays = [lane.index for lane in ready if lane.index not in window]
        for hole, stray in zip(holes, strays, strict=True):
            one, other = self._lanes[hole], self._lanes[stray]
            length = max(one.filled, other.filled)
            moves.append(Move(kind="swap", source=stray, target=hole, length=length))
            one.index, other.index = stray, hole
            self._lanes[hole], self._lanes[stray] = other, one

    def _shrinkage(self, needed: int) -> int | None:
        """Return to how many positions the cache should shrink, if it should.

        needed: positions that this step writes to.
        """
        if not self._shrinks:
            return None
        self._capacity = max(self._capacity, capacity_for(needed, self._context))
        lengths = [lane.sequence.length for lane in self._lanes if lane.sequence is not None]
        enough = 2 * capacity_for(max(lengths, default=needed), self._context)
        self._roomy_steps = self._roomy_steps + 1 if 2 * enough <= self._capacity else 0
        if self._roomy_steps < self._options.roomy_steps:
            return None
        self._roomy_steps, self._capacity = 0, enough
        for lane in self._lanes:
            lane.keep(enough)
        return enough


def _copy(source: Lane[S], target: Lane[S], length: int) -> Move:
    return Move(kind="copy", source=source.index, target=target.index, length=length)


def _next_token(lane: Lane[S], row: int, width: int) -> Part[S]:
    sequence = _sequence_in(lane)
    return Part(
        sequence=sequence,
        lane=lane,
        row=row,
        start=lane.filled,
        fed=1,
        samples=True,
        draft=sequence.draft[: width - 1],
    )


def _sequence_in(lane: Lane[S]) -> S:
    assert lane.sequence is not None  # noqa: S101 - only lanes with pending tokens are asked
    return lane.sequence
