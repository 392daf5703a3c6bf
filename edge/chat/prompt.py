"""From a conversation to the tokens of its prompt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from edge.chat.marked_encoder import MarkedEncoder
from edge.chat.marks import SpecialNames, unused_mark, without
from edge.chat.template import ChatTemplate
from edge.chat.tokenizer import ChatTokenizer
from edge.chat.tools import THINK, THINK_END
from edge.errors import InputError, first_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a template is rendered with, as JSON values; see `ChatTemplate.render`."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt, and the tokens that it is."""

    text: str
    tokens: list[int]


class PromptMaker:
    """Makes the prompts of one model; may be used from several threads at once.

    A prompt has the tokens that transformers gives it, except that names of special tokens in
    what a client wrote are text. The first such prompt opens a second tokenizer.
    """

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: ChatTokenizer,
        content: bytes,
        now: Callable[[], datetime],
    ) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._content = content
        self._now = now
        self._names = SpecialNames(tokenizer.special_names)
        self._lock = threading.Lock()
        self._encoder: MarkedEncoder | None = None

    def prompt(self, conversation: Conversation) -> Prompt:
        """Return the prompt of a conversation; raises InputError."""
        now = self._now()
        text = marked = self._rendered(conversation, now)
        mark = unused_mark(text)
        if mark is None:
            raise InputError("the messages hold every character that is for private use")
        if any(map(self._names.may_come_of, _strings(conversation))):
            marked = self._rendered(self._marked(conversation, mark, only_whole=False), now)
            if without(marked, mark) != text:
                # The template looks into what a client wrote, and marks mislead it: fewer of them.
                marked = self._rendered(self._marked(conversation, mark, only_whole=True), now)
                text = without(marked, mark)
        written = self._names.count(marked)
        if written == self._names.count(text):
            tokens = self._tokenizer.encode(text)
            # A tokenizer may make names of other characters, before it looks for them.
            if sum(map(self._tokenizer.is_special, tokens)) <= written:
                return Prompt(text=text, tokens=tokens)
        return Prompt(text=text, tokens=self._encoded(marked, mark))

    def _rendered(self, conversation: Conversation, now: datetime) -> str:
        return self._template.render(
            conversation.messages,
            tools=conversation.tools,
            variables=conversation.variables,
            now=lambda: now,
        )

    def _marked(self, conversation: Conversation, mark: str, *, only_whole: bool) -> Conversation:
        def marked(value: Any, kept: Sequence[str] = ()) -> Any:
            return self._names.marked(value, mark, only_whole=only_whole, kept=kept)

        tools, variables = conversation.tools, conversation.variables
        return Conversation(
            # Thoughts in an answer are for the template to find, and for most to leave out.
            messages=[
                {
                    key: value
                    if key == "role"
                    else marked(value, (THINK, THINK_END) if message["role"] == "assistant" else ())
                    for key, value in message.items()
                }
                for message in conversation.messages
            ],
            tools=None if tools is None else marked(list(tools)),
            variables=None if variables is None else {k: marked(v) for k, v in variables.items()},
        )

    def _encoded(self, marked: str, mark: str) -> list[int]:
        with self._lock:
            if self._encoder is None:
                self._encoder = MarkedEncoder.open(self._content)
        try:
            return self._encoder.encode(marked, mark)
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"the prompt cannot be tokenized: {first_line(error)}") from error


def _strings(conversation: Conversation) -> list[Any]:
    messages = [
        {key: value for key, value in message.items() if key != "role"}
        for message in conversation.messages
    ]
    return [messages, list(conversation.tools or ()), list((conversation.variables or {}).values())]
