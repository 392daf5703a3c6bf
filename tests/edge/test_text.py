from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from edge.errors import BackendUnavailableError, InputError
from edge.spec import Datatype, Profile, ShapeRange, TensorSpec
from edge.text import MAX_CHARACTERS, TextPreprocessing, Tokenizer, problem_with
from tests.encoders import VOCABULARY, ids_of, tokenizer_json

NAMES = ("input_ids", "attention_mask", "token_type_ids")
STEPS = TextPreprocessing(
    tokenizer="t.json", ids=NAMES[0], mask=NAMES[1], types=NAMES[2], max_tokens=64
)


def interface(
    *names: str, datatype: Datatype = "INT64", low: tuple[int, int] = (1, 4)
) -> tuple[tuple[TensorSpec, ...], Profile]:
    specs = tuple(TensorSpec(name=n, datatype=datatype, shape=("batch", "tokens")) for n in names)
    bounds = ShapeRange(min=low, opt=(8, 64), max=(32, 64))
    return specs, Profile(ranges=dict.fromkeys(names, bounds))


INPUTS, PROFILE = interface(*NAMES)


@pytest.fixture(scope="module")
def content() -> bytes:
    return tokenizer_json()


@pytest.fixture(scope="module")
def tokenizer(content: bytes) -> Tokenizer:
    return Tokenizer.open(content, STEPS)


def test_a_long_text_is_refused_if_so_declared(content: bytes) -> None:
    tokenizer = Tokenizer.open(content, replace(STEPS, truncation="refuse"))
    assert len(tokenizer.tokens_of_texts(["cat " * 62])[0]) == 64
    with pytest.raises(InputError, match="65 tokens, the model takes 64"):
        tokenizer.tokens_of_texts(["cat " * 63])


def test_what_would_take_long_to_read_is_refused_before(tokenizer: Tokenizer) -> None:
    half = "a" * (MAX_CHARACTERS // 2)
    assert len(tokenizer.tokens_of_texts([half, half])) == 2
    with pytest.raises(InputError, match=f"more than {MAX_CHARACTERS}"):
        tokenizer.tokens_of_texts([half, half, "a"])


def test_half_of_a_surrogate_pair_is_an_input_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="cannot be tokenized"):
        tokenizer.tokens_of_texts(["\ud83d"])


def test_another_thread_runs_while_a_long_text_is_read(tokenizer: Tokenizer) -> None:
    is_done, seen = threading.Event(), []

    def read() -> None:
        tokenizer.tokens_of_texts(["word 文 " * (MAX_CHARACTERS // 7)])
        is_done.set()

    thread = threading.Thread(target=read)
    thread.start()
    while not is_done.is_set():
        seen.append(None)
        is_done.wait(0.001)
    thread.join()
    # It takes at least 100 ms; had it held Python's lock, this thread would have run once or twice.
    assert len(seen) > 10


def test_tokens_of_a_client_are_taken_as_they_are_and_cut(tokenizer: Tokenizer) -> None:
    long = [5 + number % 20 for number in range(100)]
    rows = tokenizer.tokens_of_ids([[2, 9, 3], long])
    assert [row.ids for row in rows] == [(2, 9, 3), tuple(long[:64])]
    feeds = tokenizer.feeds(rows, INPUTS, PROFILE)
    np.testing.assert_array_equal(feeds["attention_mask"].sum(axis=1), [3, 64])
    assert not feeds["token_type_ids"].any()


@pytest.mark.parametrize("bad", [[len(VOCABULARY)], [-1], [5, 10**12]])
def test_tokens_that_do_not_exist_never_reach_the_model(
    tokenizer: Tokenizer, bad: list[int]
) -> None:
    with pytest.raises(InputError, match="does not exist"):
        tokenizer.tokens_of_ids([[1, 2], bad])


def test_no_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="empty"):
        tokenizer.tokens_of_ids([[1], []])


def test_short_texts_are_padded_to_what_the_model_takes_at_least(content: bytes) -> None:
    inputs, profile = interface("ids", datatype="INT32", low=(1, 16))
    how = TextPreprocessing(tokenizer="t", ids="ids", max_tokens=64, pad=7)
    tokenizer = Tokenizer.open(content, how)
    feeds = tokenizer.feeds(tokenizer.tokens_of_texts(["The dog"]), inputs, profile)
    assert feeds["ids"].tolist() == [ids_of("the", "dog") + [7] * 12]
    assert feeds["ids"].dtype == np.int32


def test_what_is_no_tokenizer_is_told_with_the_version_that_read_it() -> None:
    for content in (b"{}", b"\xff", json.dumps({"version": "9.0"}).encode()):
        with pytest.raises(BackendUnavailableError, match=r"tokenizers 0\.\d+\.\d+ cannot read t"):
            Tokenizer.open(content, STEPS)


def test_without_the_package_it_is_said_what_to_install(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BackendUnavailableError, match=r"edge-kit\[text\]"):
        Tokenizer.open(content, STEPS)


def test_steps_that_cannot_feed_the_model_are_told_apart() -> None:
    assert problem_with(STEPS, INPUTS, PROFILE) is None
    without = replace(STEPS, types=None)
    assert "text gives" in str(problem_with(without, INPUTS, PROFILE))
    assert "the model takes" in str(problem_with(STEPS, *interface("input_ids")))
    assert "FP32" in str(problem_with(STEPS, *interface(*NAMES, datatype="FP32")))
    assert "65 is more" in str(problem_with(replace(STEPS, max_tokens=65), INPUTS, PROFILE))
    flat = (replace(INPUTS[0], shape=("batch",)), *INPUTS[1:])
    assert "(texts, tokens)" in str(problem_with(STEPS, flat, PROFILE))
    bounds = PROFILE.ranges[NAMES[0]]
    other = replace(bounds, max=(16, 64))
    differs = Profile(ranges={**PROFILE.ranges, NAMES[0]: other})
    assert "differ" in str(problem_with(STEPS, INPUTS, differs))
