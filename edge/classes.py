"""From the scores of a classifier to the names of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np

from edge.spec import AnyArray, TensorSpec

MAX_LABELS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """What an output of shape (batch, classes) means.

    labels: by class number. softmax: whether its values are logits, which become probabilities.
    top: how many an answer names.
    """

    output: str
    labels: tuple[str, ...]
    softmax: bool
    top: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """One class of an answer."""

    label: str
    number: int
    score: float


def problem_with(classes: Classes, outputs: tuple[TensorSpec, ...]) -> str | None:
    """Return why a model with these outputs has no such classes, in words; None if it may."""
    spec = next((spec for spec in outputs if spec.name == classes.output), None)
    if spec is None:
        return f"the model gives {[s.name for s in outputs]}, not {classes.output!r}"
    if len(spec.shape) != 2 or spec.datatype not in {"FP32", "FP16"}:
        return f"output {spec.name!r} is {spec.wire_shape} of {spec.datatype}, not scores a row"
    if spec.shape[1] != len(classes.labels) or len(classes.labels) > MAX_LABELS:
        return f"{len(classes.labels)} labels for an output of {spec.wire_shape}"
    return None


def guesses(scores: AnyArray, classes: Classes) -> list[list[Guess]]:
    """Return the most probable classes of every row, the best first.

    scores: shape (rows, classes).
    """
    values = scores.astype(np.float64)
    if classes.softmax:
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    best = np.argsort(-values, axis=1, kind="stable")[:, : classes.top]
    return [
        [
            Guess(label=classes.labels[number], number=int(number), score=float(row[number]))
            for number in numbers
        ]
        for row, numbers in zip(values, best, strict=True)
    ]
