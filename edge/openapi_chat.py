"""The JSON answers of chat, as types for the OpenAPI document; see `openapi_answers`.

What OpenAI's clients read of them is in OpenAI's own document; these are the fields that are sent.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

FinishReason = Literal["stop", "length", "tool_calls"]


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    """An object that has these fields and no others."""


class CachedTokens(_Answer):
    """How many tokens of the prompts did not have to be computed."""

    cached_tokens: int


class ChatUsage(_Answer):
    """Tokens of prompts and answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CalledFunction(_Answer):
    """A function that the model wants called; arguments: a JSON object as text."""

    name: str
    arguments: str


class Call(_Answer):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(_Answer):
    """What the model says; reasoning_content: what it thought before."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: tuple[Call, ...] | UnsetType = UNSET


class TokenLogprob(_Answer):
    """A token and the logarithm of its probability."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class ChosenToken(TokenLogprob):
    """A token of the answer, and those that were likeliest in its place."""

    top_logprobs: tuple[TokenLogprob, ...]


class Logprobs(_Answer):
    """The tokens of an answer."""

    content: tuple[ChosenToken, ...]
    refusal: None


class ChatChoice(_Answer):
    """One of the answers that were asked for."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(_Answer):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: ChatUsage
    system_fingerprint: None


class TextLogprobs(_Answer):
    """The tokens of a text, and where each begins in it."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[dict[str, float], ...]
    text_offset: tuple[int, ...]


class TextChoice(_Answer):
    """One of the texts that were asked for."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class Completion(_Answer):
    """Texts that go on others."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    usage: ChatUsage
    system_fingerprint: None


class PlainAnswer(_Answer):
    """The answer to one question; reasoning: what the model thought before."""

    answer: str
    model: str
    finish_reason: FinishReason
    usage: ChatUsage
    reasoning: str | UnsetType = UNSET
