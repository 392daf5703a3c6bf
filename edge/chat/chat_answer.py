"""The answer of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edge.chat.answer import AnswerHead, OpenAiAnswer, token_logprobs
from edge.chat.answer_parser import AnswerForm, AnswerParser, Pieces
from edge.chat.generation import Piece
from edge.chat.tokenizer import ChatTokenizer
from edge.chat.tools import ToolCall


class _Choice:
    """One message as it comes. logprobs: None if they were not asked for."""

    def __init__(self, parser: AnswerParser, *, has_logprobs: bool) -> None:
        self.parser = parser
        self.reasoning: list[str] = []
        self.content: list[str] = []
        self.calls: list[ToolCall] = []
        self.logprobs: list[dict[str, Any]] | None = [] if has_logprobs else None
        self.finish_reason: str | None = None


class ChatAnswer(OpenAiAnswer):
    """Messages of an assistant; see Answer.

    form: what to look for in them. new_id: gives the id of a call. has_logprobs: of all tokens
    that came, thoughts and calls among them.
    """

    def __init__(
        self,
        head: AnswerHead,
        *,
        tokenizer: ChatTokenizer,
        form: AnswerForm,
        new_id: Callable[[], str],
        has_logprobs: bool,
    ) -> None:
        super().__init__(
            head, prefix="chatcmpl", whole="chat.completion", part="chat.completion.chunk"
        )
        self._tokenizer = tokenizer
        self._choices = [
            _Choice(AnswerParser(form, new_id), has_logprobs=has_logprobs)
            for _ in range(self._count)
        ]

    def _first(self, index: int) -> Sequence[dict[str, Any]]:
        return [_chunk(index, {"role": "assistant", "content": ""})]

    def _pushed(self, index: int, piece: Piece) -> Sequence[dict[str, Any]]:
        choice = self._choices[index]
        logprobs = None
        if choice.logprobs is not None and piece.tokens:
            logprobs = token_logprobs(piece.tokens, self._tokenizer)
        if not self.is_stream and logprobs is not None:
            assert choice.logprobs is not None  # noqa: S101 - or there were none
            choice.logprobs += logprobs
        return self._taken(index, choice.parser.push(piece.text), logprobs)

    def _finished(self, index: int, reason: str) -> Sequence[dict[str, Any]]:
        choice = self._choices[index]
        chunks = self._taken(index, choice.parser.finish(), None)
        is_calling = reason == "stop" and choice.parser.has_called
        choice.finish_reason = "tool_calls" if is_calling else reason
        return [*chunks, _chunk(index, {}, finish_reason=choice.finish_reason)]

    def _taken(
        self, index: int, pieces: Pieces, logprobs: list[dict[str, Any]] | None
    ) -> list[dict[str, Any]]:
        choice = self._choices[index]
        first_call = len(choice.calls)
        choice.calls += pieces.calls
        if not self.is_stream:
            choice.reasoning.append(pieces.reasoning)
            choice.content.append(pieces.content)
            return []
        deltas: list[dict[str, Any]] = []
        if pieces.reasoning:
            deltas.append({"reasoning_content": pieces.reasoning})
        if pieces.content:
            deltas.append({"content": pieces.content})
        for place, call in enumerate(pieces.calls, first_call):
            deltas.append({"tool_calls": [{"index": place, **_called(call)}]})
        if logprobs is not None and not deltas:
            deltas.append({"content": ""})
        return [
            _chunk(index, delta, logprobs=logprobs if place == 0 else None)
            for place, delta in enumerate(deltas)
        ]

    def _choice(self, index: int) -> dict[str, Any]:
        choice = self._choices[index]
        content = "".join(choice.content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not choice.calls else None,
            "refusal": None,
        }
        reasoning = "".join(choice.reasoning)
        if reasoning:
            message["reasoning_content"] = reasoning
        if choice.calls:
            message["tool_calls"] = [_called(call) for call in choice.calls]
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }


def _chunk(
    index: int,
    delta: dict[str, Any],
    *,
    logprobs: list[dict[str, Any]] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {
        "index": index,
        "delta": delta,
        "logprobs": _logprobs(logprobs),
        "finish_reason": finish_reason,
    }


def _logprobs(tokens: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if tokens is None else {"content": tokens, "refusal": None}


def _called(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
