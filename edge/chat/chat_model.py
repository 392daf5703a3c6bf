"""What talks for one chat model: requests become generations, and these become answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from edge.chat.answer import Prepared
from edge.chat.openai_request import ChatCompletionRequest, CompletionRequest
from edge.chat.sampling_defaults import SamplingDefaults
from edge.chat.spec import DecoderSpec
from edge.chat.template import local_now


class ChatModel:
    """Prepares the requests to one model; may be used from several threads at once.

    What it prepares goes to one Generator: the samplers share a workspace. Preparing a long
    prompt takes seconds of a core, so it is no work for an event loop.
    """

    @classmethod
    def open(
        cls,
        *,
        name: str,
        spec: DecoderSpec,
        tokenizer: bytes,
        template: str | None,
        tokens: Mapping[str, str],
        defaults: SamplingDefaults,
        now: Callable[[], datetime] = local_now,
    ) -> ChatModel:
        """Return what talks for a model.

        tokenizer: a tokenizer.json. template: the chat template, None for a model that only goes
        on a text. tokens: `bos_token`, `eos_token` and others that a template may write.
        Raises ModelError, or BackendUnavailableError without the package tokenizers.
        """
        raise NotImplementedError

    def chat(self, request: ChatCompletionRequest) -> Prepared:
        """Return the generations of a chat completion, all of them checked.

        Raises InputError, ContextLengthError among them, and BackendUnavailableError if an answer
        of a form is asked for and llguidance is not there.
        """
        raise NotImplementedError

    def complete(self, request: CompletionRequest) -> Prepared:
        """Return the generations of a completion; raises InputError.

        Names of special tokens in a prompt are these tokens: it is what a template would write.
        """
        raise NotImplementedError

    def ask(self, body: bytes) -> Prepared:
        """Return the generation of a plain `POST /chat`; raises InputError.

        `{"query": "...", "system"?, "history"?: [{"role", "content"}], "stream"?, "max_tokens"?,
        "temperature"?, "seed"?}` is answered with `{"answer": "...", ...}`, or as a stream of
        nothing but text, UTF-8.
        """
        raise NotImplementedError
