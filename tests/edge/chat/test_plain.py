"""`POST /chat`: a question and its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.chat.answer import Prepared
from edge.chat.chat_model import ChatModel
from edge.chat.plain import model_of_plain
from edge.errors import BodyTooLargeError, ContextLengthError, InferenceError, InputError
from edge.openai_form import FieldError
from tests.edge.chat.talking import CONTEXT, LIBRARY, SayingDecoder, chat_model, say
from tests.edge.chat.test_chat_model import Failing

SAID = "Größe 🙂 of the cat!"
THOUGHT = f"<think>\nHm.\n</think>\n\n{SAID}"


def ask(model: ChatModel | None = None, **fields: Any) -> Prepared:
    return (model or chat_model()).ask(json.dumps({"query": "Hi", **fields}).encode())


def prompt_of(prepared: Prepared) -> str:
    return LIBRARY.decode(prepared.generations[0].prompt, skip_special_tokens=False)


def test_a_question_has_an_answer() -> None:
    prepared = ask()
    answer = json.loads(say(prepared, SayingDecoder(THOUGHT)).bytes)
    usage = answer.pop("usage")
    assert answer == {
        "answer": SAID,
        "reasoning": "Hm.",
        "model": "tiny",
        "finish_reason": "stop",
    }
    assert usage["prompt_tokens"] == len(prepared.generations[0].prompt)
    assert prepared.answer.content_type == "application/json"


def test_a_stream_is_the_text_of_the_answer_and_nothing_else() -> None:
    prepared = ask(stream=True)
    client = say(prepared, SayingDecoder(THOUGHT))
    assert client.bytes.decode() == SAID
    assert sum(map(bool, client.sent)) > 3
    for piece in client.sent:
        piece.decode()  # whole characters
    assert prepared.answer.content_type == "text/plain; charset=utf-8"


def test_what_was_said_before_and_the_system_are_told() -> None:
    history = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    prompt = prompt_of(ask(system="Be brief.", history=history, enable_thinking=False))
    said = [part.split("<|im_end|>")[0] for part in prompt.split("<|im_start|>")[1:]]
    assert said == [
        *("system\nBe brief.", "user\nA?", "assistant\nB.", "user\nHi"),
        "assistant\n<think>\n\n</think>\n\n",
    ]


def test_an_answer_may_be_bounded() -> None:
    answer = json.loads(say(ask(max_tokens=2), SayingDecoder("the cat sat")).bytes)
    assert (answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 2)
    answer = json.loads(say(ask(stop=" sat"), SayingDecoder("the cat sat")).bytes)
    assert (answer["finish_reason"], answer["answer"]) == ("stop", "the cat")


def test_a_model_without_a_template_goes_on_the_question() -> None:
    model = chat_model(None)
    prepared = ask(model)
    assert prompt_of(prepared) == "<|begin_of_text|>Hi"
    answer = json.loads(say(prepared, SayingDecoder(" there <think>")).bytes)
    assert answer["answer"] == " there <think>"
    for field, value in (("system", "x"), ("history", [{"role": "user", "content": "x"}])):
        with pytest.raises(FieldError, match="only goes on") as raised:
            ask(model, **{field: value})
        assert raised.value.field == field


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_is_raised_whether_there_was_text_or_not(stream: bool) -> None:
    client = say(ask(stream=stream), Failing(5))
    assert isinstance(client.errors[0], InferenceError)
    assert bool(client.bytes) is stream


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"query": ""}, "query"),
        ({"query": 3}, "query"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 1000}, "stop"),
        ({"temperature": 9}, "temperature"),
        ({"history": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_with_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as raised:
        ask(**fields)
    assert raised.value.field == field


def test_a_question_that_is_none_or_too_long_is_refused() -> None:
    with pytest.raises(InputError):
        chat_model().ask(b"Hi")
    with pytest.raises(ContextLengthError):
        ask(query="x " * CONTEXT)


def test_a_question_may_name_its_model() -> None:
    assert model_of_plain(b'{"query": "Hi", "model": "tiny"}') == "tiny"
    assert model_of_plain(b'{"query": "Hi"}') is None
    with pytest.raises(BodyTooLargeError):
        model_of_plain(b" " * (6 << 20))
