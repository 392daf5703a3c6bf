from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.generation import logits_process

from edge.chat.sampling import (
    LEAST_LOGPROB,
    Sampler,
    SamplingOptions,
    Workspace,
    weights_of,
)
from edge.errors import InferenceError

VOCABULARY = 1000
PROMPT = (7, 7, 9, 400, 999)
GREEDY = SamplingOptions(temperature=0)
SEEDED = SamplingOptions(seed=3)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return (np.random.default_rng(1).normal(size=(8, VOCABULARY)) * 3).astype(np.float32)


class Only:
    """Allows some tokens, always the same."""

    def __init__(self, tokens) -> None:
        is_allowed = np.zeros(VOCABULARY, bool)
        is_allowed[list(tokens)] = True
        self.bits = np.packbits(is_allowed, bitorder="little")
        self.accepted: list[int] = []

    def allowed(self) -> np.ndarray:
        return self.bits

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def sampler_of(
    options: SamplingOptions, prompt=PROMPT, vocabulary=VOCABULARY, only: Only | None = None
) -> Sampler:
    return Sampler(options, prompt, Workspace(vocabulary), only)


def tokens_of(options: SamplingOptions, rows, prompt=PROMPT) -> list[int]:
    sampler = sampler_of(options, prompt)
    return [sampler.sample(row).token for row in rows]


def reference(options: SamplingOptions, row: np.ndarray) -> np.ndarray:
    """The probabilities that transformers draws from."""
    warpers = [logits_process.TemperatureLogitsWarper(options.temperature)]
    if options.top_k is not None:
        warpers.append(logits_process.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        warpers.append(logits_process.TopPLogitsWarper(options.top_p))
    if options.min_p > 0:
        warpers.append(logits_process.MinPLogitsWarper(options.min_p))
    scores = torch.from_numpy(row[None].astype(np.float64))
    for warp in warpers:
        scores = warp(None, scores)
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": VOCABULARY},
        {"top_p": 0.9},
        {"top_p": 0.1},
        {"top_p": 0.999, "temperature": 5.0},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"top_k": 50, "top_p": 0.8, "min_p": 0.02, "temperature": 0.7},
        {"top_p": 0.95, "min_p": 0.001, "temperature": 1.5},
    ],
    ids=str,
)
def test_tokens_are_drawn_with_the_probabilities_of_transformers(chosen, rows):
    options = SamplingOptions(**chosen)
    for row in rows:
        out = np.empty(VOCABULARY, np.float32)
        weights, ids = weights_of(row, options, out=out)
        ours = np.zeros(VOCABULARY)
        ours[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
        # FP32 logits over a temperature and one exp: a few ulp of 20.
        np.testing.assert_allclose(ours, reference(options, row), rtol=2e-5, atol=1e-9)


def test_a_repetition_penalty_is_that_of_transformers(rows):
    penalize = logits_process.RepetitionPenaltyLogitsProcessor(1.3)
    sampler = sampler_of(replace(GREEDY, repetition_penalty=1.3))
    ids = list(PROMPT)
    for row in rows:
        scores = penalize(torch.tensor([ids]), torch.from_numpy(row[None].copy()))
        ids.append(sampler.sample(row).token)
        assert ids[-1] == int(scores.argmax())


def test_a_bias_is_that_of_transformers(rows):
    bias = {4: 100.0, 5: -100.0, 6: 3.5}
    process = logits_process.SequenceBiasLogitsProcessor({(k,): v for k, v in bias.items()})
    options = replace(GREEDY, bias=tuple(bias.items()))
    for row in rows:
        scores = process(torch.tensor([[1]]), torch.from_numpy(row[None].copy()))
        assert sampler_of(options).sample(row).token == int(scores.argmax()) == 4


def test_presence_and_frequency_penalties_count_what_was_answered_and_not_the_prompt():
    row = np.zeros(VOCABULARY, np.float32)
    row[[7, 20, 30]] = 2.0, 1.9, 1.0
    options = replace(GREEDY, presence_penalty=0.5, frequency_penalty=0.3)
    # 7: 2.0, then less 0.8, less 1.1, ...; 20: 1.9, 1.1, 0.8, ...; 30: 1.0, 0.2
    assert tokens_of(options, [row] * 6) == [7, 20, 7, 20, 30, 7]


def test_the_history_grows_with_the_answer(rows):
    row = np.zeros(VOCABULARY, np.float32)
    options = replace(GREEDY, presence_penalty=0.5)
    assert tokens_of(options, [row] * VOCABULARY) == list(range(VOCABULARY))


def test_greedy_takes_the_lowest_of_equal_tokens():
    row = np.zeros(VOCABULARY, np.float32)
    row[[500, 300, 800]] = 5.0
    assert tokens_of(GREEDY, [row]) == [300]


def test_a_temperature_of_almost_nothing_is_greedy(rows):
    assert tokens_of(replace(SEEDED, temperature=1e-30), rows) == list(rows.argmax(axis=1))


@pytest.mark.parametrize("options", [SEEDED, replace(SEEDED, top_p=0.9), replace(SEEDED, top_k=9)])
def test_a_seed_gives_the_same_tokens_whatever_else_is_sampled_beside(options, rows):
    alone = tokens_of(options, rows)
    workspace = Workspace(VOCABULARY)
    sampler = Sampler(options, PROMPT, workspace)
    other = Sampler(replace(options, seed=8, presence_penalty=1.0), (), workspace)
    beside = []
    for row in rows:
        other.sample(row[::-1])
        beside.append(sampler.sample(row).token)
        other.sample(row)
    assert beside == alone


def test_a_batch_that_moves_logits_by_an_ulp_does_not_change_what_a_seed_gives(rows):
    flat = rows / 10
    moved = np.nextafter(flat, np.float32(np.inf))
    moved[:, ::2] = np.nextafter(flat, np.float32(-np.inf))[:, ::2]
    assert tokens_of(SEEDED, moved) == tokens_of(SEEDED, flat)


def test_other_seeds_give_other_tokens_and_none_gives_any(rows):
    flat = rows / 10
    seeds = (0, 1, -1, 1 << 63, None, None)
    answers = {tuple(tokens_of(replace(SEEDED, seed=seed), flat)) for seed in seeds}
    assert len(answers) == len(seeds)


def test_frequencies_are_the_probabilities():
    row = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    sampler = sampler_of(SEEDED, (), 4)
    counts = np.bincount([sampler.sample(row).token for _ in range(20_000)], minlength=4)
    # Four standard deviations of the largest, sqrt(20,000 / 4), on a fixed seed.
    np.testing.assert_allclose(counts, 20_000 * np.exp(row), atol=283)


@pytest.mark.parametrize("options", [GREEDY, SEEDED, replace(SEEDED, top_k=3, bias=((5, 100.0),))])
def test_only_tokens_that_are_allowed_come_and_the_constraint_hears_of_them(options, rows):
    only = Only({5, 8, 13, 996, 999})
    sampler = sampler_of(options, only=only)
    tokens = [sampler.sample(row).token for row in rows]
    assert set(tokens) <= {5, 8, 13, 996, 999}
    assert tokens == only.accepted


def test_a_constraint_to_one_token_gives_it_and_one_to_none_is_an_error(rows):
    assert sampler_of(SEEDED, only=Only({999})).sample(rows[0]).token == 999
    with pytest.raises(InferenceError, match="no token may follow"):
        sampler_of(SEEDED, only=Only(())).sample(rows[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [GREEDY, SEEDED, replace(SEEDED, top_k=5, min_p=0.1)])
def test_logits_that_are_no_numbers_are_an_error(bad, options, rows):
    row = rows[0].copy()
    row[700] = bad
    with pytest.raises(InferenceError, match="a row of logits holds"):
        sampler_of(options).sample(row)


def test_the_row_is_not_written_to(rows):
    row = rows[0].copy()
    row.setflags(write=False)
    options = replace(SEEDED, presence_penalty=1.0, bias=((4, 1.0),), logprobs=3, top_p=0.9)
    sampler_of(options, only=Only(range(500))).sample(row)


def test_logprobs_are_the_models_own_whatever_the_options(rows):
    expected = torch.from_numpy(rows).double().log_softmax(-1).numpy()
    sampler = sampler_of(replace(SEEDED, logprobs=5, temperature=0.5, bias=((4, 50.0),)))
    for row, logprobs in zip(rows, expected, strict=True):
        sampled = sampler.sample(row)
        assert sampled.token == 4
        assert sampled.logprob == pytest.approx(logprobs[4], abs=1e-5)
        best = np.argsort(-logprobs)[:5]
        assert [one.token for one in sampled.likeliest] == list(best)
        assert [o.logprob for o in sampled.likeliest] == pytest.approx(logprobs[best], abs=1e-5)


def test_the_chosen_token_alone_has_a_logprob_if_no_others_are_asked_for(rows):
    sampled = sampler_of(replace(GREEDY, logprobs=0)).sample(rows[0])
    assert sampled.logprob is not None
    assert sampled.likeliest == ()


def test_a_logprob_is_a_finite_number_even_of_what_cannot_come():
    row = np.array([0.0, -np.inf], np.float32)
    sampled = sampler_of(replace(GREEDY, logprobs=2), (), 2).sample(row)
    assert [one.logprob for one in sampled.likeliest] == [0.0, LEAST_LOGPROB]


def test_tokens_of_a_prompt_or_a_bias_beyond_the_vocabulary_do_not_count(rows):
    options = replace(GREEDY, repetition_penalty=1.5, bias=((VOCABULARY, 9.0),))
    assert tokens_of(options, rows[:1], prompt=(VOCABULARY + 5,)) == [int(rows[0].argmax())]


@pytest.mark.parametrize(
    ("options", "top"),
    [
        (GREEDY, 1),
        (replace(GREEDY, top_k=20, top_p=0.5), 1),
        (replace(SEEDED, top_k=20), 20),
        (replace(SEEDED, top_k=20, top_p=0.9, min_p=0.01), 20),
        (SEEDED, None),
        (replace(SEEDED, top_p=0.9), None),
        (replace(GREEDY, logprobs=0), None),
        (replace(GREEDY, bias=((5, 1.0),)), None),
        (replace(GREEDY, repetition_penalty=1.1), None),
        (replace(GREEDY, frequency_penalty=0.5), None),
    ],
)
def test_the_largest_logits_that_a_sampler_asks_for_decide(options, top, rows):
    """The others may be anything smaller, such as minus infinity."""
    assert sampler_of(options).top == top
    if top is None:
        return
    few = np.where(rows >= np.sort(rows)[:, -top, None], rows, -np.inf).astype(np.float32)
    assert tokens_of(options, few) == tokens_of(options, rows)


def test_a_constrained_sampler_asks_for_all_logits():
    assert sampler_of(GREEDY, only=Only([3])).top is None
