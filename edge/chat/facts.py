"""What the Manifest says of how a chat model is talked to."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge.chat.sampling_defaults import SamplingDefaults

MAX_NAMED_TOKENS = 64


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
