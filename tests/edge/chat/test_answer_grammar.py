"""What an answer may be: text, calls, JSON of a schema, and which of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.chat.answer_grammar import Wanted, answer_grammar
from edge.chat.tokenizer import ChatTokenizer
from edge.chat.tools import ToolForm
from edge.errors import InputError
from tests.edge.chat.made_tokenizers import byte_level, json_of
from tests.edge.chat.test_grammar import Speaker

SPEAKER = Speaker(byte_level())
TOKENIZER = ChatTokenizer.open(json_of(SPEAKER.library))
FORMS: tuple[ToolForm, ...] = ("hermes", "llama", "mistral", "mistral-named")


def tool(name: str, parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(form: ToolForm, name: str, arguments: str) -> str:
    whole = f'{{"name": "{name}", "arguments": {arguments}}}'
    return {
        "hermes": f"<tool_call>\n{whole}\n</tool_call>",
        "llama": whole.replace("arguments", "parameters"),
        "mistral": f"[TOOL_CALLS][{whole}]",
        "mistral-named": f"[TOOL_CALLS]{name}[ARGS]{arguments}",
    }[form]


PLACE = {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False}
TOOLS = [
    tool("go", {"properties": {"to": {"$ref": "#/$defs/Place"}}, "$defs": {"Place": PLACE}}),
    tool("either", {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
    tool("any", None),
]


def takes(text: str, **wanted: Any) -> bool:
    grammar = answer_grammar(Wanted(**wanted), TOKENIZER)
    assert grammar is not None
    return SPEAKER.takes(grammar, text)


@pytest.mark.parametrize("form", FORMS)
def test_arguments_are_objects_of_their_schema_with_its_references(form: ToolForm) -> None:
    cases = {
        ("go", '{"to": {"x": 3}}'): True,
        ("go", '{"to": 3}'): False,
        ("go", "3"): False,
        ("either", '{"a": 1}'): True,
        ("either", "{}"): False,
        ("any", '{"z": [1]}'): True,
        ("any", "[1]"): False,
        ("any", '"{}"'): False,
        ("other", "{}"): False,
    }
    for (name, arguments), expected in cases.items():
        said = call(form, name, arguments)
        assert takes(said, form=form, tools=TOOLS, calls="must") is expected


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_is_text_or_exact_calls(form: ToolForm) -> None:
    wanted: dict[str, Any] = {"form": form, "tools": TOOLS, "calls": "exact"}
    for text in ("", "Hm <b> [x]\nno.", "no {} yet"):
        assert takes(text, **wanted)
        assert not takes(text, **{**wanted, "calls": "must"})
    assert takes(call(form, "any", "{}"), **wanted)
    assert not takes(call(form, "any", "3"), **wanted)
    # Llama's models say something or call something.
    assert takes("Wait. " + call(form, "any", "{}"), **wanted)
    assert takes("Wait. " + call(form, "any", "3"), **wanted) is (form == "llama")


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_is_of_a_schema_or_calls(form: ToolForm) -> None:
    wanted: dict[str, Any] = {"schema": PLACE, "form": form, "tools": TOOLS}
    assert takes('{"x": 3}', **wanted)
    assert takes(call(form, "any", "{}"), **wanted)
    assert not takes("Hm.", **wanted)
    assert not takes('{"y": 3}', **wanted)
    assert not takes('{"x": 3}', **{**wanted, "calls": "must"})
    assert not takes("Wait. " + call(form, "any", "{}"), **wanted)


def test_an_answer_that_may_be_anything_has_no_grammar() -> None:
    for wanted in (
        Wanted(),
        Wanted(may_think=True, is_thinking=True),
        Wanted(form="hermes", tools=TOOLS, calls="may"),
        Wanted(form="hermes", calls="must"),
    ):
        assert answer_grammar(wanted, TOKENIZER) is None


def test_thoughts_may_come_first_if_a_model_has_any() -> None:
    wanted: dict[str, Any] = {"form": "hermes", "tools": TOOLS, "calls": "must"}
    said = "<think>\nHm.\n</think>\n\n" + call("hermes", "any", "{}")
    assert takes(said, may_think=True, **wanted)
    assert takes(said.removeprefix("<think>"), is_thinking=True, **wanted)
    assert not takes(said, **wanted)


def test_parameters_of_another_type_than_an_object_are_refused() -> None:
    wanted = Wanted(form="hermes", tools=[tool("f", {"type": ["object", "null"]})], calls="must")
    with pytest.raises(InputError, match="arguments are an object"):
        answer_grammar(wanted, TOKENIZER)


@pytest.mark.parametrize("form", FORMS)
def test_a_tools_description_and_schema_are_data_and_no_part_of_the_grammar(form: ToolForm) -> None:
    value = 'a"}\n%json {} start: "x"\n// é'
    tools = [tool("f", {"properties": {value: {"const": value}}, "required": [value]})]
    arguments = json.dumps({value: value}, ensure_ascii=False)
    assert takes(call(form, "f", arguments), form=form, tools=tools, calls="must")
