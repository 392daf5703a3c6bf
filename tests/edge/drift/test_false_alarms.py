"""How often windows without a shift are taken for drift, and how soon shifts are found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, stats

from edge.drift.comparing import compare
from edge.drift.reading import Summary, Vocabulary
from edge.text import Tokenizer
from tests.edge.drift.populations import (
    digit_logits,
    digits,
    digits_model,
    english,
    reference_of,
    splits,
    summary_of,
    text_feeds,
    text_model,
    text_vectors,
    tokenizer_of,
    window_of,
)

LEVEL = 0.001  # the default of drift_level
WINDOW = 200  # of drift_window


@pytest.fixture(scope="module")
def scans() -> Summary:
    images, logits, _ = digits()
    return summary_of(digits_model(), {"image": images}, {"logits": logits})


class Texts:
    """English lines and what summarises others."""

    def __init__(self) -> None:
        self.lines = list(english())
        self._library = tokenizer_of(self.lines)
        how = text_model().text
        assert how is not None
        self._vocabulary = Vocabulary(Tokenizer(self._library, how))

    def summary(self, lines: list[str]) -> Summary:
        feeds = text_feeds(self._library, lines)
        return summary_of(
            text_model(), feeds, {"vector": text_vectors(feeds)}, vocabulary=self._vocabulary
        )


@pytest.fixture(scope="module")
def texts() -> Texts:
    return Texts()


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.05, LEVEL])
def test_a_thousand_windows_of_scans_without_a_shift_keep_the_level(scans, level):
    alarms = _alarms(splits(scans, references=20, windows=50, level=level, seed=1, classes=10))
    assert alarms <= stats.binom.ppf(0.999, 1000, level)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.05, LEVEL])
def test_a_thousand_windows_of_text_without_a_shift_keep_the_level(texts, level):
    summary = texts.summary(texts.lines)
    alarms = _alarms(splits(summary, references=20, windows=50, level=level, seed=2))
    assert alarms <= stats.binom.ppf(0.999, 1000, level)


def _alarms(windows) -> int:
    return sum(any(each.drifted for each in compared) for compared in windows)


def brighter(images: np.ndarray) -> np.ndarray:
    return np.clip(images + 0.2, 0, 1)


def blurred(images: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(images, (0, 0, 2, 2)).astype(np.float32)


def inverted(images: np.ndarray) -> np.ndarray:
    return 1 - images


@pytest.mark.parametrize(
    ("shift", "suspect"),
    [(brighter, "brightness"), (blurred, "sharpness"), (inverted, "contrast")],
)
def test_changed_images_are_found_within_one_window(scans, shift, suspect):
    images, _, _ = digits()
    order = np.random.default_rng(4).permutation(len(images))
    reference = reference_of(scans, order[:500], classes=10)
    for first in range(500, 1700, WINDOW):
        changed = shift(images[order[first : first + WINDOW]])
        summary = summary_of(digits_model(), {"image": changed}, {"logits": digit_logits(changed)})
        compared = compare(reference, window_of(summary, np.arange(WINDOW), reference), level=LEVEL)
        drifted = {each.name for each in compared if each.drifted}
        assert suspect in drifted or (shift is inverted and "brightness" in drifted)


def test_a_class_that_was_never_there_is_found_within_one_window(scans):
    _, _, labels = digits()
    rng = np.random.default_rng(5)
    known, new = rng.permutation(np.flatnonzero(labels != 7)), np.flatnonzero(labels == 7)
    reference = reference_of(scans, known[:500], classes=10)
    for _ in range(6):
        rows = np.concatenate([rng.choice(known[500:], 140, False), rng.choice(new, 60, False)])
        compared = compare(reference, window_of(scans, rows, reference), level=LEVEL)
        assert next(each for each in compared if each.kind == "classes").drifted


def test_another_language_is_found_within_one_window(texts):
    import codecs

    rng = np.random.default_rng(6)
    order = rng.permutation(len(texts.lines))
    english_lines = [texts.lines[number] for number in order]
    summary = texts.summary(english_lines[:500])
    reference = reference_of(summary, np.arange(500))
    found = []
    for lines in (german(), [codecs.encode(line, "rot13") for line in english_lines[500:700]]):
        window = texts.summary(lines)
        rows = np.arange(len(lines))
        compared = compare(reference, window_of(window, rows, reference), level=LEVEL)
        found.append({each.name for each in compared if each.drifted})
    assert "characters per token" in found[0]
    assert "whole rows" in found[0] & found[1]


def german() -> list[str]:
    # The first sentences of the Universal Declaration of Human Rights, each from several places.
    text = (
        "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft "
        "und Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen. Jeder hat "
        "Anspruch auf die in dieser Erklärung verkündeten Rechte und Freiheiten ohne irgendeinen "
        "Unterschied, etwa nach Rasse, Hautfarbe, Geschlecht, Sprache, Religion, politischer oder "
        "sonstiger Überzeugung, nationaler oder sozialer Herkunft, Vermögen, Geburt oder sonstigem "
        "Stand. Jeder hat das Recht auf Leben, Freiheit und Sicherheit der Person. Niemand darf in "
        "Sklaverei oder Leibeigenschaft gehalten werden; Sklaverei und Sklavenhandel in allen "
        "ihren Formen sind verboten. Niemand darf der Folter oder grausamer, unmenschlicher oder "
        "erniedrigender Behandlung oder Strafe unterworfen werden. Jeder hat das Recht, überall "
        "als rechtsfähig anerkannt zu werden. Alle Menschen sind vor dem Gesetz gleich."
    )
    words = text.split()
    lines = [" ".join(words[start : start + 9]) for start in range(len(words) - 9)]
    return [lines[number % len(lines)] for number in range(WINDOW)]
