"""Which lane a prompt runs in, so that as little of it as possible is computed again."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Generic

from edge.chat.decoder import IntArray
from edge.chat.sequence import Lane, S

# To copy a position costs far less than to compute it; fewer are not worth a call per layer.
MIN_COPIED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement(Generic[S]):
    """The lane for a prompt, and how many of its tokens need not be run.

    source: the lane whose first positions are to be copied before; None if they are there.
    """

    lane: Lane[S]
    reused: int
    source: Lane[S] | None = None


def common_length(one: IntArray, other: IntArray) -> int:
    """Return how many tokens two lists of tokens begin with in common."""
    shorter = min(len(one), len(other))
    if shorter == 0 or one[0] != other[0]:
        return 0
    differs = one[:shorter] != other[:shorter]
    at = int(differs.argmax())
    return at if differs[at] else shorter


def place(prompt: IntArray, lanes: ListLike[Lane[S]]) -> Placement[S] | None:
    """Return where a prompt should run; None if all lanes are busy.

    The lane that holds most of the prompt is continued, unless it is busy or would lose more than
    it gives; then its positions are copied to the lane that has gone unused for longest. At least
    the last token of the prompt is left to run, for its logits.
    """
    free = [lane for lane in lanes if lane.sequence is None]
    if not free:
        return None
    oldest = min(free, key=lambda lane: (lane.filled > 0, lane.used))
    best, common = longest_prefix(prompt, lanes)
    if best is None:
        return Placement(lane=oldest, reused=0)
    if best.sequence is None and (best is oldest or 2 * common >= best.filled):
        return Placement(lane=best, reused=common)
    there = min(common_length(prompt, oldest.tokens), len(prompt) - 1)
    if common - there >= MIN_COPIED:
        return Placement(lane=oldest, reused=common, source=best)
    return Placement(lane=oldest, reused=there)


def longest_prefix(
    prompt: IntArray, lanes: Iterable[Lane[S]]
) -> tuple[Lane[S], int] | tuple[None, int]:
    """Return the lane that holds most of a prompt's beginning, and how much.

    Never the whole prompt: see `place`. Of equals a free one, of these the one with least besides.
    """
    best, most, order = None, 0, (False, 0)
    for lane in lanes:
        common = min(common_length(prompt, lane.tokens), len(prompt) - 1)
        own = (lane.sequence is None, -lane.filled)
        if common > most or (common == most > 0 and own > order):
            best, most, order = lane, common, own
    return (best, most) if best is not None else (None, 0)
