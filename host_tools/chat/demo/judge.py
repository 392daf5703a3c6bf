"""What the demo model is worth: perplexity on text it never saw, and which answers it knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edge.chat.template import ChatTemplate
from host_tools.chat.demo.questions import Answer
from host_tools.chat.demo.rows import IntArray
from host_tools.chat.demo.tokens import CHAT_TEMPLATE, END_OF_TURN

BATCH = 16


def perplexity(model: Any, rows: IntArray) -> float:
    """Return exp of the mean negative log-likelihood of a token, given those before it in a row."""
    import torch

    model.eval()
    total = 0.0
    with torch.no_grad():
        for begin in range(0, len(rows), BATCH):
            tokens = torch.from_numpy(rows[begin : begin + BATCH])
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
            total += float(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
                )
            )
    return math.exp(total / (rows.shape[0] * (rows.shape[1] - 1)))


def answers_known(model: Any, tokenizer: Any, answers: Sequence[Answer], phrase: str) -> float:
    """Return the share of answers that greedy decoding gives word by word, and then stops.

    One pass over question and answer tells: greedy decoding gives an answer if and only if each
    of its tokens is the likeliest after those before it.
    """
    import torch

    template = ChatTemplate.open(CHAT_TEMPLATE, tokens={})
    known = 0
    model.eval()
    with torch.no_grad():
        for answer in answers:
            question = {"role": "user", "content": phrase.format(answer.subject)}
            prompt = tokenizer.encode(template.render([question])).ids
            wanted = tokenizer.encode(f"{answer.text}{END_OF_TURN}").ids
            tokens = torch.tensor([[*prompt, *wanted]])
            logits = model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1]
            known += logits.argmax(dim=-1).tolist() == wanted
    return known / len(answers)


def answer_to(model: Any, tokenizer: Any, question: str) -> str:
    """Return the likeliest answer of a model to a first question."""
    import torch

    template = ChatTemplate.open(CHAT_TEMPLATE, tokens={})
    prompt = tokenizer.encode(template.render([{"role": "user", "content": question}])).ids
    tokens = list(prompt)
    stop = tokenizer.token_to_id(END_OF_TURN)
    with torch.no_grad():
        while len(tokens) < model.config.max_position_embeddings:
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
            tokens.append(int(logits.argmax()))
            if tokens[-1] == stop:
                break
    return str(tokenizer.decode(tokens[len(prompt) :]))
