from __future__ import annotations

import copy
import datetime as dt

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.models.llama4 import processing_llama4

from edge.chat.template import MAX_TEMPLATE_BYTES, ChatTemplate
from edge.errors import InputError, ModelError
from tests.edge.chat.made_tokenizers import byte_level
from tests.edge.chat.templates import ALL, LLAMA, MISTRAL, QWEN3, TOOLS, USER

TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}
REFERENCE = PreTrainedTokenizerFast(tokenizer_object=byte_level(), **TOKENS)
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2.5, None]}},
}
SYSTEM = {"role": "system", "content": "Be brief. "}
ASSISTANT = {"role": "assistant", "content": "It is 'fine'.\n"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": '{"degrees": 21}', "tool_call_id": "call12345"}
THINKING = {"role": "assistant", "content": "<think>\nLet me see.\n</think>\n\nFine."}
REASONED = {"role": "assistant", "reasoning_content": "\nHm.\n", "content": "Fine."}
CONVERSATIONS = {
    "one turn": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ASSISTANT, USER],
    "tool": [USER, CALLING, RESULT],
    "tool and on": [SYSTEM, USER, CALLING, RESULT, ASSISTANT, USER],
    "two results": [USER, CALLING, RESULT, RESULT, ASSISTANT, USER],
    "thinking": [USER, THINKING, USER],
    "reasoned": [USER, REASONED, USER, CALLING, RESULT],
    "ends with the assistant": [USER, THINKING],
}


def rendered(source: str, messages, **options) -> str:
    return ChatTemplate.open(source, tokens=TOKENS).render(messages, **options)


def fail(source: str, messages=(USER,), **options) -> str:
    with pytest.raises(InputError) as raised:
        rendered(source, list(messages), **options)
    return str(raised.value)


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", [*ALL, "llama4"])
def test_a_prompt_is_the_one_that_transformers_renders(name, conversation, tools):
    source = {**ALL, "llama4": processing_llama4.chat_template}[name]
    messages = CONVERSATIONS[conversation]
    expected = REFERENCE.apply_chat_template(
        copy.deepcopy(messages),
        tools=copy.deepcopy(tools),
        chat_template=source,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert rendered(source, messages, tools=tools) == expected


@pytest.mark.parametrize("enable", [True, False])
def test_variables_reach_the_template(enable):
    expected = REFERENCE.apply_chat_template(
        [USER],
        chat_template=QWEN3,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=enable,
    )
    prompt = rendered(QWEN3, [USER], variables={"enable_thinking": enable})
    assert prompt == expected
    assert prompt.endswith("</think>\n\n") is not enable


def test_variables_replace_nothing_that_a_template_is_given():
    variables = {"messages": [], "add_generation_prompt": False}
    assert rendered(QWEN3, [USER], variables=variables) == rendered(QWEN3, [USER])


def test_the_date_is_the_devices():
    prompt = rendered(LLAMA, [USER], now=lambda: dt.datetime(2031, 2, 3, tzinfo=dt.timezone.utc))
    assert "Today Date: 2031\n" in prompt


def test_what_a_template_refuses_is_told_in_its_words():
    assert "does not take these messages: Conversation roles must" in fail(MISTRAL, [USER, USER])
    assert "only supports single tool-calls" in fail(
        LLAMA, [USER, {**CALLING, "tool_calls": [CALL, CALL]}]
    )


def test_a_conversation_that_a_template_fails_on_is_an_input_error():
    assert "UndefinedError" in fail("{{ messages[0].name.first }}")
    assert "TypeError" in fail("{{ 'a' + messages[0] }}")


def test_generation_marks_and_loop_controls_are_known():
    source = (
        "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}"
    )
    assert rendered(source, [USER, ASSISTANT]) == "user"


@pytest.mark.parametrize("source", ["{% for x", "{{ 1 | nothing }}", "{% nothing %}", "{{ }}"])
def test_a_template_that_is_none_is_refused_with_its_line(source):
    with pytest.raises(ModelError, match="cannot be compiled, line 3"):
        ChatTemplate.open("a\n\n" + source, tokens={})


@pytest.mark.parametrize("source", ["{{" + "(" * 5000, "{% if 1 %}" * 5000, "{{ 1" + "+1" * 9000])
def test_a_template_nested_too_deeply_is_refused(source):
    try:
        template = ChatTemplate.open(source, tokens={})
    except ModelError:
        return
    with pytest.raises(InputError):
        template.render([USER])


def test_a_long_template_is_refused_before_it_is_read():
    with pytest.raises(ModelError, match=f"more than {MAX_TEMPLATE_BYTES}"):
        ChatTemplate.open("é" * (MAX_TEMPLATE_BYTES // 2 + 1), tokens={})
