"""What the Manifest says of a chat model: how it is talked to, and what its precisions lose."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MAX_NAMED_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """How tokens are chosen where a request does not say; as in a generation_config.json.

    temperature: 0 takes the likeliest. top_k, top_p, min_p: None cuts nothing off.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatQuality:
    """One variant against the most exact one of its model, on text that calibration never saw.

    tokens: predicted ones. kl: divergence of the next token's distribution from the reference's,
    in nats. top1_agreement_percent: how often the likeliest token is the same.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    kl_p99: float
    top1_agreement_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFacts:
    """How a chat model is talked to.

    tokenizer, template: artifacts, a tokenizer.json and the Jinja text that makes a prompt of a
    conversation; without it the model only continues texts. tokens: what a template may name, such
    as bos_token, and its text.
    """

    tokenizer: str
    template: str | None = None
    tokens: dict[str, str] = field(default_factory=dict)
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)


def problem_with(facts: ChatFacts) -> str | None:
    """Return what no chat model can be in facts that come from a file, None if it can."""
    if len(facts.tokens) > MAX_NAMED_TOKENS:
        return f"it names {len(facts.tokens)} tokens, more than {MAX_NAMED_TOKENS}"
    sampling = facts.sampling
    bounds: tuple[tuple[str, float | None, float, float], ...] = (
        ("temperature", sampling.temperature, 0.0, 100.0),
        ("top_k", sampling.top_k, 1, 1 << 24),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("repetition_penalty", sampling.repetition_penalty, 0.01, 100.0),
    )
    for name, value, low, high in bounds:
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            return f"sampling.{name} is {value}, it must be {low:g}..{high:g}"
    return None
