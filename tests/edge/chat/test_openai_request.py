"""Bodies of requests: what is read, what is skipped, and what is refused in words."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.chat.openai_request import (
    MAX_BODY_BYTES,
    chat_request,
    completion_request,
    model_of,
)
from edge.errors import BodyTooLargeError, InputError
from edge.openai_form import FieldError, error_answer
from tests.edge.chat.talking import chat_model, prepared_chat, prepared_completion

HI = [{"role": "user", "content": "Hi"}]
CALLS = [{"function": {"name": "f"}}]
MODEL = chat_model()


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny", **fields}).encode()


def refusal(content: bytes) -> dict[str, Any]:
    """Return the error that a client of chat completions gets."""
    with pytest.raises(InputError) as raised:
        MODEL.chat(chat_request(content))
    answer = error_answer(raised.value)
    assert answer.status == 400
    error = json.loads(answer.body)["error"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 400
    return error


def test_the_model_is_found_without_reading_the_rest() -> None:
    assert model_of(body(messages=[{"role": "nobody"}])) == "tiny"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"model": 3}', b'{"messages": []}', b'{"model": "a']
)
def test_a_body_that_names_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(InputError):
        model_of(content)


def test_a_large_body_is_refused_before_it_is_read() -> None:
    with pytest.raises(BodyTooLargeError):
        model_of(b" " * (MAX_BODY_BYTES + 1))


def test_fields_that_change_no_answer_are_skipped() -> None:
    fields = {
        "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto",
        "prediction": None, "functions": [], "audio": None, "safety_identifier": "x",
        "prompt_cache_key": "y", "no_such_field": [1, {"a": 2}], "modalities": ["text"],
        "logit_bias": {}, "stop": None, "n": None, "tools": [], "response_format": {"type": "text"},
    }  # fmt: skip
    plain, more = prepared_chat(MODEL), prepared_chat(MODEL, **fields)
    assert list(more.generations[0].prompt) == list(plain.generations[0].prompt)
    assert len(more.generations) == 1


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"messages": []}, "messages", "send at least one"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "roles are system"),
        ({"messages": [{"content": ""}]}, "messages[0].role", "missing required field"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "Expected"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "takes text only",
        ),
        (
            {"messages": [*HI, {"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[1].content[0].type",
            "takes text only",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "no text",
        ),
        (
            {"messages": [{"role": "user", "content": "", "tool_calls": CALLS}]},
            "messages[0].tool_calls",
            "only an assistant",
        ),
        ({"temperature": 2.5}, "temperature", "<= 2"),
        ({"temperature": -1}, "temperature", ">= 0"),
        ({"temperature": "hot"}, "temperature", "Expected"),
        ({"top_p": 1.5}, "top_p", "<= 1"),
        ({"presence_penalty": 3}, "presence_penalty", "<= 2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "> 0"),
        ({"max_tokens": 0}, "max_tokens", "ask for 1 or more"),
        ({"max_completion_tokens": -5}, "max_completion_tokens", "ask for 1 or more"),
        ({"n": 0}, "n", "ask for 1..16"),
        ({"n": 1000}, "n", "ask for 1..16"),
        ({"stop": [str(n) for n in range(1000)]}, "stop", "1000 strings; send at most 16"),
        ({"stop": ""}, "stop", "0 characters"),
        ({"stop": ["a" * 5000]}, "stop", "5000 characters"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "<= 20"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "tokens are 0.."),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "tokens are 0.."),
        ({"logit_bias": {"1": 1000}}, "logit_bias", "<= 100"),
        ({"logit_bias": {str(n): 1 for n in range(2000)}}, "logit_bias", "at most 1024"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "Invalid value 'xml'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"tool_choice": "maybe"}, "tool_choice", "Invalid enum value"),
        ({"audio": {"voice": "x"}}, "audio", "not supported"),
        ({"modalities": ["text", "audio"]}, "modalities", "text only"),
        ({"functions": [{"name": "f"}]}, "functions", "not supported"),
        ({"chat_template": "{{ 1 }}"}, "chat_template", "not supported"),
        ({"guided_json": {"type": "object"}}, "guided_json", "not supported"),
        ({"continue_final_message": True}, "continue_final_message", "not supported"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "not supported"),
        ({"seed": "x"}, "seed", "Expected"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "Expected"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_field(
    fields: dict[str, Any], param: str, reason: str
) -> None:
    error = refusal(body(**{"messages": HI, **fields}))
    assert error["param"] == param
    assert reason in error["message"]


@pytest.mark.parametrize("arguments", ["{", "[1]", "3", '{"a": NaN}', "[" * 9000])
def test_arguments_in_the_history_are_an_object(arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [*HI, {"role": "assistant", "tool_calls": [call]}]
    assert refusal(body(messages=messages))["param"] == (
        "messages[1].tool_calls[0].function.arguments"
    )


@pytest.mark.parametrize("arguments", ["", None, "{}", {}, {"a": 1}])
def test_arguments_in_the_history_may_be_none_or_an_object_already(arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    prepared_chat(MODEL, messages=[*HI, {"role": "assistant", "tool_calls": [call]}])


SURROGATE = '"\\ud83d"'
INNER = json.dumps({"a": "\ud83d"})  # JSON within JSON, that escapes it twice


@pytest.mark.parametrize(
    "content",
    [
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\xed\xa0\xbd"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d and"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ude00"}]}',
        body(messages=[*HI, {"role": "assistant", "tool_calls": [
            {"function": {"name": "f", "arguments": INNER}}]}]),
        b"\xef\xbb\xbf{}", b"{", b"null", b"[]", b'"x"', b"\x00", b"{}" * 2,
        b'{"model": "tiny", "messages": ' + b"[" * 100_000,
        b'{"model": "tiny", "messages": [], "x": ' + b'{"a":' * 100_000,
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_no_text_or_no_json_is_a_400(content: bytes) -> None:
    refusal(content)


@pytest.mark.parametrize("depth", [20, 70, 400])
def test_what_is_nested_deeply_is_refused_by_name(depth: int) -> None:
    deep: Any = {}
    for _ in range(depth // 2):
        deep = {"properties": {"a": deep}}
    function = {"type": "function", "function": {"name": "f", "parameters": deep}}
    called = {"function": {"name": "f", "arguments": json.dumps(deep)}}
    cases = {
        "tools[0].function.parameters": {"tools": [function], "tool_choice": "required"},
        "chat_template_kwargs": {"chat_template_kwargs": deep},
        "response_format": {
            "response_format": {"type": "json_schema", "json_schema": {"schema": deep}}
        },
        "messages[0].tool_calls[0].function.arguments": {
            "messages": [{"role": "assistant", "tool_calls": [called]}]
        },
    }
    for field, fields in cases.items():
        if depth < 64:
            prepared_chat(MODEL, **{"messages": HI, **fields})
        else:
            assert refusal(body(**{"messages": HI, **fields}))["param"] == field


WORDS = st.text(max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    (
        *("messages", "temperature", "stop", "n", "seed", "max_tokens", "stream_options", "tools"),
        *("tool_choice", "response_format", "logprobs", "top_logprobs", "logit_bias", "model"),
        *("chat_template_kwargs", "prompt", "echo", "suffix", "query", "history", "system"),
    )
)
PREPARE = {
    "chat": lambda content: MODEL.chat(chat_request(content)),
    "complete": lambda content: MODEL.complete(completion_request(content)),
    "ask": MODEL.ask,
}


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=3), st.sampled_from(sorted(PREPARE)))
def test_any_body_is_prepared_or_refused(fields: dict[str, Any], what: str) -> None:
    content = json.dumps({"model": "tiny", "messages": HI, "prompt": "a", "query": "a", **fields})
    with contextlib.suppress(InputError):
        assert PREPARE[what](content.encode()).generations


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"prompt": []}, "prompt", "prompt holds 0"),
        ({"prompt": ["a"] * 17}, "prompt", "1..16"),
        ({"prompt": ["a"] * 5, "n": 5}, "prompt", "1..16"),
        ({"prompt": ["a", 1]}, "prompt", "mixes"),
        ({"prompt": [[]]}, "prompt", "no tokens"),
        ({"prompt": [99999]}, "prompt", "the model has tokens 0.."),
        ({"prompt": [-1]}, "prompt[0]", "Expected"),
        ({"prompt": [1 << 70]}, "prompt[0]", "Expected"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ({"prompt": "a", "best_of": 3}, "best_of", "not supported"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo", "no probabilities"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "1 or more"),
        ({"prompt": "a", "logprobs": 30}, "logprobs", "<= 20"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_completion_is_told_with_its_field(
    fields: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(FieldError, match=reason) as raised:
        prepared_completion(MODEL, **fields)
    assert raised.value.field == field


def test_as_many_answers_are_compared_as_are_given() -> None:
    assert len(prepared_completion(MODEL, n=2, best_of=2).generations) == 2
