from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edge.chat.template import ChatTemplate
from edge.chat.tokenizer import ChatTokenizer
from host_tools.chat.demo.folder import write_folder
from host_tools.chat.demo.rows import IGNORED, all_exchanges, chat_rows, conversation, plain_rows
from host_tools.chat.demo.tokens import CHAT_TEMPLATE, END_OF_TURN, SPECIAL, train_tokenizer
from host_tools.chat.demo.training import Recipe, untrained

TINY = Recipe(hidden=64, intermediate=64, layers=1, heads=2, kv_heads=1)
USER = {"role": "user", "content": "What does str.split do? <b>é</b>\n"}
ASSISTANT = {"role": "assistant", "content": "It splits."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="session")
def folder(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "model"
    write_folder(untrained(tokenizer, TINY), tokenizer, path)
    return path


@pytest.fixture(scope="session")
def small():
    return train_tokenizer(["one text is enough for this", "one more"], vocabulary=300)


@given(text=st.text())
def test_every_text_comes_back(small, text):
    if not any(token in text for token in SPECIAL):
        ids = small.encode(text).ids
        assert small.decode(ids, skip_special_tokens=False) == text


def test_a_document_comes_back_with_few_tokens(text, tokenizer):
    document = text.held_out[0].text
    ids = tokenizer.encode(document).ids
    assert tokenizer.decode(ids) == document
    assert len(ids) < len(document) / 2


def test_special_tokens_are_the_first_ones(tokenizer):
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2]
    assert tokenizer.encode(f"a{END_OF_TURN}").ids[-1] == 2


def test_the_device_reads_the_tokenizer(folder, tokenizer):
    opened = ChatTokenizer.open((folder / "tokenizer.json").read_bytes())
    text = "def f(x): return 'é€😀'\n"
    ids = opened.encode(text)
    assert ids == tokenizer.encode(text).ids
    assert b"".join(opened.bytes_of(token) for token in ids).decode() == text
    assert opened.is_special(2)


@pytest.mark.parametrize(
    "messages", [[USER], [SYSTEM, USER], [SYSTEM, USER, ASSISTANT, USER]], ids=len
)
def test_a_prompt_is_the_one_that_transformers_renders(folder, messages):
    reference = AutoTokenizer.from_pretrained(folder)
    expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    template = ChatTemplate.open(reference.chat_template, tokens={})
    assert template.render(messages) == expected
    encoded = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    opened = ChatTokenizer.open((folder / "tokenizer.json").read_bytes())
    assert opened.encode(expected) == list(encoded)


def test_conversations_are_learnt_as_they_will_be_spelled(text, folder):
    reference = AutoTokenizer.from_pretrained(folder)
    template = ChatTemplate.open(CHAT_TEMPLATE, tokens={})
    rng = np.random.default_rng(0)
    exchanges = all_exchanges(text, rng)
    lengths = set()
    for _ in range(50):
        parts = conversation(template, exchanges, rng)
        spelled = "".join(prompt + answer for prompt, answer in parts)
        messages = messages_of(spelled)
        assert spelled == reference.apply_chat_template(messages, tokenize=False)
        lengths.add(len(messages))
    assert len(lengths) > 3  # with and without a system message, of one turn and more


def messages_of(spelled):
    turns = [turn for turn in spelled.split("<|im_end|>\n") if turn]
    pairs = [turn.removeprefix("<|im_start|>").split("\n", 1) for turn in turns]
    return [{"role": role, "content": content} for role, content in pairs]


def test_of_conversations_only_answers_are_learnt(text, tokenizer):
    rng = np.random.default_rng(1)
    rows, targets = chat_rows(tokenizer, all_exchanges(text, rng), 128, 20, rng)
    learnt = "".join(tokenizer.decode(row[row != IGNORED], skip_special_tokens=False)
                     for row in targets)  # fmt: skip
    known = {answer.text for answer in text.answers}
    answers = [answer for answer in learnt.split("<|im_end|>\n") if answer]
    assert len(answers) > 20
    assert sum(answer in known for answer in answers) > 0.9 * len(answers)  # others: small talk
    assert "<|im_start|>" not in learnt
    assert (rows[:, 0] == 1).all()  # a row begins with a turn
    assert (targets == IGNORED).sum() > 0


def test_plain_rows_are_the_texts_with_ends_between_them(text, tokenizer):
    documents = text.held_out[:20]
    stream = plain_rows(tokenizer, documents, 16).ravel()
    expected = "<|endoftext|>".join(document.text for document in documents)
    found = tokenizer.decode(stream, skip_special_tokens=False)
    assert expected.startswith(found[:-20])
    assert len(found) > len(expected) - 200
