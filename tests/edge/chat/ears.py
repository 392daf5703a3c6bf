"""A listener for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edge.chat.generation import End, Piece
from tests.fakes import DEADLINE_S


class Ear:
    """A listener that keeps what it hears, and may do something at every token."""

    def __init__(self, at_token: Callable[[int], None] = lambda count: None) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.ends: list[End] = []
        self._at_token = at_token
        self._ended = threading.Event()

    def on_piece(self, piece: Piece) -> None:
        assert not self.ends
        self.text += piece.text
        self.tokens += [sampled.token for sampled in piece.tokens]
        self._at_token(len(self.tokens))

    def on_end(self, end: End) -> None:
        self.ends.append(end)
        self._ended.set()

    @property
    def end(self) -> End:
        assert self._ended.wait(DEADLINE_S)
        (end,) = self.ends
        return end
