"""What a client gets of a request's generations: pieces of a stream, or one body at the end."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from edge.chat.generation import End, GenerationRequest, Piece
from edge.chat.sampling import Sampled
from edge.chat.tokenizer import ChatTokenizer
from edge.errors import EdgeError, InferenceError
from edge.openai_form import error_answer

EVENTS = "text/event-stream"
JSON = "application/json"
_DONE = b"data: [DONE]\n\n"


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
        """Whether nothing more comes: all have ended, or one has failed; then cancel the others."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """What all answers of a kind have in common.

    created: seconds of Unix time. prompts: how many; each has as many choices as the others.
    includes_usage: whether a stream tells the tokens.
    """

    model: str
    created: int
    is_stream: bool
    includes_usage: bool = False
    prompts: int = 1
    choices: int = 1


class OpenAiAnswer(ABC):
    """An answer in the form of OpenAI's API; see Answer.

    prefix: of its id. whole, part: what objects are called that are all of it, or a chunk.
    """

    def __init__(self, head: AnswerHead, *, prefix: str, whole: str, part: str) -> None:
        self.is_stream = head.is_stream
        self.is_over = False
        self._head = head
        self._ends: dict[int, End] = {}
        self._count = head.prompts * head.choices
        self._fields: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": part if head.is_stream else whole,
            "created": head.created,
            "model": head.model,
        }
        # What all chunks have around their choice.
        self._before = b"data: " + msgspec.json.encode(self._fields)[:-1] + b',"choices":['
        usage_of_none = b',"usage":null' if head.includes_usage else b""
        self._after = b'],"system_fingerprint":null' + usage_of_none + b"}\n\n"

    @property
    def content_type(self) -> str:
        """Return the header of this name."""
        return EVENTS if self.is_stream else JSON

    def open(self) -> bytes:
        """Return the first bytes of a stream; none otherwise."""
        if not self.is_stream:
            return b""
        choices = (choice for index in range(self._count) for choice in self._first(index))
        return b"".join(map(self._event, choices))

    def piece(self, index: int, piece: Piece) -> bytes:
        """Return what is to be sent now; none unless it is a stream."""
        if self.is_over:
            return b""
        choices = self._pushed(index, piece)
        return b"".join(map(self._event, choices)) if self.is_stream else b""

    def end(self, index: int, end: End) -> bytes:
        """Return the last bytes of a choice, or all of them; raises EdgeError, see Answer."""
        if self.is_over:
            return b""
        self._ends[index] = end
        if end.reason == "error":
            self.is_over = True
            error = end.error or InferenceError("the generation failed")
            if not self.is_stream:
                raise error
            return error_event(error)
        choices = self._finished(index, finish_reason(end))
        self.is_over = len(self._ends) == self._count
        if not self.is_stream:
            return self._body() if self.is_over else b""
        return b"".join(map(self._event, choices)) + (self._last() if self.is_over else b"")

    @abstractmethod
    def _first(self, index: int) -> Sequence[dict[str, Any]]:
        """Return the choices of the chunks that start a choice."""

    @abstractmethod
    def _pushed(self, index: int, piece: Piece) -> Sequence[dict[str, Any]]:
        """Take a piece, and return the choices of the chunks that it is worth."""

    @abstractmethod
    def _finished(self, index: int, reason: str) -> Sequence[dict[str, Any]]:
        """Take the end of a choice, and return the choices of its last chunks."""

    @abstractmethod
    def _choice(self, index: int) -> dict[str, Any]:
        """Return a whole choice."""

    def _event(self, choice: dict[str, Any]) -> bytes:
        return self._before + msgspec.json.encode(choice) + self._after

    def _last(self) -> bytes:
        if not self._head.includes_usage:
            return _DONE
        last = {**self._fields, "choices": [], "system_fingerprint": None, "usage": self._usage()}
        return b"data: " + msgspec.json.encode(last) + b"\n\n" + _DONE

    def _body(self) -> bytes:
        choices = [self._choice(index) for index in range(self._count)]
        whole = {
            **self._fields,
            "choices": choices,
            "usage": self._usage(),
            "system_fingerprint": None,
        }
        return msgspec.json.encode(whole)

    def _usage(self) -> dict[str, Any]:
        return usage([self._ends[index] for index in range(self._count)], self._head.choices)


def finish_reason(end: End) -> str:
    """Return why a generation ended, in the API's words: it knows "stop" and "length"."""
    return "stop" if end.reason == "stop" else "length"


def usage(ends: Sequence[End], choices: int) -> dict[str, Any]:
    """Return what generations took, in the API's form. choices: to each prompt, neighbours.

    A prompt counts once; cached are those of its tokens that no choice had to run.
    """
    prompts = [ends[at : at + choices] for at in range(0, len(ends), choices)]
    prompt = sum(group[0].prompt for group in prompts)
    generated = sum(end.generated for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {
            "cached_tokens": sum(min(end.reused for end in group) for group in prompts)
        },
    }


def error_event(error: EdgeError) -> bytes:
    """Return an error as the last events of a stream, in the API's form."""
    return b"data: " + error_answer(error).body + b"\n\n" + _DONE


def token_logprobs(tokens: Sequence[Sampled], tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """Return tokens with their probabilities, as chat completions have them."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        written = tokenizer.bytes_of(token)
        text = written.decode("utf-8", "replace")
        return {"token": text, "logprob": logprob, "bytes": list(written)}

    return [
        {
            **one(sampled.token, sampled.logprob or 0.0),
            "top_logprobs": [one(other.token, other.logprob) for other in sampled.likeliest],
        }
        for sampled in tokens
    ]


def alternatives(sampled: Sampled, tokenizer: ChatTokenizer) -> dict[str, float]:
    """Return the likeliest tokens and their probabilities, as completions have them."""

    def pairs() -> Iterator[tuple[str, float]]:
        for other in sampled.likeliest:
            yield tokenizer.text_of(other.token), other.logprob
        yield tokenizer.text_of(sampled.token), sampled.logprob or 0.0

    found: dict[str, float] = {}
    for text, logprob in pairs():
        found.setdefault(text, logprob)
    return found
