"""A sequence, and the lane of the cache that it runs in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from edge.chat.decoder import IntArray

S = TypeVar("S", bound="Sequence")


class Sequence:
    """The tokens of one generation: those of its prompt, then what has been generated.

    limit: how many tokens it may have in all, more than the prompt has. draft: what its next
    tokens may be; they are run along with the last one, and count only if they come out.
    reused: tokens of the prompt that were in the cache already.
    """

    def __init__(self, prompt: IntArray, *, limit: int) -> None:
        self._tokens = np.empty(limit, np.int64)
        self._tokens[: len(prompt)] = prompt
        self.prompt_length = self.length = len(prompt)
        self.limit = limit
        self.draft: tuple[int, ...] = ()
        self.reused = 0

    @property
    def tokens(self) -> IntArray:
        """All tokens so far; a view."""
        return self._tokens[: self.length]

    @property
    def generated(self) -> int:
        """How many tokens came after the prompt."""
        return self.length - self.prompt_length

    def append(self, token: int) -> None:
        """Add a token that was generated."""
        self._tokens[self.length] = token
        self.length += 1


def _no_tokens() -> IntArray:
    return np.empty(0, np.int64)


@dataclass(slots=True, eq=False, kw_only=True)
class Lane(Generic[S]):
    """A row of the cache. A sequence that ends leaves its tokens here, for who continues them.

    tokens: those whose keys and values the lane holds, at positions 0, 1, ...
    used: when it was last given to a sequence; the higher the later.
    """

    index: int
    sequence: S | None = None
    tokens: IntArray = field(default_factory=_no_tokens)
    used: int = 0

    @property
    def filled(self) -> int:
        """How many positions hold keys and values that count."""
        return len(self.tokens)

    @property
    def pending(self) -> int:
        """How many tokens of its sequence have not been run yet."""
        return 0 if self.sequence is None else self.sequence.length - len(self.tokens)

    def keep(self, length: int) -> None:
        """Forget all positions from length on."""
        self.tokens = self.tokens[:length]
