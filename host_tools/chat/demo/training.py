"""The training of the demo model, from random weights, on the CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from host_tools.chat.demo.corpus import Corpus
from host_tools.chat.demo.judge import answers_known, perplexity
from host_tools.chat.demo.questions import PHRASES, UNSEEN_PHRASE
from host_tools.chat.demo.rows import IntArray, all_exchanges, chat_rows, plain_rows
from host_tools.chat.demo.tokens import END_OF_TEXT, END_OF_TURN

if TYPE_CHECKING:
    import torch

Tick = Callable[[int, float], None]
SEED = 20
BETAS, MAX_GRADIENT = (0.9, 0.99), 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Sizes of the model, and how it is trained; the same recipe gives the same model.

    Sizes are multiples of 128, which int4 weights like best. length: tokens of a row, and the
    model's context. rows: of a step; chat_rows of them are conversations. rate: the highest, of
    AdamW; it rises over the first twentieth of the steps and falls along a cosine.
    """

    vocabulary: int = 2048
    hidden: int = 256
    intermediate: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    length: int = 256
    rows: int = 5
    chat_rows: int = 3
    steps: int = 1000
    rate: float = 3e-3
    decay: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tokens of a step and what is to be learnt of them, both [rows, length]; see `chat_rows`."""

    tokens: IntArray
    targets: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What training has come to.

    Perplexities are per token of held-out documents. known, known_rephrased: shares of the
    subjects that are answered word by word, asked as in training and with words never seen there.
    """

    corpus_digest: str
    parameters: int
    steps: int
    tokens: int
    seconds: float
    perplexity_before: float
    perplexity_after: float
    known: float
    known_rephrased: float


def train(
    corpus: Corpus, tokenizer: Any, recipe: Recipe, *, tick: Tick = lambda step, loss: None
) -> tuple[Any, Report]:
    """Return a trained `LlamaForCausalLM`, and what it is worth; tick gets each step's loss."""
    started = time.monotonic()
    model = untrained(tokenizer, recipe)
    held_out = plain_rows(tokenizer, corpus.held_out, recipe.length)
    before = perplexity(model, held_out)
    fit(model, batches(corpus, tokenizer, recipe), recipe, tick=tick)
    report = Report(
        corpus_digest=corpus.digest,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=recipe.steps,
        tokens=recipe.steps * recipe.rows * recipe.length,
        seconds=time.monotonic() - started,
        perplexity_before=before,
        perplexity_after=perplexity(model, held_out),
        known=answers_known(model, tokenizer, corpus.answers, PHRASES[0]),
        known_rephrased=answers_known(model, tokenizer, corpus.answers, UNSEEN_PHRASE),
    )
    return model, report


def fit(model: Any, steps: Iterable[Batch], recipe: Recipe, *, tick: Tick) -> None:
    """Train a model in place, one step for each batch."""
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, betas=BETAS, weight_decay=recipe.decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: pace(step, recipe.steps))
    model.train()
    for step, batch in enumerate(steps, start=1):
        loss = next_token_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT)
        optimizer.step()
        schedule.step()
        tick(step, float(loss.detach()))
    model.eval()


def untrained(tokenizer: Any, recipe: Recipe) -> Any:
    """Return the model with random weights: Llama, with shared key heads and a tied head."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.length,
        tie_word_embeddings=True,
        initializer_range=recipe.hidden**-0.5,
        bos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        eos_token_id=tokenizer.token_to_id(END_OF_TURN),
    )
    return LlamaForCausalLM(config)


def batches(corpus: Corpus, tokenizer: Any, recipe: Recipe) -> Iterator[Batch]:
    """Yield what each step of a recipe learns from: plain text, then conversations."""
    rng = np.random.default_rng(SEED)
    plain = plain_rows(tokenizer, corpus.training, recipe.length)
    exchanges = all_exchanges(corpus, rng)
    order: list[int] = []
    plain_count = recipe.rows - recipe.chat_rows
    for _ in range(recipe.steps):
        while len(order) < plain_count:
            order.extend(rng.permutation(len(plain)).tolist())
        text, order = plain[order[:plain_count]], order[plain_count:]
        chat, targets = chat_rows(tokenizer, exchanges, recipe.length, recipe.chat_rows, rng)
        yield Batch(tokens=np.concatenate([text, chat]), targets=np.concatenate([text, targets]))


def pace(step: int, steps: int) -> float:
    """Return the share of the highest learning rate at a step."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def next_token_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of the targets, each given the row's tokens before it."""
    import torch

    tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())
