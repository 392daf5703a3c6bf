"""From nothing to the folder of a chat model: text, tokenizer, training, files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from host_tools.chat.demo.corpus import Corpus, corpus
from host_tools.chat.demo.folder import write_folder
from host_tools.chat.demo.judge import answer_to
from host_tools.chat.demo.tokens import train_tokenizer
from host_tools.chat.demo.training import Recipe, Report, batches, fit, train, untrained
from host_tools.graph import Say
from host_tools.progress import Progress

# What is asked when all is done; the answers are those of the installed Python.
QUESTIONS = ("What does str.split do?", "Explain the while statement.", "What is len?")
TIMED_STEPS = 6  # the first of them is slower and does not count
FEWEST_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A trained model in a folder: what it is worth, and what it says to QUESTIONS."""

    folder: Path
    report: Report
    answers: tuple[str, ...]


def make_demo(
    folder: Path,
    *,
    minutes: float | None = None,
    say: Say = lambda line: None,
    progress: Progress = lambda stage, done, total: None,
) -> Demo:
    """Train a model and write it to folder.

    minutes: at most so long; fewer steps than usual then. Without it the result is the same
    wherever Python, its packages and the number of threads are.
    Raises ExportError if this Python has no text, StorageError if the folder cannot be written.
    """
    text = corpus()
    recipe = Recipe()
    tokenizer = demo_tokenizer(text, recipe)
    say(
        f"{text.characters / 1e6:.1f} M characters of {len(text.training)} documents, "
        f"{len(text.answers)} answers; corpus {text.digest[:12]}"
    )
    if minutes is not None:
        recipe = replace(recipe, steps=steps_in(minutes, text, tokenizer, recipe))
    model, report = train(
        text, tokenizer, recipe, tick=lambda step, loss: progress("training", step, recipe.steps)
    )
    write_folder(model, tokenizer, folder)
    answers = tuple(answer_to(model, tokenizer, question) for question in QUESTIONS)
    return Demo(folder=folder, report=report, answers=answers)


def demo_tokenizer(text: Corpus, recipe: Recipe) -> Any:
    """Return a tokenizer that has learnt from what the model learns from."""
    texts = [document.text for document in text.training]
    texts += [f"{answer.subject} {answer.text}" for answer in text.answers]
    return train_tokenizer(texts, vocabulary=recipe.vocabulary)


def steps_in(
    minutes: float,
    text: Corpus,
    tokenizer: Any,
    recipe: Recipe,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Return how many steps of a recipe fit into so much time here, all of them at most."""
    ticks: list[float] = []
    trial = replace(recipe, steps=TIMED_STEPS)
    fit(
        untrained(tokenizer, trial),
        batches(text, tokenizer, trial),
        trial,
        tick=lambda step, loss: ticks.append(clock()),
    )
    step_s = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    return max(FEWEST_STEPS, min(recipe.steps, int(60 * minutes / max(step_s, 1e-9))))
