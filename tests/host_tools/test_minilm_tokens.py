"""The device's tokenizer against transformers, on a real model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge.spec import Profile, ShapeRange, TensorSpec
from edge.text import TextPreprocessing, Tokenizer
from tests.minilm import sentences, weights_folder

NAMES = ("input_ids", "attention_mask", "token_type_ids")
STEPS = TextPreprocessing(
    tokenizer="t.json", ids=NAMES[0], mask=NAMES[1], types=NAMES[2], max_tokens=64
)
INPUTS = tuple(TensorSpec(name=n, datatype="INT64", shape=("batch", "tokens")) for n in NAMES)
BOUNDS = ShapeRange(min=(1, 1), opt=(8, 64), max=(32, 64))
PROFILE = Profile(ranges=dict.fromkeys(NAMES, BOUNDS))


@pytest.fixture(scope="module")
def content() -> bytes:
    return (weights_folder() / "tokenizer.json").read_bytes()


@pytest.fixture(scope="module")
def reference() -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(weights_folder(), local_files_only=True)


ODD_TEXTS = [
    "",
    " ",
    "Don't panic: 42 naïve cafés, 日本語, Ünïcödé!",
    "emoji 👩‍👩‍👧 and zero\u200bwidth, \x00 control\tcharacters",
    "[MASK] and [SEP] as a user may type them",
    "x" * 300,
    "a b " * 400,
]


def test_the_inputs_are_those_of_transformers(content: bytes, reference: Any) -> None:
    tokenizer = Tokenizer.open(content, STEPS)
    texts = [*ODD_TEXTS, *sentences()[:200]]
    for first in range(0, len(texts), 23):
        batch = texts[first : first + 23]
        got = tokenizer.feeds(tokenizer.tokens_of_texts(batch), INPUTS, PROFILE)
        want = reference(
            batch, padding=True, truncation=True, max_length=64, return_token_type_ids=True
        )
        for name in NAMES:
            np.testing.assert_array_equal(got[name], np.array(want[name]), err_msg=name)
            assert got[name].dtype == np.int64


def test_the_start_of_a_long_text_is_cut_off_if_so_declared(content: bytes, reference: Any) -> None:
    tokenizer = Tokenizer.open(content, replace(STEPS, truncation="start"))
    (row,) = tokenizer.tokens_of_texts(["one two three four " * 50])
    reference.truncation_side = "left"
    try:
        want = reference("one two three four " * 50, truncation=True, max_length=64)["input_ids"]
    finally:
        reference.truncation_side = "right"
    assert list(row.ids) == want
