"""From the tokens of a prompt to the generations that go on it, all of them checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.chat.answer_grammar import Wanted, answer_grammar
from edge.chat.detokenizer import Detokenizer
from edge.chat.generation import GenerationRequest, check_prompt
from edge.chat.grammar import Constraint, Grammars
from edge.chat.openai_request import ChatCompletionRequest, CompletionRequest
from edge.chat.sampling import Sampler, SamplingOptions, Workspace
from edge.chat.sampling_defaults import SamplingDefaults, sampling_options
from edge.chat.spec import DecoderSpec
from edge.chat.tokenizer import ChatTokenizer
from edge.chat.tools import shown_tokens
from edge.errors import ContextLengthError, InputError
from edge.openai_form import FieldError


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What the answers to one prompt start from.

    field: of the request that the prompt came from. logprobs: see SamplingOptions. wanted: None
    for text that goes on the prompt's, and is no answer to it.
    """

    prompt: Sequence[int]
    field: str
    max_tokens: int | None
    logprobs: int | None = None
    wanted: Wanted | None = None


class Starter:
    """Makes the generations of one model; may be used from several threads at once.

    content: its tokenizer.json. All generations go to one thread: their samplers share a workspace.
    """

    def __init__(
        self,
        name: str,
        spec: DecoderSpec,
        tokenizer: ChatTokenizer,
        content: bytes,
        defaults: SamplingDefaults,
    ) -> None:
        self._name = name
        self._spec = spec
        self._tokenizer = tokenizer
        self._grammars = Grammars(content, vocabulary=spec.vocabulary, eos=spec.eos)
        self._defaults = defaults
        self._workspace = Workspace(spec.vocabulary)

    def generations(
        self, request: ChatCompletionRequest | CompletionRequest, start: Start
    ) -> tuple[GenerationRequest, ...]:
        """Return a generation for each choice; raises FieldError or ContextLengthError."""
        tokens = np.array(start.prompt, np.int64)
        self._check(tokens, start)
        constraint = self._constraint(request, start.wanted)
        return tuple(
            GenerationRequest(
                prompt=tokens,
                sampler=Sampler(
                    self._options(request, start, choice),
                    start.prompt,
                    self._workspace,
                    None if constraint is None else constraint.copy(),
                ),
                max_tokens=start.max_tokens,
                text=self._text(request, start),
                ignores_eos=bool(request.ignore_eos),
            )
            for choice in range(request.choices)
        )

    def _check(self, tokens: np.ndarray, start: Start) -> None:
        try:
            check_prompt(tokens, start.max_tokens, self._spec)
        except ContextLengthError as error:
            raise ContextLengthError(str(error), start.field) from error
        except InputError as error:
            raise FieldError(str(error), start.field) from error

    def _options(
        self, request: ChatCompletionRequest | CompletionRequest, start: Start, choice: int
    ) -> SamplingOptions:
        return sampling_options(
            request,
            self._defaults,
            vocabulary=self._spec.vocabulary,
            choice=choice,
            logprobs=start.logprobs,
        )

    def _text(
        self, request: ChatCompletionRequest | CompletionRequest, start: Start
    ) -> Detokenizer:
        wanted = start.wanted
        if wanted is None:
            return Detokenizer(self._tokenizer, stop=request.stops, continues=True)
        shown = shown_tokens(wanted.form, self._tokenizer)
        return Detokenizer(self._tokenizer, stop=request.stops, shown=shown)

    def _constraint(
        self, request: ChatCompletionRequest | CompletionRequest, wanted: Wanted | None
    ) -> Constraint | None:
        if wanted is None:
            return None
        field = "tools" if wanted.schema is None or wanted.calls == "must" else "response_format"
        try:
            grammar = answer_grammar(wanted, self._tokenizer)
            if grammar is None:
                return None
            if request.ignore_eos or not self._spec.eos:
                field = "ignore_eos" if request.ignore_eos else field
                raise InputError(f"an answer of a form has to end; model {self._name!r} would not")
            return self._grammars.constraint(grammar)
        except InputError as error:
            raise FieldError(f"{field}: {error}", field) from error
