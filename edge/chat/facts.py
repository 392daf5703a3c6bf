"""What the Manifest says of a chat model: how it is talked to, and what its precisions lose."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge.chat.sampling_defaults import SamplingDefaults

MAX_NAMED_TOKENS = 64


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
    return None
