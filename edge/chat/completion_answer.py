"""The answer of `/v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge.chat.answer import AnswerHead, OpenAiAnswer, alternatives
from edge.chat.generation import Piece
from edge.chat.sampling import Sampled
from edge.chat.tokenizer import ChatTokenizer


class CompletionAnswer(OpenAiAnswer):
    """Texts that go on others; see Answer.

    echoes: a text for each prompt, that its choices start with. has_logprobs: of the tokens.
    """

    def __init__(
        self,
        head: AnswerHead,
        *,
        tokenizer: ChatTokenizer,
        echoes: Sequence[str],
        has_logprobs: bool,
    ) -> None:
        super().__init__(head, prefix="cmpl", whole="text_completion", part="text_completion")
        self._tokenizer = tokenizer
        self._has_logprobs = has_logprobs
        self._echoes = [echo for echo in echoes for _ in range(head.choices)]
        self._texts: list[list[str]] = [[echo] for echo in self._echoes]
        self._tokens: list[list[Sampled]] = [[] for _ in self._echoes]
        self._lengths = [0] * self._count  # of the texts of the tokens so far
        self._reasons: list[str | None] = [None] * self._count

    def _first(self, index: int) -> Sequence[dict[str, Any]]:
        echo = self._echoes[index]
        return [_chunk(index, echo)] if echo else []

    def _pushed(self, index: int, piece: Piece) -> Sequence[dict[str, Any]]:
        if not self.is_stream:
            self._texts[index].append(piece.text)
            if self._has_logprobs:
                self._tokens[index] += piece.tokens
            return []
        has_logprobs = self._has_logprobs and piece.tokens
        logprobs = self._logprobs(index, piece.tokens) if has_logprobs else None
        return [_chunk(index, piece.text, logprobs=logprobs)] if piece.text or logprobs else []

    def _finished(self, index: int, reason: str) -> Sequence[dict[str, Any]]:
        self._reasons[index] = reason
        return [_chunk(index, "", finish_reason=reason)]

    def _choice(self, index: int) -> dict[str, Any]:
        logprobs = self._logprobs(index, self._tokens[index]) if self._has_logprobs else None
        text, reason = "".join(self._texts[index]), self._reasons[index]
        return _chunk(index, text, logprobs=logprobs, finish_reason=reason)

    def _logprobs(self, index: int, tokens: Sequence[Sampled]) -> dict[str, Any]:
        """Return the tokens with their probabilities, and where in the answer each starts."""
        texts = [self._tokenizer.text_of(sampled.token) for sampled in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._lengths[index])
            self._lengths[index] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [sampled.logprob for sampled in tokens],
            "top_logprobs": [alternatives(sampled, self._tokenizer) for sampled in tokens],
            "text_offset": offsets,
        }


def _chunk(
    index: int,
    text: str,
    *,
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
