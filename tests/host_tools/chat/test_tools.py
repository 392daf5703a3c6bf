from __future__ import annotations

import json

import pytest
from transformers.models.llama4 import processing_llama4

from edge.chat.answer_parser import AnswerForm, AnswerParser
from edge.chat.call_grammar import call_grammar, thought_grammar
from edge.chat.grammar import ANY_OBJECT, json_grammar
from edge.chat.tokenizer import ChatTokenizer
from edge.chat.tools import (
    calls_from,
    is_thinking,
    new_call_id,
    shown_tokens,
    thinks,
    tool_form,
)
from tests.edge.chat.made_tokenizers import byte_level, json_of
from tests.edge.chat.templates import LLAMA, MISTRAL, QWEN2, QWEN3
from tests.edge.chat.test_grammar import Speaker

TOKENIZER = ChatTokenizer.open(json_of(byte_level()))
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Rom"]}, "days": {"type": "integer"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
FORMS = ("hermes", "llama", "mistral", "mistral-named")


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker(byte_level())


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (QWEN2, "hermes"),
        (QWEN3, "hermes"),
        (LLAMA, "llama"),
        (processing_llama4.chat_template, "llama"),
        (MISTRAL, "mistral"),
        ("{{ '[TOOL_CALLS]' + call.name + '[ARGS]' + call.arguments }}", "mistral-named"),
        ("{{ messages[0].content }}", None),
        ("<tool_call>\n<function=f>\n<parameter=x>", None),
    ],
)
def test_a_template_tells_how_its_model_calls_tools(template, form):
    assert tool_form(template) == form


def test_a_template_tells_whether_its_model_thinks():
    assert [thinks(template) for template in (QWEN2, QWEN3, LLAMA)] == [False, True, False]


def test_a_prompt_tells_whether_the_model_is_thinking_already():
    assert is_thinking("<|im_start|>assistant\n<think>\n")
    assert not is_thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not is_thinking("What does <think> mean?<|im_start|>assistant\n")


def test_signs_within_an_answer_are_shown_even_if_they_are_special_tokens():
    sign = TOKENIZER.token_of
    assert shown_tokens("mistral", TOKENIZER) >= {sign("[TOOL_CALLS]"), sign("<think>")}
    assert shown_tokens("llama", TOKENIZER) >= {sign("<|python_tag|>")}
    assert sign("[TOOL_CALLS]") not in shown_tokens(None, TOKENIZER)
    assert sign("<|im_end|>") not in shown_tokens("hermes", TOKENIZER)


def test_ids_are_such_as_the_template_takes():
    mistral = {new_call_id("mistral") for _ in range(100)}
    assert len(mistral) == 100
    assert all(len(one) == 9 and one.isascii() and one.isalnum() for one in mistral)
    assert new_call_id("hermes").startswith("call_")


def test_arguments_are_as_the_model_wrote_them():
    text = '{"name": "f",  "parameters": {"a" : 1.50, "b":"\\u00e9"} }'
    assert calls_from("llama", text) == [("f", '{"a" : 1.50, "b":"\\u00e9"}')]


@pytest.mark.parametrize(
    "text", ["", " ", "1", "{}", '{"name": 1}', '{"name": ""}', "[", '{"name": "f"} x', "NaN"]
)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_call_is_none(form, text):
    assert calls_from(form, text) is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", FORMS)
def test_an_answer_that_must_call_calls_whatever_the_model_would_say(speaker, form, seed):
    grammar = call_grammar(form, TOOLS, TOKENIZER, parallel=False, before="")
    parser = AnswerParser(AnswerForm(calls=form, names=frozenset({"get_weather", "now"})), str)
    first, last = parser.push(speaker.answer(grammar, seed)), parser.finish()
    (call,) = first.calls + last.calls
    assert first.content + last.content == ""
    arguments = json.loads(call.arguments)
    if call.name == "get_weather":
        assert arguments["city"] in {"Paris", "Rom"}
        assert arguments.keys() <= {"city", "days"}
    else:
        assert call.name == "now"


@pytest.mark.parametrize("form", ["hermes", "mistral", "mistral-named"])
def test_several_calls_are_taken_only_where_they_may_come(speaker, form):
    call = '{"name": "now", "arguments": {}}'
    text = {
        "hermes": f"<tool_call>\n{call}\n</tool_call>\n<tool_call>\n{call}\n</tool_call>",
        "mistral": f"[TOOL_CALLS][{call}, {call}]",
        "mistral-named": "[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now[ARGS]{}",
    }[form]
    for parallel in (True, False):
        grammar = call_grammar(form, TOOLS, TOKENIZER, parallel=parallel, before="")
        assert speaker.takes(grammar, text) is parallel


def test_a_model_may_think_before_an_answer_that_has_a_form(speaker):
    for opened in (False, True):
        before = thought_grammar(TOKENIZER, is_thinking=opened)
        grammar = json_grammar(ANY_OBJECT, strict=True, before=before)
        start = "" if opened else "<think>"
        assert speaker.takes(grammar, start + "\nHm <b> {x}\n\n</think>\n\n{}")
        assert speaker.takes(grammar, "{}") is not opened
        assert not speaker.takes(grammar, start + "Hm</think>\nHm {}")
        assert not speaker.takes(grammar, start + "Hm {}")
        calls = call_grammar("hermes", TOOLS, TOKENIZER, parallel=False, before=before)
        call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
        assert speaker.takes(calls, f"{start}Hm\n</think>\n\n{call}")


def test_a_model_without_tokens_for_its_thoughts_has_none_before_such_an_answer():
    library = byte_level()
    library.add_special_tokens([])
    bare = json.loads(json_of(library))
    bare["added_tokens"] = [t for t in bare["added_tokens"] if "think" not in t["content"]]
    tokenizer = ChatTokenizer.open(json.dumps(bare).encode())
    assert thought_grammar(tokenizer, is_thinking=False) == ""
