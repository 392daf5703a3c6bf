"""How many lanes of how many positions a cache may have, where memory is short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge.chat.spec import DecoderSpec

# Shorter ones serve hardly a conversation: before the context is made shorter, lanes are given up.
SMALLEST_CONTEXT = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The cache of a decoder: rows, and positions in each."""

    lanes: int
    context: int

    def size_bytes(self, spec: DecoderSpec) -> int:
        """Return what the cache takes at most."""
        context = spec.context if spec.is_fixed else self.context
        return self.lanes * context * spec.position_bytes


def room_for(
    spec: DecoderSpec,
    *,
    lanes: int,
    context: int | None,
    problem: Callable[[int], str | None],
) -> tuple[Room, str | None]:
    """Return the largest room that fits, and why even the smallest does not if so.

    lanes: not of a spec that fixes them. context: None takes as many positions as fit, halving the
    model's. problem: why a cache of so
    many bytes does not fit, None if it does.
    """
    room = Room(lanes=spec.lanes or lanes, context=min(spec.context, context or spec.context))
    smallest = min(SMALLEST_CONTEXT, spec.context)
    if context is not None or spec.is_fixed:
        smallest = room.context
    while (reason := problem(room.size_bytes(spec))) is not None:
        if room.context > smallest:
            room = Room(lanes=room.lanes, context=max(smallest, room.context // 2))
        elif room.lanes > 1 and spec.lanes is None:
            room = Room(lanes=room.lanes // 2, context=room.context)
        else:
            return room, reason
    return room, None
