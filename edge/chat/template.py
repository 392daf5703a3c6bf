"""From a conversation to the text that a model was trained to go on: its chat template."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateSyntaxError

from edge.chat.sandbox import (
    BUDGET,
    BoundsError,
    Budget,
    Environment,
    RefusedError,
    strftime,
)
from edge.chat.tokenizer import MAX_PROMPT_CHARACTERS
from edge.errors import InputError, ModelError, first_line

MAX_TEMPLATE_BYTES = 256 << 10  # the longest in use have 30 kB
# What transformers gives a template, which nobody else may.
GIVEN_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "strftime_now"}
)


def local_now() -> datetime:
    """Return the time where this device is."""
    return datetime.now().astimezone()


class ChatTemplate:
    """A compiled chat template; may be used from several threads at once.

    source: Jinja, as in the chat_template of a tokenizer_config.json.
    """

    def __init__(self, source: str, compiled: Any, tokens: Mapping[str, str]) -> None:
        self.source = source
        self._compiled = compiled
        self._tokens = dict(tokens)

    @classmethod
    def open(cls, source: str, *, tokens: Mapping[str, str]) -> ChatTemplate:
        """Return the template that source spells. tokens: `bos_token`, `eos_token` and others.

        Raises ModelError.
        """
        size = len(source.encode("utf-8", "replace"))
        if size > MAX_TEMPLATE_BYTES:
            raise ModelError(
                f"the chat template has {size} bytes, more than {MAX_TEMPLATE_BYTES}; "
                "pack the model with a shorter one"
            )
        try:
            compiled = Environment().compiled(source)
        except Exception as error:  # Jinja's own, and any that Python's compiler has
            line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            raise ModelError(
                f"the chat template cannot be compiled{line}: {first_line(error)}; pack the model "
                "with one that transformers renders"
            ) from error
        return cls(source, compiled, tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        now: Callable[[], datetime] = local_now,
        clock: Callable[[], float] = time.thread_time,
    ) -> str:
        """Return the prompt whose continuation is the assistant's next message.

        messages, tools: plain JSON values. variables: what a template may read besides, like
        `enable_thinking`. Raises InputError if the template refuses the conversation, fails on
        it, or is out of bounds.
        """
        given: dict[str, Any] = {
            **self._tokens,
            **(variables or {}),
            "messages": list(messages),
            "tools": None if tools is None else list(tools),
            "documents": None,
            "add_generation_prompt": True,
            "strftime_now": lambda pattern: strftime(now(), pattern),
        }
        outer = BUDGET.set(Budget(clock))
        try:
            return _joined(self._compiled.generate(given))
        except RefusedError as error:
            raise InputError(
                f"the chat template does not take these messages: {first_line(error)}"
            ) from error
        except BoundsError as error:
            raise InputError(
                f"the chat template is out of bounds: {first_line(error)}; if these messages are "
                "usual ones, pack the model with another template"
            ) from error
        except Exception as error:  # a template is a program: it may raise anything
            raise InputError(
                f"the chat template fails on these messages: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error
        finally:
            BUDGET.reset(outer)


def _joined(pieces: Any) -> str:
    """Return the prompt; pieces are counted here too, static ones among them."""
    found, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_PROMPT_CHARACTERS:
            raise BoundsError(f"it writes more than {MAX_PROMPT_CHARACTERS} characters")
        found.append(piece)
    return "".join(found)
