"""A recording under way: what it takes, what it holds, when it ends. Used in one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Annotated

import msgspec
import numpy as np

from edge.capture.capture_file import MAX_CAPTURE_BYTES, MAX_SECONDS, EndReason, Exchange

# What the agent holds until it is fetched.
MAX_HELD_BYTES = 64 << 20
MAX_HELD = 10_000


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be recorded. share: of the requests. redact: inputs by name."""

    seconds: Annotated[float, msgspec.Meta(gt=0, le=MAX_SECONDS)] = 60.0
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_CAPTURE_BYTES)] = 64 << 20
    share: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    redact: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()


class Recording:
    """Takes exchanges until a bound is met; never makes a request wait."""

    def __init__(self, wish: Wish, *, clock: Callable[[], float], rng: np.random.Generator) -> None:
        self.wish = wish
        self.started = clock()
        self.dropped = 0
        self.unredactable = 0  # counted by whoever redacts
        self.streamed = 0
        self._clock = clock
        self._rng = rng
        self._held: deque[Exchange] = deque()
        self._held_bytes = 0
        self._total_bytes = 0
        self._ended: EndReason | None = None

    @property
    def end_reason(self) -> EndReason | None:
        """Why nothing more is taken; None while something is."""
        if self._ended is None and self._clock() - self.started > self.wish.seconds:
            self._ended = "time"
        return self._ended

    @property
    def is_empty(self) -> bool:
        """Whether all that was recorded was fetched."""
        return not self._held

    def wants_next(self) -> bool:
        """Whether the request that has come now is one to record."""
        return self.end_reason is None and (
            self.wish.share >= 1.0 or self._rng.random() < self.wish.share
        )

    def add(self, exchange: Exchange) -> None:
        """Hold an exchange, or count it as dropped if there is no memory for it."""
        if self.end_reason not in {None, "time"}:
            return
        size = exchange.size
        if self._total_bytes + size > self.wish.max_bytes:
            self._ended = "bytes"
        elif len(self._held) >= MAX_HELD or self._held_bytes + size > MAX_HELD_BYTES:
            self.dropped += 1
        else:
            self._held.append(exchange)
            self._held_bytes += size
            self._total_bytes += size

    def note_stream(self) -> None:
        """Count a request that is not held, as its answer is streamed."""
        if self.end_reason in {None, "time"}:
            self.streamed += 1

    def stop(self) -> None:
        """Take nothing more."""
        self._ended = self.end_reason or "stopped"

    def take(self, max_bytes: int) -> list[Exchange]:
        """Return the oldest exchanges, at least one if there is one, and hold them no longer."""
        taken: list[Exchange] = []
        while self._held and (not taken or self._held[0].size <= max_bytes):
            exchange = self._held.popleft()
            max_bytes -= exchange.size
            self._held_bytes -= exchange.size
            taken.append(exchange)
        return taken
