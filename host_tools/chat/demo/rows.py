"""Rows of tokens to train on: plain text in pieces, and whole conversations side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.chat.template import ChatTemplate
from host_tools.chat.demo.corpus import Corpus
from host_tools.chat.demo.documents import Document
from host_tools.chat.demo.questions import PHRASES, SMALL_TALK, SYSTEM_MESSAGES
from host_tools.chat.demo.tokens import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN

IntArray = npt.NDArray[np.int64]
Message = dict[str, str]
Exchange = tuple[str, str]  # a question and its answer

SYSTEM_SHARE = 0.25  # of the conversations that begin with a system message
TURNS = (1, 1, 2, 3)  # of a conversation, each as likely


def plain_rows(tokenizer: Any, texts: Sequence[Document], length: int) -> IntArray:
    """Return texts in one stream, each followed by the end of text, cut into rows [n, length]."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    stream: list[int] = []
    for encoding in tokenizer.encode_batch([document.text for document in texts]):
        stream.extend((*encoding.ids, end))
    count = len(stream) // length
    return np.array(stream[: count * length], np.int64).reshape(count, length)


def chat_rows(
    tokenizer: Any, exchanges: Iterator[Exchange], length: int, count: int, rng: np.random.Generator
) -> IntArray:
    """Return rows [count, length] of whole conversations, the first one at the row's begin."""
    template = ChatTemplate.open(CHAT_TEMPLATE, tokens={})
    end = tokenizer.token_to_id(END_OF_TEXT)
    rows = np.full((count, length), end, np.int64)
    row = column = 0
    while row < count:
        ids = tokenizer.encode(conversation(template, exchanges, rng)).ids[:length]
        if column + len(ids) > length:
            row, column = row + 1, 0
            if row == count:
                break
        rows[row, column : column + len(ids)] = ids
        column += len(ids)
    return rows


def conversation(
    template: ChatTemplate, exchanges: Iterator[Exchange], rng: np.random.Generator
) -> str:
    """Return a conversation of the next exchanges as the agent would spell it."""
    messages: list[Message] = []
    if rng.random() < SYSTEM_SHARE:
        messages.append({"role": "system", "content": str(rng.choice(SYSTEM_MESSAGES))})
    answer = ""
    for _ in range(int(rng.choice(TURNS))):
        if answer:
            messages.append({"role": "assistant", "content": answer})
        question, answer = next(exchanges)
        messages.append({"role": "user", "content": question})
    return f"{template.render(messages)}{answer}{END_OF_TURN}\n"


def all_exchanges(corpus: Corpus, rng: np.random.Generator) -> Iterator[Exchange]:
    """Yield exchanges for ever: every subject once before any comes again, phrased at random."""
    small_talk = tuple(SMALL_TALK.items())
    while True:
        for index in rng.permutation(len(corpus.answers) + len(small_talk)):
            if index < len(small_talk):
                yield small_talk[index]
                continue
            answer = corpus.answers[index - len(small_talk)]
            yield str(rng.choice(PHRASES)).format(answer.subject), answer.text
