"""How a model's maker has its tokens chosen, where a request does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from edge.chat.openai_request import MAX_BIASES, ChatCompletionRequest, CompletionRequest
from edge.chat.sampling import SamplingOptions
from edge.errors import ModelError
from edge.openai_form import FieldError


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What generation_config.json says of sampling; part of the Manifest.

    temperature: 0 takes the likeliest token. top_k: None is all. Unless a model says something
    else these are the OpenAI API's own.
    """

    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] = 1.0
    top_p: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0.0, le=10.0)] = 1.0


class _Configured(msgspec.Struct, frozen=True):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def defaults_from_generation_config(content: bytes) -> SamplingDefaults:
    """Return what a generation_config.json says of sampling; raises ModelError.

    Whether it says `do_sample` counts nothing: a client that wants the likeliest tokens asks for
    temperature 0.
    """
    try:
        configured = msgspec.json.decode(content, type=_Configured)
        given = {
            name: value
            for name, value in msgspec.structs.asdict(configured).items()
            if value is not None and (name, value) != ("top_k", 0)
        }
        return msgspec.convert(given, SamplingDefaults)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(
            f"generation_config.json cannot be used: {error}; correct it, or pack without it"
        ) from error


def sampling_options(
    request: ChatCompletionRequest | CompletionRequest,
    defaults: SamplingDefaults,
    *,
    vocabulary: int,
    choice: int,
    logprobs: int | None,
) -> SamplingOptions:
    """Return how the tokens of one choice are chosen; raises FieldError for a wrong logit_bias.

    A seed gives the choices of a request different answers, the same ones every time.
    """
    top_k = defaults.top_k if request.top_k is None else request.top_k
    return SamplingOptions(
        temperature=_given(request.temperature, defaults.temperature),
        top_k=top_k if top_k is not None and top_k > 0 else None,
        top_p=_given(request.top_p, defaults.top_p),
        min_p=_given(request.min_p, defaults.min_p),
        repetition_penalty=_given(request.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_given(request.presence_penalty, 0.0),
        frequency_penalty=_given(request.frequency_penalty, 0.0),
        bias=_bias(request.logit_bias or {}, vocabulary),
        seed=None if request.seed is None else request.seed + choice,
        logprobs=logprobs,
    )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _bias(given: Mapping[str, float], vocabulary: int) -> tuple[tuple[int, float], ...]:
    if len(given) > MAX_BIASES:
        raise FieldError(
            f"logit_bias names {len(given)} tokens; name at most {MAX_BIASES}", "logit_bias"
        )
    for name in given:
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocabulary):
            raise FieldError(
                f"logit_bias names token {name[:80]!r}; tokens are 0..{vocabulary - 1}",
                "logit_bias",
            )
    return tuple((int(name), bias) for name, bias in given.items())
