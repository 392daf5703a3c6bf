"""What talks for one chat model: requests become generations, and these become answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from edge.chat.answer import AnswerHead, Prepared
from edge.chat.answer_grammar import Wanted
from edge.chat.answer_parser import AnswerForm
from edge.chat.chat_answer import ChatAnswer
from edge.chat.completion_answer import CompletionAnswer
from edge.chat.completion_prompts import completion_prompts
from edge.chat.conversation import template_messages
from edge.chat.generation import GenerationRequest
from edge.chat.openai_request import COMPLETION_TOKENS, ChatCompletionRequest, CompletionRequest
from edge.chat.plain import PlainAnswer, PlainRequest, chat_request_from_plain, plain_request
from edge.chat.prompt import Conversation, PromptMaker
from edge.chat.sampling_defaults import SamplingDefaults
from edge.chat.spec import DecoderSpec
from edge.chat.start import Start, Starter
from edge.chat.template import ChatTemplate, local_now
from edge.chat.tokenizer import ChatTokenizer
from edge.chat.tools import is_thinking, new_call_id, thinks, tool_form
from edge.chat.wishes import schema_wish, template_variables, tool_wish
from edge.errors import InputError
from edge.openai_form import FieldError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Talk:
    """A conversation, ready to be generated. form: what the answer is looked through for."""

    generations: tuple[GenerationRequest, ...]
    form: AnswerForm


class ChatModel:
    """Prepares the requests to one model; may be used from several threads at once.

    What it prepares goes to one Generator: the samplers share a workspace. Preparing a long
    prompt takes seconds of a core, so it is no work for an event loop.
    """

    def __init__(
        self,
        *,
        name: str,
        tokenizer: ChatTokenizer,
        starter: Starter,
        prompts: PromptMaker | None,
        source: str,
        now: Callable[[], datetime],
    ) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._starter = starter
        self._prompts = prompts
        self._now = now
        self._form = tool_form(source)
        self._thinks = thinks(source)
        self._knows_developer = "developer" in source

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
        opened = ChatTokenizer.open(tokenizer)
        prompts = None
        if template is not None:
            compiled = ChatTemplate.open(template, tokens=tokens)
            prompts = PromptMaker(compiled, opened, tokenizer, now)
        return cls(
            name=name,
            tokenizer=opened,
            starter=Starter(name, spec, opened, tokenizer, defaults),
            prompts=prompts,
            source=template or "",
            now=now,
        )

    @property
    def can_chat(self) -> bool:
        """Whether the model has a chat template."""
        return self._prompts is not None

    def chat(self, request: ChatCompletionRequest) -> Prepared:
        """Return the generations of a chat completion, all of them checked.

        Raises InputError, ContextLengthError among them, and BackendUnavailableError if an answer
        of a form is asked for and llguidance is not there.
        """
        talk = self._talk(request)
        answer = ChatAnswer(
            self._head(request, prompts=1),
            tokenizer=self._tokenizer,
            form=talk.form,
            new_id=functools.partial(new_call_id, self._form),
            has_logprobs=bool(request.logprobs),
        )
        return Prepared(generations=talk.generations, answer=answer)

    def complete(self, request: CompletionRequest) -> Prepared:
        """Return the generations of a completion; raises InputError.

        Names of special tokens in a prompt are these tokens: it is what a template would write.
        """
        prompts = completion_prompts(request, self._tokenizer)
        generations: list[GenerationRequest] = []
        for prompt in prompts:
            start = Start(
                prompt=prompt.tokens,
                field="prompt",
                max_tokens=request.max_tokens or COMPLETION_TOKENS,
                logprobs=request.logprobs,
            )
            generations += self._starter.generations(request, start)
        answer = CompletionAnswer(
            self._head(request, prompts=len(prompts)),
            tokenizer=self._tokenizer,
            echoes=[prompt.text if request.echo else "" for prompt in prompts],
            has_logprobs=request.logprobs is not None,
        )
        return Prepared(generations=tuple(generations), answer=answer)

    def ask(self, body: bytes) -> Prepared:
        """Return the generation of a plain `POST /chat`; raises InputError.

        `{"query": "...", "system"?, "history"?: [{"role", "content"}], "stream"?, "max_tokens"?,
        "temperature"?, "seed"?, "stop"?, "enable_thinking"?}` is answered with `{"answer": "...",
        "reasoning"?, "model", "finish_reason", "usage"}`, or as a stream of nothing but text,
        UTF-8. A model without a chat template goes on the query.
        """
        plain = plain_request(body)
        request = chat_request_from_plain(plain, self.name)
        talk = self._talk(request) if self.can_chat else self._continued(plain, request)
        head = self._head(request, prompts=1)
        new_id = functools.partial(new_call_id, self._form)
        return Prepared(
            generations=talk.generations, answer=PlainAnswer(head, form=talk.form, new_id=new_id)
        )

    def _continued(self, plain: PlainRequest, request: ChatCompletionRequest) -> _Talk:
        if plain.system is not None or plain.history:
            field = "history" if plain.system is None else "system"
            raise FieldError(
                f"{field}: model {self.name!r} has no chat template, it only goes on the query",
                field,
            )
        start = Start(
            prompt=self._tokenizer.encode(plain.query, special=True),
            field="query",
            max_tokens=plain.max_tokens,
        )
        return _Talk(generations=self._starter.generations(request, start), form=AnswerForm())

    def _talk(self, request: ChatCompletionRequest) -> _Talk:
        if self._prompts is None:
            raise FieldError(
                f"model {self.name!r} has no chat template; use /v1/completions", "model"
            )
        tools = tool_wish(request, self._form, self.name)
        schema = schema_wish(request)
        messages = template_messages(
            request.messages, form=self._form, knows_developer=self._knows_developer
        )
        conversation = Conversation(
            messages=messages, tools=tools.tools or None, variables=template_variables(request)
        )
        try:
            prompt = self._prompts.prompt(conversation)
        except InputError as error:
            raise FieldError(str(error), "messages") from error
        wanted = Wanted(
            schema=None if schema is None else schema.schema,
            is_strict=schema is not None and schema.is_strict,
            form=self._form if tools.tools else None,
            tools=tools.callable,
            calls=tools.calls,
            parallel=request.parallel_tool_calls is not False,
            may_think=self._thinks,
            is_thinking=self._thinks and is_thinking(prompt.text),
        )
        start = Start(
            prompt=prompt.tokens,
            field="messages",
            max_tokens=request.max_completion_tokens or request.max_tokens,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            wanted=wanted,
        )
        form = AnswerForm(
            calls=wanted.form,
            names=frozenset(tool["function"]["name"] for tool in tools.tools),
            parallel=wanted.parallel,
            may_think=wanted.may_think,
            is_thinking=wanted.is_thinking,
        )
        return _Talk(generations=self._starter.generations(request, start), form=form)

    def _head(
        self, request: ChatCompletionRequest | CompletionRequest, *, prompts: int
    ) -> AnswerHead:
        return AnswerHead(
            model=self.name,
            created=int(self._now().timestamp()),
            is_stream=bool(request.stream),
            includes_usage=request.includes_usage,
            prompts=prompts,
            choices=request.choices,
        )
