"""What a generator has done so far, as numbers that only grow. Written by its thread alone."""

from __future__ import annotations

from bisect import bisect_left
from typing import Generic, Literal

from edge.chat.sequence import S
from edge.chat.step import Step

Reason = Literal["stop", "length", "cancelled", "error"]

# Seconds: from a token of a small model on a GPU to a long prompt on a CPU.
BOUNDS_S = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.010, 0.015, 0.020, 0.030, 0.050, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0),
)


class Histogram:
    """How many values were at most each of BOUNDS_S; the last count is of those above all."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a value, several times if need be."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += times
        self.sum_s += seconds * times

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


class Counters(Generic[S]):
    """Sequences, tokens, steps and times.

    prompt_tokens, reused_tokens: of sequences that got a lane; reused ones were in the cache.
    prefix_hits: sequences that reused any. rows: lanes of all decode steps, idle_rows: of these
    without a sequence. moves: lanes copied or swapped. drafted, accepted: tokens of drafts, and
    those that came out.
    Histograms: queue_s until a sequence has a lane, first_token_s until its first token,
    between_tokens_s, total_s until its end.
    """

    def __init__(self) -> None:
        self.ended: dict[Reason, int] = {"stop": 0, "length": 0, "cancelled": 0, "error": 0}
        self.prompt_tokens = self.reused_tokens = self.prefix_hits = 0
        self.generated_tokens = 0
        self.prefill_steps = self.decode_steps = self.failed_steps = 0
        self.prefill_s = self.decode_s = 0.0
        self.rows = self.idle_rows = self.moves = self.shrinks = 0
        self.drafted = self.accepted = 0
        self.queue_s, self.first_token_s = Histogram(), Histogram()
        self.between_tokens_s, self.total_s = Histogram(), Histogram()

    def note_step(self, step: Step[S], seconds: float) -> None:
        """Count a step that has run."""
        self.moves += len(step.moves)
        self.shrinks += step.shrink is not None
        if step.is_prefill:
            self.prefill_steps += 1
            self.prefill_s += seconds
        else:
            self.decode_steps += 1
            self.decode_s += seconds
            self.rows += len(step.tokens)
            self.idle_rows += len(step.tokens) - len(step.parts)
