from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge.chat.template import ChatTemplate
from host_tools.chat.demo.corpus import Corpus
from host_tools.chat.demo.demo import demo_tokenizer, steps_in
from host_tools.chat.demo.folder import write_folder
from host_tools.chat.demo.judge import answer_to, answers_known, perplexity
from host_tools.chat.demo.questions import PHRASES
from host_tools.chat.demo.rows import plain_rows
from host_tools.chat.demo.tokens import CHAT_TEMPLATE
from host_tools.chat.demo.training import Recipe, batches, pace, train, untrained
from host_tools.chat.llm_spec import llm_spec_from_folder
from tests.chat_models import write_onnx
from tests.host_tools.chat.decoding import PlainDecoder

TINY = Recipe(
    vocabulary=512,
    hidden=128,
    intermediate=256,
    layers=2,
    heads=2,
    kv_heads=1,
    length=96,
    rows=8,
    chat_rows=5,
    steps=150,
)


@pytest.fixture(scope="module")
def little(text):
    """Documents that are alike, and five answers."""
    documents = [d for d in text.training if d.name.startswith(("module asyncio", "module email"))]
    return Corpus(training=tuple(documents), held_out=text.held_out, answers=text.answers[-5:])


@pytest.fixture(scope="module")
def little_tokenizer(little):
    return demo_tokenizer(little, TINY)


@pytest.fixture(scope="module")
def trained(little, little_tokenizer):
    """A model trained for seconds, its report and what each step lost."""
    losses = []
    model, report = train(
        little, little_tokenizer, TINY, tick=lambda step, loss: losses.append(loss)
    )
    return model, report, losses


@pytest.mark.slow
def test_perplexity_falls_far_below_chance_on_text_never_seen(trained):
    _, report, losses = trained
    assert report.perplexity_before > 0.8 * TINY.vocabulary
    assert report.perplexity_after < TINY.vocabulary / 5
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_it_gives_the_answers_it_was_taught(trained, little, little_tokenizer):
    model, report, _ = trained
    assert report.known == 1.0
    for answer in little.answers:
        found = answer_to(model, little_tokenizer, PHRASES[0].format(answer.subject))
        assert found == answer.text


@pytest.mark.slow
def test_the_written_folder_answers_the_same_in_transformers_and_as_a_graph(
    trained, little, little_tokenizer, tmp_path
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_folder(trained[0], little_tokenizer, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    question = [{"role": "user", "content": PHRASES[0].format(little.answers[0].subject)}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    given = prompt["input_ids"].shape[1]
    found = model.generate(**prompt, do_sample=False, max_new_tokens=80)[0, given:].tolist()
    assert tokenizer.decode(found, skip_special_tokens=True) == little.answers[0].text
    assert found[-1] in llm_spec_from_folder(tmp_path / "model").eos == (0, 2)
    graph = write_onnx(tmp_path / "model", tmp_path / "model.onnx")
    ids = prompt["input_ids"][0].tolist()
    assert PlainDecoder(graph).greedy(ids, len(found)) == found


def test_chance_is_one_in_the_vocabulary(tokenizer, text):
    model = untrained(tokenizer, replace(TINY, vocabulary=2048))
    rows = plain_rows(tokenizer, text.held_out, 96)[:20]
    with_tiny_weights = [parameter.data.mul_(1e-3) for parameter in model.parameters()]
    assert with_tiny_weights
    assert perplexity(model, rows) == pytest.approx(tokenizer.get_vocab_size(), rel=0.01)


def test_an_answer_is_known_if_and_only_if_it_is_given(tokenizer, text):
    """A model that copies nothing knows nothing; what it says instead, it does know."""
    model = untrained(tokenizer, replace(TINY, length=64))
    answer = text.answers[0]
    assert answers_known(model, tokenizer, [answer], PHRASES[0]) == 0.0
    said = answer_to(model, tokenizer, PHRASES[0].format(answer.subject))
    assert said != answer.text


def test_two_trainings_see_the_same_in_the_same_order(little, little_tokenizer):
    recipe = replace(TINY, steps=12)
    first, again = (list(batches(little, little_tokenizer, recipe)) for _ in range(2))
    assert len(first) == 12
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.targets, other.targets)
        assert one.tokens.shape == (TINY.rows, TINY.length)


def test_the_rate_rises_and_falls_to_nothing():
    rates = [pace(step, 200) for step in range(200)]
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 1e-3
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_minutes_bound_the_steps(little, little_tokenizer):
    def steps(minutes, step_s):
        seconds = iter(range(100))
        return steps_in(
            minutes, little, little_tokenizer, TINY, clock=lambda: step_s * next(seconds)
        )

    assert steps(1, step_s=1) == 60
    assert steps(60, step_s=1) == TINY.steps
    assert steps(0.001, step_s=1) == 20


def test_what_is_learnt_is_what_the_agent_asks(little, little_tokenizer):
    template = ChatTemplate.open(CHAT_TEMPLATE, tokens={})
    asked = template.render([{"role": "user", "content": "x"}])
    batch = next(iter(batches(little, little_tokenizer, TINY)))
    ids = little_tokenizer.encode(asked).ids
    start = ids[: ids.index(little_tokenizer.encode("user").ids[0])]
    assert any(row[: len(start)].tolist() == start for row in batch.tokens)
