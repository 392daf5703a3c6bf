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
IGNORED = -100  # as a target: torch's cross-entropy leaves it out
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
) -> tuple[IntArray, IntArray]:
    """Return (rows, targets) of whole conversations, the first one at the row's begin.

    Both are [count, length]; a target is the token itself where it is part of an answer, IGNORED
    elsewhere: what people ask is not to be learnt.
    """
    template = ChatTemplate.open(CHAT_TEMPLATE, tokens={})
    rows = np.full((count, length), tokenizer.token_to_id(END_OF_TEXT), np.int64)
    targets = np.full((count, length), IGNORED, np.int64)
    row = column = 0
    while row < count:
        ids, is_answer = _tokens_of(tokenizer, conversation(template, exchanges, rng))
        if column + len(ids) > length:
            row, column = row + 1, 0
        if row == count or len(ids) > length:
            continue
        rows[row, column : column + len(ids)] = ids
        targets[row, column : column + len(ids)] = np.where(is_answer, ids, IGNORED)
        column += len(ids)
    return rows, targets


def conversation(
    template: ChatTemplate, exchanges: Iterator[Exchange], rng: np.random.Generator
) -> list[Exchange]:
    """Return a conversation of the next exchanges, as pairs of a prompt's new part and an answer.

    Their texts one after the other are what the agent would spell.
    """
    messages: list[Message] = []
    if rng.random() < SYSTEM_SHARE:
        messages.append({"role": "system", "content": str(rng.choice(SYSTEM_MESSAGES))})
    parts, done = [], ""
    for _ in range(int(rng.choice(TURNS))):
        question, answer = next(exchanges)
        messages.append({"role": "user", "content": question})
        prompt = template.render(messages)
        parts.append((prompt.removeprefix(done), f"{answer}{END_OF_TURN}\n"))
        done = prompt + parts[-1][1]
        messages.append({"role": "assistant", "content": answer})
    return parts


def _tokens_of(tokenizer: Any, parts: list[Exchange]) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Return the tokens of a conversation, and which of them are parts of answers."""
    ids, is_answer = [], []
    for prompt, answer in parts:
        for text, flag in ((prompt, False), (answer, True)):
            found = tokenizer.encode(text).ids
            ids += found
            is_answer += [flag] * len(found)
    return np.array(ids, np.int64), np.array(is_answer, np.bool_)


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
