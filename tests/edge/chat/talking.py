"""A chat model whose decoder says what a test wants, and what a client gets of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from edge.chat.answer import Prepared
from edge.chat.chat_model import ChatModel
from edge.chat.decoder import FloatArray, IntArray
from edge.chat.generation import End, Piece
from edge.chat.generator import Generator, GeneratorOptions
from edge.chat.openai_request import chat_request, completion_request
from edge.chat.sampling_defaults import SamplingDefaults
from edge.chat.spec import DecoderSpec
from edge.errors import EdgeError
from tests.edge.chat.fakes import FakeDecoder, fake_spec
from tests.edge.chat.made_tokenizers import byte_level, json_of
from tests.edge.chat.templates import QWEN3
from tests.fakes import DEADLINE_S

LIBRARY = byte_level()
CONTEXT = 2048
EOS = LIBRARY.token_to_id("<|im_end|>")
VOCABULARY = LIBRARY.get_vocab_size()
TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}
SURE = 50.0  # the logit of what is said; others have 0


def spec_of(library: Any = LIBRARY, *, context: int = CONTEXT, eos: bool = True) -> DecoderSpec:
    ends = (library.token_to_id("<|im_end|>"),) if eos else ()
    return replace(fake_spec(context, eos=ends), vocabulary=library.get_vocab_size())


def chat_model(
    template: str | None = QWEN3, *, library: Any = LIBRARY, **options: Any
) -> ChatModel:
    given: dict[str, Any] = {"defaults": SamplingDefaults(), "spec": spec_of(library), **options}
    return ChatModel.open(
        name="tiny", tokenizer=json_of(library), template=template, tokens=TOKENS, **given
    )


class SayingDecoder(FakeDecoder):
    """Says a text after every prompt, and then ends; or what random logits make of it.

    text: None is random. Which tokens are a prompt is known from where its lane's logits are
    first asked for.
    """

    def __init__(self, text: str | None, *, library: Any = LIBRARY, **options: Any) -> None:
        super().__init__(context=CONTEXT, **options)
        self.spec = spec_of(library)
        self.script = (
            None if text is None else [*library.encode(text, add_special_tokens=False).ids, EOS]
        )
        self.begins: list[int] = []

    def step(
        self,
        first: int,
        tokens: IntArray,
        start: IntArray,
        rows: IntArray,
        *,
        top: int | None = None,
    ) -> FloatArray:
        super().step(first, tokens, start, rows, top=top)
        wanted = [
            [self._logits_after(self._cache[first + lane, : start[lane] + row + 1]) for row in told]
            for lane, told in enumerate(rows)
        ]
        return np.array(wanted, np.float32)

    def _logits_after(self, tokens: IntArray) -> FloatArray:
        if self.script is None:
            return np.random.default_rng(list(tokens)).normal(size=self.spec.vocabulary)
        logits = np.zeros(self.spec.vocabulary, np.float32)
        logits[self.script[min(self._said(tokens), len(self.script) - 1)]] = SURE
        return logits

    def _said(self, tokens: IntArray) -> int:
        """Return how much of the script a text ends with, behind one of the prompts."""
        begin = next((b for b in sorted(self.begins, reverse=True) if b <= len(tokens)), None)
        return 0 if begin is None else len(tokens) - begin


class Client:
    """Takes the bytes of an answer; in the generator's thread."""

    def __init__(self, prepared: Prepared) -> None:
        self.sent = [prepared.answer.open()]
        self.errors: list[EdgeError] = []
        self.ends: list[End] = []
        self.ended = threading.Event()
        self._answer = prepared.answer

    def listener(self, index: int) -> Any:
        client = self

        class Listener:
            def on_piece(self, piece: Piece) -> None:
                client.sent.append(client._answer.piece(index, piece))

            def on_end(self, end: End) -> None:
                client.ends.append(end)
                try:
                    client.sent.append(client._answer.end(index, end))
                except EdgeError as error:
                    client.errors.append(error)
                if client._answer.is_over:
                    client.ended.set()

        return Listener()

    @property
    def bytes(self) -> bytes:
        return b"".join(self.sent)


def say(prepared: Prepared, decoder: SayingDecoder) -> Client:
    """Return what a client gets of a request."""
    decoder.begins = [len(generation.prompt) for generation in prepared.generations]
    generator = Generator("tiny", lambda: decoder, options=GeneratorOptions())
    generator.start()
    client = Client(prepared)
    try:
        for index, generation in enumerate(prepared.generations):
            generator.submit(generation, client.listener(index))
        assert client.ended.wait(DEADLINE_S)
    finally:
        assert generator.stop(DEADLINE_S)
    return client


def chat(text: str | None, model: ChatModel | None = None, **fields: Any) -> ChatCompletion:
    """Return the answer to a request, if the model says this."""
    client = say(prepared_chat(model, **fields), SayingDecoder(text))
    return ChatCompletion.model_validate_json(client.bytes, strict=True)


def chunks(
    text: str | None, model: ChatModel | None = None, **fields: Any
) -> list[ChatCompletionChunk]:
    """Return the events of a stream, each of them read strictly."""
    client = say(prepared_chat(model, stream=True, **fields), SayingDecoder(text))
    return [
        ChatCompletionChunk.model_validate_json(event, strict=True)
        for event in events_of(client.bytes)
    ]


def prepared_chat(model: ChatModel | None = None, **fields: Any) -> Prepared:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return (model or chat_model()).chat(chat_request(json.dumps(body).encode()))


def complete(text: str | None, model: ChatModel | None = None, **fields: Any) -> Completion:
    client = say(prepared_completion(model, **fields), SayingDecoder(text))
    return Completion.model_validate_json(client.bytes, strict=True)


def completion_chunks(
    text: str | None, model: ChatModel | None = None, **fields: Any
) -> list[Completion]:
    client = say(prepared_completion(model, stream=True, **fields), SayingDecoder(text))
    return [_chunk(json.loads(event)) for event in events_of(client.bytes)]


def _chunk(event: Any) -> Completion:
    """Return a chunk as the client's type for whole answers, which has to have ended."""
    for choice in event["choices"]:
        assert "finish_reason" in choice
        choice["finish_reason"] = choice["finish_reason"] or "content_filter"
    return Completion.model_validate(event, strict=True)


def prepared_completion(model: ChatModel | None = None, **fields: Any) -> Prepared:
    body = {"model": "tiny", "prompt": "The cat", **fields}
    return (model or chat_model()).complete(completion_request(json.dumps(body).encode()))


def events_of(stream: bytes, *, last: str = "[DONE]") -> list[str]:
    """Return what the events of a stream hold, without the last one."""
    events = stream.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    found = [event.removeprefix("data: ") for event in events]
    assert found.pop() == last
    return found


def text_of(stream: Sequence[ChatCompletionChunk], index: int = 0) -> str:
    """Return what the chunks of one choice say together."""
    deltas = [c.choices[0].delta for c in stream if c.choices and c.choices[0].index == index]
    return "".join(delta.content or "" for delta in deltas)
