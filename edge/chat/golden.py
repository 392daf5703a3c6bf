"""The golden run of a chat model: prompts whose logits every device must reproduce."""

from __future__ import annotations

import numpy as np

from edge.chat.decoder import Decoder, FloatArray, IntArray
from edge.chat.spec import GOLDEN_ROWS


def golden_logits(decoder: Decoder, tokens: IntArray) -> FloatArray:
    """Return logits [GOLDEN_ROWS, vocabulary] after each of the last tokens of a prompt [n].

    n: at least GOLDEN_ROWS. All but the last of these are run one at a time, as an answer is, so
    that both ways to run a graph are tried. Runs in lane 0; raises InferenceError.
    """
    split = len(tokens) - GOLDEN_ROWS + 1
    assert split > 0, len(tokens)  # noqa: S101 - checked where golden cases are made and read
    rows = []
    for begin in range(0, split, decoder.longest_step):
        part = tokens[begin : min(split, begin + decoder.longest_step)]
        logits = _step(decoder, part, begin)
    rows.append(logits)
    for position in range(split, len(tokens)):
        rows.append(_step(decoder, tokens[position : position + 1], position))
    return np.stack(rows)


def _step(decoder: Decoder, tokens: IntArray, start: int) -> FloatArray:
    wanted = np.array([[len(tokens) - 1]])
    logits = decoder.step(0, np.ascontiguousarray(tokens[None]), np.array([start]), wanted)
    row: FloatArray = logits[0, 0].copy()  # the next step may overwrite it
    return row
