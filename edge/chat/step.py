"""What the scheduler has decided, for who owns the decoder to carry out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal

from edge.chat.decoder import Decoder, FloatArray, IntArray
from edge.chat.sequence import Lane, S


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A copy from lane source to target, or an exchange of both; see `Decoder`."""

    kind: Literal["copy", "swap"]
    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Generic[S]):
    """One sequence's share of a step.

    row: its place in the step's arrays. start: position of its first token. fed: how many of its
    tokens are run. draft: tokens run behind them, which may turn out wrong.
    samples: whether its next token follows; then its logits are those of the last fed token and
    of every token of the draft, in this order, from index 0 on.
    """

    sequence: S
    lane: Lane[S]
    row: int
    start: int
    fed: int
    samples: bool
    draft: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[S]):
    """One call of `Decoder.step`: lanes first..first+n-1, some of which may be idle.

    moves: to be made before, in this order. shrink: positions to keep, after the moves.
    """

    first: int
    tokens: IntArray  # [n, tokens]
    start: IntArray  # [n]
    rows: IntArray  # [n, wanted]
    parts: tuple[Part[S], ...]
    is_prefill: bool
    moves: tuple[Move, ...] = ()
    shrink: int | None = None


def carry_out(step: Step[S], decoder: Decoder, *, top: int | None = None) -> FloatArray:
    """Return the logits of a step [n, wanted, vocabulary]; see `Decoder.step`."""
    for move in step.moves:
        run = decoder.copy_lane if move.kind == "copy" else decoder.swap_lanes
        run(move.source, move.target, move.length)
    if step.shrink is not None:
        decoder.shrink(step.shrink)
    return decoder.step(step.first, step.tokens, step.start, step.rows, top=top)
