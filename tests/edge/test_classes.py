from __future__ import annotations

import math

import numpy as np
import pytest

from edge.classes import Classes, guesses, problem_with
from edge.spec import Datatype, TensorSpec

LABELS = tuple("abcdefgh")
CLASSES = Classes(output="y", labels=LABELS, softmax=True, top=3)


def outputs(*shape: int | str, datatype: Datatype = "FP32") -> tuple[TensorSpec, ...]:
    return (TensorSpec(name="y", datatype=datatype, shape=shape),)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_best_classes_come_first_with_their_probabilities(dtype: type) -> None:
    scores = np.random.default_rng(0).normal(0, 30, (5, 8)).astype(dtype)
    powers = [[math.exp(float(value)) for value in row] for row in scores]
    expected = [[value / math.fsum(row) for value in row] for row in powers]
    for row, found in zip(expected, guesses(scores, CLASSES), strict=True):
        assert [guess.number for guess in found] == sorted(range(8), key=lambda n: -row[n])[:3]
        assert [guess.label for guess in found] == [LABELS[guess.number] for guess in found]
        np.testing.assert_allclose([guess.score for guess in found], sorted(row)[::-1][:3])


def test_probabilities_stay_as_they_are_and_few_classes_are_all_named() -> None:
    plain = Classes(output="y", labels=("no", "yes"), softmax=False)
    (found,) = guesses(np.array([[0.25, 0.75]], np.float32), plain)
    assert [(guess.label, guess.score) for guess in found] == [("yes", 0.75), ("no", 0.25)]


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        (outputs("batch", 9), "8 labels for an output of"),
        (outputs("batch", "n"), "8 labels for an output of"),
        (outputs("batch", 8, 1), "not scores a row"),
        (outputs("batch", 8, datatype="INT64"), "not scores a row"),
        ((), "not 'y'"),
    ],
)
def test_labels_that_do_not_fit_are_told_apart(specs: tuple[TensorSpec, ...], words: str) -> None:
    assert problem_with(CLASSES, outputs("batch", 8)) is None
    assert words in str(problem_with(CLASSES, specs))
