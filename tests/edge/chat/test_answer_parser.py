from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.chat.answer_parser import AnswerForm, AnswerParser, Pieces

NAMES = frozenset({"get_weather", "now"})
HERMES = AnswerForm(calls="hermes", names=NAMES)
LLAMA = AnswerForm(calls="llama", names=NAMES)
MISTRAL = AnswerForm(calls="mistral", names=NAMES)
PLAIN = AnswerForm()
THINKS = AnswerForm(may_think=True)
THINKING = AnswerForm(may_think=True, is_thinking=True)
HERMES_THINKS = AnswerForm(calls="hermes", names=NAMES, may_think=True)
WEATHER = '{"name": "get_weather", "arguments": {"city": "Zürich"}}'
NOW = '{"name": "now", "arguments": {}}'
CALLED = ("get_weather", '{"city": "Zürich"}')


def parsed(form: AnswerForm, texts) -> Pieces:
    """All pieces together; a call's id is its number."""
    ids = map(str, itertools.count())
    parser = AnswerParser(form, lambda: next(ids))
    whole = Pieces()
    for pieces in (*map(parser.push, texts), parser.finish()):
        whole.reasoning += pieces.reasoning
        whole.content += pieces.content
        whole.calls += pieces.calls
    assert [call.id for call in whole.calls] == [str(n) for n in range(len(whole.calls))]
    assert parser.has_called == bool(whole.calls)
    return whole


CASES = {
    "text": (PLAIN, " Hi <tool_call>{}</tool_call> <think>x ", "", None, []),
    "one": (HERMES, f"<tool_call>\n{WEATHER}\n</tool_call>", "", "", [CALLED]),
    "two": (
        HERMES,
        f"Let me see.\n\n<tool_call>\n{WEATHER}\n</tool_call>\n<tool_call>{NOW}</tool_call>\n",
        "",
        "Let me see.",
        [CALLED, ("now", "{}")],
    ),
    "text behind": (HERMES, f"<tool_call>{NOW}</tool_call>\n Done.", "", "Done.", [("now", "{}")]),
    "no end": (HERMES, f"<tool_call>\n{WEATHER}", "", "", [CALLED]),
    "cut": (HERMES, "a <tool_call>\n" + WEATHER[:20], "", None, []),
    "no json": (HERMES, "<tool_call>now()</tool_call> b", "", None, []),
    "a list": (HERMES, f"<tool_call>[{NOW}]</tool_call>", "", None, []),
    "no name": (HERMES, '<tool_call>{"arguments": {}}</tool_call>', "", None, []),
    "arguments that are a list": (
        HERMES,
        '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
        "",
        None,
        [],
    ),
    "arguments in a string": (
        HERMES,
        r'<tool_call>{"name": "now", "arguments": "{\"a\": 1}"}</tool_call>',
        "",
        "",
        [("now", '{"a": 1}')],
    ),
    "no arguments": (HERMES, '<tool_call>{"name": "now"}</tool_call>', "", "", [("now", "{}")]),
    "nested too deeply": (
        HERMES,
        '<tool_call>{"name": "now", "arguments": ' + "[" * 5000 + "</tool_call>",
        "",
        None,
        [],
    ),
    "almost a mark": (HERMES, "a <tool_cat> <tool", "", None, []),
    "llama": (LLAMA, WEATHER.replace("arguments", "parameters"), "", "", [CALLED]),
    "llama, marked": (LLAMA, f"<|python_tag|>{WEATHER}; {NOW}", "", "", [CALLED, ("now", "{}")]),
    "llama, no tool of ours": (LLAMA, '{"name": "Ann", "parameters": {}}', "", None, []),
    "llama, json": (LLAMA, '\n{"a": 1}', "", None, []),
    "llama, text": (LLAMA, 'Say {"name": "now", "parameters": {}}', "", None, []),
    "llama, python": (LLAMA, "<|python_tag|>print(1)", "", None, []),
    "mistral": (MISTRAL, f"[TOOL_CALLS] [{WEATHER}, {NOW}]", "", "", [CALLED, ("now", "{}")]),
    "mistral, named": (
        MISTRAL,
        'Wait.[TOOL_CALLS]get_weather[ARGS]{"city": "Zürich"}[TOOL_CALLS]now[CALL_ID]x1[ARGS]{}',
        "",
        "Wait.",
        [CALLED, ("now", "{}")],
    ),
    "mistral, cut": (MISTRAL, f"[TOOL_CALLS][{WEATHER}", "", None, []),
    "mistral, none": (MISTRAL, "[TOOL_CALLS][]", "", None, []),
    "thought": (
        THINKS,
        "\n<think>\nHm: <think>.\n</think>\n\nYes.\n",
        "Hm: <think>.",
        "Yes.\n",
        [],
    ),
    "no thought": (THINKS, " Yes <think>no</think>", "", None, []),
    "empty thought": (THINKS, "<think>\n\n</think>\n\nYes.", "", "Yes.", []),
    "thinking": (THINKING, "Hm.\n</think>\n\nYes </think>", "Hm.", "Yes </think>", []),
    "thought cut": (THINKING, "Hm, so </thi", "Hm, so </thi", "", []),
    "thought and call": (
        HERMES_THINKS,
        f"<think>\nHm\n</think>\n\n<tool_call>\n{WEATHER}\n</tool_call>",
        "Hm",
        "",
        [CALLED],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_answer_is_parted_the_same_however_it_comes(case):
    form, text, reasoning, content, calls = CASES[case]
    content = text if content is None else content
    pieces_of_three = [text[at : at + 3] for at in range(0, len(text), 3)]
    for texts in ([text], list(text), pieces_of_three):
        found = parsed(form, texts)
        assert found.reasoning == reasoning
        assert found.content == content
        assert [(call.name, call.arguments) for call in found.calls] == calls


PARTS = st.lists(
    st.sampled_from(
        [f"<tool_call>{NOW}</tool_call>", "<tool_call>x</tool_call>", "<tool_call>", "a", " ", "\n"]
    ),
    max_size=8,
)


@settings(max_examples=500, deadline=None)
@given(PARTS, st.integers(1, 13))
def test_calls_are_those_that_a_regular_expression_finds(parts, size):
    text = "".join(parts)
    found = parsed(HERMES, [text[at : at + size] for at in range(0, len(text), size)])
    block = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
    assert len(found.calls) == block.findall(text).count(NOW)
    kept = block.sub(lambda match: " " if match[1] == NOW else match[0], text)
    assert "".join(found.content.split()) == "".join(kept.split())


def test_text_comes_as_soon_as_it_can_be_no_mark():
    parser = AnswerParser(HERMES, str)
    given_pieces = [
        parser.push(text).content for text in ("The", " <to", "ol> is", " x ", "<", "=")
    ]
    assert given_pieces == ["The", "", " <tool> is", " x", "", " <="]


def test_thoughts_come_as_they_are_thought():
    parser = AnswerParser(THINKS, str)
    assert [parser.push(t).reasoning for t in ("<th", "ink>", "\nA", " b", "\n</think>")] == [
        "",
        "",
        "A",
        " b",
        "",
    ]


def test_a_call_comes_with_its_end_and_not_with_the_answers():
    parser = AnswerParser(HERMES, str)
    assert parser.push(f"<tool_call>{NOW}</tool_call").calls == ()
    assert len(parser.push(">\n<tool_call>").calls) == 1


def test_only_the_first_call_counts_where_one_is_wanted():
    form = AnswerForm(calls="hermes", names=NAMES, parallel=False)
    text = f"<tool_call>{WEATHER}</tool_call>\n<tool_call>{NOW}</tool_call>"
    assert [call.name for call in parsed(form, [text]).calls] == ["get_weather"]
