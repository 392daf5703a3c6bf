"""What a client gets of a request's generations: pieces of a stream, or one body at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge.chat.generation import End, GenerationRequest, Piece

SSE = "text/event-stream"


class Answer(Protocol):
    """Bytes made of what the generations of one request give. For one thread at a time."""

    @property
    def is_stream(self) -> bool:
        """Whether bytes are sent as they come."""

    @property
    def content_type(self) -> str:
        """Return the header of this name."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes: all have ended, or one failed, so that others may be cancelled."""

    def open(self) -> bytes:
        """Return the first bytes of a stream; none otherwise."""

    def piece(self, index: int, piece: Piece) -> bytes:
        """Return what is to be sent now of generation `index`; none unless it is a stream."""

    def end(self, index: int, end: End) -> bytes:
        """Return the last bytes of a generation, or the whole body once all have ended.

        An error is the last event of a stream of events, in the API's form. In any other answer
        it is raised, an EdgeError: if there have been bytes already, cut the connection.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a request has become. answer: knows the generations by their place in this tuple."""

    generations: tuple[GenerationRequest, ...]
    answer: Answer
