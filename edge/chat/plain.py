"""`POST /chat`: a question and its answer, for who has no client of OpenAI's API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from edge.chat.answer import JSON, AnswerHead, finish_reason, usage
from edge.chat.answer_parser import AnswerForm, AnswerParser, Pieces
from edge.chat.generation import End, Piece
from edge.chat.openai_request import (
    MAX_BODY_BYTES,
    ChatCompletionRequest,
    Message,
    check_count,
    check_stops,
)
from edge.errors import InferenceError
from edge.http_answer import too_large
from edge.openai_form import FieldError, decoded

TEXT = "text/plain; charset=utf-8"


class PlainRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A question. history: messages before it, in OpenAI's form."""

    query: str
    model: str | None = None
    system: str | None = None
    history: list[Message] = []
    stream: bool = False
    max_tokens: int | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=2.0)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    enable_thinking: bool | None = None


class _Addressed(msgspec.Struct, frozen=True):
    model: str | None = None


_ADDRESSED = msgspec.json.Decoder(_Addressed)
_REQUEST = msgspec.json.Decoder(PlainRequest)


def model_of_plain(body: bytes) -> str | None:
    """Return the model that a question names, None if it leaves that open; raises InputError."""
    if len(body) > MAX_BODY_BYTES:
        raise too_large(MAX_BODY_BYTES)
    return decoded(_ADDRESSED, body, "question").model


def plain_request(body: bytes) -> PlainRequest:
    """Return what a body asks of `/chat`; raises InputError."""
    request = decoded(_REQUEST, body, "question")
    if not request.query:
        raise FieldError("query is empty; ask something", "query")
    check_count(request.max_tokens, "max_tokens")
    check_stops([request.stop] if isinstance(request.stop, str) else request.stop or [])
    return request


def chat_request_from_plain(plain: PlainRequest, model: str) -> ChatCompletionRequest:
    """Return a question as a conversation with a model."""
    system = [] if plain.system is None else [Message(role="system", content=plain.system)]
    return ChatCompletionRequest(
        model=model,
        messages=[*system, *plain.history, Message(role="user", content=plain.query)],
        stream=plain.stream,
        max_tokens=plain.max_tokens,
        temperature=plain.temperature,
        seed=plain.seed,
        stop=plain.stop,
        enable_thinking=plain.enable_thinking,
    )


class PlainAnswer:
    """An answer as `{"answer": ...}`, or as a stream of its text alone; see Answer."""

    def __init__(self, head: AnswerHead, *, form: AnswerForm, new_id: Callable[[], str]) -> None:
        self.is_stream = head.is_stream
        self.content_type = TEXT if head.is_stream else JSON
        self.is_over = False
        self._head = head
        self._parser = AnswerParser(form, new_id)
        self._reasoning: list[str] = []
        self._content: list[str] = []

    def open(self) -> bytes:
        """Return nothing: what comes first is the text."""
        return b""

    def piece(self, index: int, piece: Piece) -> bytes:
        """Return what is to be sent now; none unless it is a stream."""
        return self._taken(self._parser.push(piece.text))

    def end(self, index: int, end: End) -> bytes:
        """Return the last bytes, or all of them; raises EdgeError."""
        self.is_over = True
        if end.reason == "error":
            raise end.error or InferenceError("the generation failed")
        last = self._taken(self._parser.finish())
        if self.is_stream:
            return last
        answer = {
            "answer": "".join(self._content),
            "model": self._head.model,
            "finish_reason": finish_reason(end),
            "usage": usage([end], 1),
        }
        reasoning = "".join(self._reasoning)
        return msgspec.json.encode({**answer, "reasoning": reasoning} if reasoning else answer)

    def _taken(self, pieces: Pieces) -> bytes:
        if self.is_stream:
            return pieces.content.encode()
        self._reasoning.append(pieces.reasoning)
        self._content.append(pieces.content)
        return b""
