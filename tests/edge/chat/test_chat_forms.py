"""Tool calls and answers of a form: asked for as OpenAI's clients do, and read by their types."""

from __future__ import annotations

import json
from typing import Any, Literal

import pydantic
import pytest

from edge.openai_form import FieldError
from tests.edge.chat.made_tokenizers import byte_level
from tests.edge.chat.talking import (
    LIBRARY,
    chat,
    chat_model,
    chunks,
    prepared_chat,
    spec_of,
    text_of,
)
from tests.edge.chat.templates import LLAMA, MISTRAL, QWEN2, QWEN3

PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Paris", "Rom"]}},
}


def tool(name: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def schema(schema: dict[str, Any], *, strict: bool = False) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": schema, "strict": strict}}


def tools(**more: Any) -> list[dict[str, Any]]:
    return [tool("get_weather", CITY, **more), tool("now", {"additionalProperties": False}, **more)]


TOOLS, STRICT = tools(), tools(strict=True)
PARIS = '{"city": "Paris"}'
CALLS = {
    "hermes": (
        QWEN2,
        f'Wait.\n<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>'
        '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "Wait.",
    ),
    "llama": (
        LLAMA,
        f'{{"name": "get_weather", "parameters": {PARIS}}}; {{"name": "now", "parameters": {{}}}}',
        None,
    ),
    "mistral": (
        MISTRAL,
        f'Wait.[TOOL_CALLS][{{"name": "get_weather", "arguments": {PARIS}}}, '
        '{"name": "now", "arguments": {}}]',
        "Wait.",
    ),
}


class Weather(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    kind: Literal["sun", "rain"]
    degrees: int = pydantic.Field(ge=-40, le=50)


WEATHER = schema(Weather.model_json_schema(), strict=True)


@pytest.mark.parametrize("form", CALLS)
def test_calls_are_told_as_such_whole_or_in_a_stream(form: str) -> None:
    source, said, content = CALLS[form]
    model = chat_model(source)
    (choice,) = chat(said, model, tools=TOOLS).choices
    called = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert called == [("get_weather", PARIS), ("now", "{}")]
    assert choice.message.content == content
    assert choice.finish_reason == "tool_calls"
    stream = chunks(said, model, tools=TOOLS)
    assert text_of(stream) == (content or "")
    deltas = [call for c in stream for call in c.choices[0].delta.tool_calls or ()]
    assert [delta.index for delta in deltas] == [0, 1]
    assert [(d.function.name, d.function.arguments) for d in deltas] == called
    assert all(delta.id and delta.type == "function" for delta in deltas)
    assert stream[-1].choices[0].finish_reason == "tool_calls"


def test_an_answer_that_could_call_may_be_text() -> None:
    for tools in (TOOLS, STRICT):
        (choice,) = chat("Sunny <b>.", chat_model(QWEN2), tools=tools, tool_choice="auto").choices
        assert (choice.message.content, choice.finish_reason) == ("Sunny <b>.", "stop")
        assert choice.message.tool_calls is None


def test_only_the_first_call_counts_unless_they_may_be_parallel() -> None:
    source, said, _ = CALLS["hermes"]
    (choice,) = chat(said, chat_model(source), tools=TOOLS, parallel_tool_calls=False).choices
    assert [call.function.name for call in choice.message.tool_calls or ()] == ["get_weather"]


def test_tools_are_not_told_to_the_model_if_none_may_be_called() -> None:
    source, said, _ = CALLS["hermes"]
    fields: dict[str, Any] = {"tools": TOOLS, "tool_choice": "none"}
    prompt = prepared_chat(chat_model(source), **fields).generations[0].prompt
    assert "get_weather" not in LIBRARY.decode(prompt)
    (choice,) = chat(said, chat_model(source), **fields).choices
    assert (choice.message.content, choice.finish_reason) == (said, "stop")


def arguments_of(call: Any) -> Any:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert arguments["city"] in {"Paris", "Rom"}
        assert len(arguments) == 1
    else:
        assert (call.function.name, arguments) == ("now", {})
    return arguments


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("form", CALLS)
def test_an_answer_that_must_call_does_whatever_the_model_would_say(form: str, seed: int) -> None:
    fields: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "seed": seed}
    model = chat_model(CALLS[form][0])
    (choice,) = chat(None, model, parallel_tool_calls=False, **fields).choices
    (call,) = choice.message.tool_calls or ()
    arguments_of(call)
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")


@pytest.mark.parametrize("name", ["get_weather", "now"])
def test_a_tool_that_is_named_is_the_one_that_is_called(name: str) -> None:
    choice = {"type": "function", "function": {"name": name}}
    answer = chat(
        None, chat_model(QWEN2), tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, seed=1
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.name == name


@pytest.mark.parametrize("seed", range(3))
def test_a_call_of_a_strict_tool_has_arguments_of_its_schema(seed: int) -> None:
    sign = LIBRARY.token_to_id("<tool_call>")
    fields: dict[str, Any] = {"tools": STRICT, "seed": seed, "parallel_tool_calls": False}
    bias = {str(sign): 30}
    (choice,) = chat(None, chat_model(QWEN2), logit_bias=bias, **fields).choices
    (call,) = choice.message.tool_calls or ()
    arguments_of(call)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("source", [PLAIN, QWEN3], ids=["plain", "thinks"])
def test_an_answer_of_a_schema_has_it_whatever_the_model_would_say(source: str, seed: int) -> None:
    no_thought = {str(LIBRARY.token_to_id("<think>")): -100}
    answer = chat(
        None, chat_model(source), response_format=WEATHER, seed=seed, logit_bias=no_thought
    )
    Weather.model_validate_json(answer.choices[0].message.content or "")


def test_each_of_several_answers_has_the_form() -> None:
    answer = chat(None, chat_model(PLAIN), response_format=WEATHER, seed=4, n=4)
    contents = [choice.message.content or "" for choice in answer.choices]
    assert len(set(contents)) == 4
    for content in contents:
        Weather.model_validate_json(content)


def test_any_object_may_be_asked_for() -> None:
    answer = chat(None, chat_model(PLAIN), response_format={"type": "json_object"}, seed=3)
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_a_model_may_think_before_an_answer_of_a_form() -> None:
    said = '<think>\nHm.\n</think>\n\n{"kind": "sun", "degrees": 21}'
    message = chat(said, chat_model(QWEN3), response_format=WEATHER).choices[0].message
    assert message.model_dump()["reasoning_content"] == "Hm."
    assert Weather.model_validate_json(message.content or "").degrees == 21


@pytest.mark.parametrize(("form", "calls"), [("hermes", True), ("llama", True), ("hermes", False)])
def test_an_answer_may_be_a_call_or_of_a_schema(form: str, calls: bool) -> None:
    source, said, _ = CALLS[form]
    text = said.removeprefix("Wait.\n").split("; ")[0] if calls else '{"kind":"sun","degrees":1}'
    (choice,) = chat(
        text, chat_model(source), tools=TOOLS, response_format=WEATHER, temperature=0
    ).choices
    assert bool(choice.message.tool_calls) is calls
    assert choice.finish_reason == ("tool_calls" if calls else "stop")
    if not calls:
        assert choice.message.content == text


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"tool_choice": "required"}, "tool_choice", "no tools to call"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
            "none of the tools",
        ),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name", "comes twice"),
        ({"tools": TOOLS[:1] * 200}, "tools", "at most 128"),
        ({"tools": [tool("a b", {})]}, "tools[0].function.name", "letters"),
        (
            {"tools": [tool("f", {"type": "string"})]},
            "tools[0].function.parameters",
            "arguments are an object",
        ),
        ({"response_format": schema({"type": "foo"})}, "response_format", "Invalid type: foo"),
        (
            {"response_format": schema({"uniqueItems": True}, strict=True)},
            "response_format",
            "uniqueItems",
        ),
        ({"response_format": schema({"const": "a" * 70000})}, "response_format", "more than"),
        (
            {"tools": [tool("f", {"properties": 3})], "tool_choice": "required"},
            "tools",
            "properties must be an object",
        ),
        ({"response_format": WEATHER, "ignore_eos": True}, "ignore_eos", "has to end"),
    ],
    ids=str,
)  # fmt: skip
def test_what_no_answer_can_be_is_refused_by_name(
    fields: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(FieldError, match=reason) as raised:
        prepared_chat(chat_model(QWEN2), **fields)
    assert raised.value.field == field


def test_a_model_whose_answers_have_no_end_gives_none_of_a_form() -> None:
    model = chat_model(QWEN2, spec=spec_of(byte_level(), eos=False))
    with pytest.raises(FieldError, match="has to end"):
        prepared_chat(model, response_format=WEATHER)


def test_a_model_that_knows_no_tools_is_given_none() -> None:
    with pytest.raises(FieldError, match="is not known from its chat template") as raised:
        prepared_chat(chat_model(PLAIN), tools=TOOLS)
    assert raised.value.field == "tools"
