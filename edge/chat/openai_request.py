"""`POST /v1/chat/completions` and `/v1/completions`: their bodies, read and checked.

Fields that are unknown, or that ask for what changes no answer (`user`, `metadata`, `store`), are
skipped. What would change the answer and is not done here is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from edge.http_answer import too_large
from edge.openai_form import FieldError, decoded

# The model's name is found in the event loop: 3 ms for 1 MB. A prompt of MAX_PROMPT_CHARACTERS
# characters of 4 bytes fits.
MAX_BODY_BYTES = 5 << 20
MAX_CHOICES = 16  # generations of one request: lanes are few
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_NESTING = 64  # of schemas, arguments and variables
COMPLETION_TOKENS = 16  # of /v1/completions if a request does not say; as OpenAI's

# What would change the answer if it were done.
_NOT_DONE = frozenset(
    {
        *("audio", "chat_template", "continue_final_message", "documents", "function_call"),
        *("functions", "grammar", "guided_choice", "guided_grammar", "guided_json"),
        *("guided_regex", "prompt_logprobs", "structured_outputs", "suffix", "web_search_options"),
    }
)
_EMPTY = frozenset({b"null", b"false", b"[]", b"{}", b'""'})
_T = TypeVar("_T", bound="_Request")
_Token = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class StreamOptions(msgspec.Struct, frozen=True):
    """include_usage: whether a last chunk tells the tokens."""

    include_usage: bool | None = None


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=1 << 31)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0.0, le=10.0)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, msgspec.Meta(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = None

    @property
    def stops(self) -> list[str]:
        """The strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def includes_usage(self) -> bool:
        """Whether a stream tells the tokens at its end."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def choices(self) -> int:
        """How many answers to each prompt."""
        return 1 if self.n is None else self.n


class ContentPart(msgspec.Struct, frozen=True):
    """One of the parts of a message's content; only text is taken."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(msgspec.Struct, frozen=True):
    """What a call in the history called; arguments: an object as JSON text."""

    name: str
    arguments: str | dict[str, Any] | None = None


class CallInHistory(msgspec.Struct, frozen=True):
    """A call that an earlier answer made."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message of the conversation; which roles there are is checked by `conversation`."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[CallInHistory] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class OfferedFunction(msgspec.Struct, frozen=True):
    """A function that the answer may call; parameters: the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    """Something that the answer may call."""

    function: OfferedFunction
    type: Literal["function"] = "function"


class NamedFunction(msgspec.Struct, frozen=True):
    """The name of a function."""

    name: str


class NamedTool(msgspec.Struct, frozen=True):
    """The tool that the answer has to call."""

    function: NamedFunction
    type: Literal["function"] = "function"


class TextFormat(msgspec.Struct, frozen=True, tag="text"):
    """Text of any form."""


class ObjectFormat(msgspec.Struct, frozen=True, tag="json_object"):
    """Any JSON object."""


class JsonSchema(msgspec.Struct, frozen=True):
    """A schema with its name; strict: what of it cannot be followed is refused."""

    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class SchemaFormat(msgspec.Struct, frozen=True, tag="json_schema"):
    """JSON of a schema."""

    json_schema: JsonSchema


class ChatCompletionRequest(_Request, frozen=True, kw_only=True):
    """What is asked of `/v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: TextFormat | ObjectFormat | SchemaFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None


class CompletionRequest(_Request, frozen=True, kw_only=True):
    """What is asked of `/v1/completions`. prompt: a text, or tokens; several of them."""

    prompt: str | list[str | _Token | list[_Token]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_LOGPROBS)] | None = None


class _Addressed(msgspec.Struct, frozen=True):
    model: str


_ADDRESSED = msgspec.json.Decoder(_Addressed)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_CHAT = msgspec.json.Decoder(ChatCompletionRequest)
_COMPLETION = msgspec.json.Decoder(CompletionRequest)


def model_of(body: bytes) -> str:
    """Return the model that a request names; the rest of it is skipped.

    Raises InputError if it names none, or is larger than MAX_BODY_BYTES.
    """
    if len(body) > MAX_BODY_BYTES:
        raise too_large(MAX_BODY_BYTES)
    return decoded(_ADDRESSED, body, "request for a completion").model


def chat_request(body: bytes) -> ChatCompletionRequest:
    """Return what a body asks of `/v1/chat/completions`; raises InputError."""
    request = _checked(_CHAT, body, "request for a chat completion")
    if not request.messages:
        raise FieldError("messages is empty; send at least one", "messages")
    check_count(request.max_completion_tokens, "max_completion_tokens")
    if request.top_logprobs is not None and not request.logprobs:
        raise FieldError("top_logprobs needs logprobs: true", "top_logprobs")
    if request.modalities not in (None, [], ["text"]):
        raise FieldError("modalities: this model answers in text only", "modalities")
    if request.add_generation_prompt is False:
        raise FieldError(
            "add_generation_prompt: false is not supported: the answer is a message of its own",
            "add_generation_prompt",
        )
    return request


def completion_request(body: bytes) -> CompletionRequest:
    """Return what a body asks of `/v1/completions`; raises InputError."""
    request = _checked(_COMPLETION, body, "request for a completion")
    if request.echo and request.logprobs is not None:
        raise FieldError(
            "echo with logprobs is not supported: a prompt has no probabilities here; leave one "
            "of them out",
            "echo",
        )
    if request.best_of not in (None, request.choices):
        raise FieldError("best_of is not supported; ask for n answers and choose", "best_of")
    return request


def check_count(count: int | None, field: str) -> None:
    """Raise FieldError for a number of tokens that is none."""
    if count is not None and count < 1:
        raise FieldError(f"{field} is {count}; ask for 1 or more", field)


def check_stops(stops: list[str]) -> None:
    """Raise FieldError for stop strings that are too many, too long, or empty."""
    if len(stops) > MAX_STOPS:
        raise FieldError(f"stop holds {len(stops)} strings; send at most {MAX_STOPS}", "stop")
    for stop in stops:
        if not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            raise FieldError(
                f"stop holds a string of {len(stop)} characters; send 1..{MAX_STOP_CHARACTERS}",
                "stop",
            )


def check_nesting(value: Any, field: str) -> None:
    """Raise FieldError for a JSON value nested more deeply than all that reads it can follow."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            held
            for outer in level
            if isinstance(outer, dict | list)
            for held in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise FieldError(f"{field} is nested more than {MAX_NESTING} deep; flatten it", field)


def _checked(decoder: msgspec.json.Decoder[_T], body: bytes, what: str) -> _T:
    request = decoded(decoder, body, what)
    for field, value in decoded(_FIELDS, body, what).items():
        if field in _NOT_DONE and bytes(value) not in _EMPTY:
            raise FieldError(f"{field} is not supported; leave it out", field)
    if request.n is not None and not 1 <= request.n <= MAX_CHOICES:
        raise FieldError(f"n is {request.n}; ask for 1..{MAX_CHOICES}", "n")
    check_count(request.max_tokens, "max_tokens")
    check_stops(request.stops)
    if request.stream_options is not None and not request.stream:
        raise FieldError("stream_options needs stream: true", "stream_options")
    return request
