"""Requests through a real generator, answers read by the types of OpenAI's own client."""

from __future__ import annotations

import datetime as dt
import json

import numpy as np
import pytest

from edge.chat.sampling_defaults import SamplingDefaults
from edge.errors import ContextLengthError, InferenceError
from edge.openai_form import FieldError, error_answer
from tests.edge.chat.made_tokenizers import byte_level
from tests.edge.chat.talking import (
    CONTEXT,
    EOS,
    LIBRARY,
    SURE,
    VOCABULARY,
    SayingDecoder,
    chat,
    chat_model,
    chunks,
    complete,
    completion_chunks,
    events_of,
    prepared_chat,
    prepared_completion,
    say,
    spec_of,
    text_of,
)
from tests.edge.chat.templates import LLAMA, MISTRAL, QWEN2, QWEN3

THOUGHT = "<think>\nHm.\n</think>\n\nGröße 🙂!"


def test_an_answer_is_one_message_with_its_usage() -> None:
    answer = chat("Größe 🙂!")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Größe 🙂!")
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert choice.message.tool_calls is None
    assert (answer.object, answer.model) == ("chat.completion", "tiny")
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    generated = len(LIBRARY.encode("Größe 🙂!", add_special_tokens=False).ids) + 1
    length = len(LIBRARY.encode(prompt, add_special_tokens=False).ids)
    assert answer.usage.prompt_tokens == length
    assert answer.usage.completion_tokens == generated
    assert answer.usage.total_tokens == length + generated


def test_the_time_is_the_devices() -> None:
    moment = dt.datetime(2031, 2, 3, tzinfo=dt.timezone.utc)
    assert chat("Hi", chat_model(now=lambda: moment)).created == int(moment.timestamp())


def test_a_stream_says_who_speaks_then_the_text_then_why_it_ended() -> None:
    stream = chunks("Größe 🙂!")
    assert [chunk.object for chunk in stream] == ["chat.completion.chunk"] * len(stream)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in stream}) == 1
    first, last = stream[0].choices[0], stream[-1].choices[0]
    assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
    assert last.delta.model_dump(exclude_unset=True) == {}
    assert last.finish_reason == "stop"
    assert text_of(stream) == "Größe 🙂!"
    assert len(stream) > 4
    assert all(chunk.choices[0].delta.content for chunk in stream[1:-1])
    assert not any("usage" in chunk.model_fields_set for chunk in stream)


def test_usage_comes_in_a_last_chunk_and_the_others_say_null() -> None:
    *others, last = chunks("Hi", stream_options={"include_usage": True})
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in others)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage == chat("Hi").usage


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_no_part_of_the_content(stream: bool) -> None:
    if stream:
        deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks(THOUGHT)]
        reasoning = "".join(delta.get("reasoning_content") or "" for delta in deltas)
        content = "".join(delta.get("content") or "" for delta in deltas)
    else:
        message = chat(THOUGHT).choices[0].message.model_dump()
        reasoning, content = message["reasoning_content"], message["content"]
    assert (reasoning, content) == ("Hm.", "Größe 🙂!")


def test_a_prompt_that_opens_a_thought_is_known_to() -> None:
    source = QWEN3 + "{{ '<think>\\n' }}"
    message = chat("Hm.\n</think>\n\nYes.", chat_model(source)).choices[0].message.model_dump()
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "none"},
    ],
    ids=str,
)
def test_a_request_may_ask_a_model_not_to_think(fields: dict[str, object]) -> None:
    prompt = prepared_chat(**fields).generations[0].prompt
    assert LIBRARY.decode(prompt, skip_special_tokens=False).endswith("</think>\n\n")


def test_several_answers_differ_and_come_the_same_again() -> None:
    fields = {"n": 3, "seed": 5, "max_tokens": 12, "ignore_eos": True}
    answer = chat(None, **fields)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in chat(None, **fields).choices] == texts
    stream = chunks(None, **fields)
    assert [text_of(stream, index) for index in range(3)] == texts
    ends = [c.choices[0].index for c in stream if c.choices[0].finish_reason is not None]
    assert sorted(ends) == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 36
    assert answer.usage.prompt_tokens == len(prepared_chat().generations[0].prompt)


def test_a_stop_string_ends_an_answer_and_is_no_part_of_it() -> None:
    for stop in ("mat", ["dog", "mat"]):
        (choice,) = chat("The cat sat on the mat; the dog ran.", stop=stop).choices
        assert (choice.message.content, choice.finish_reason) == ("The cat sat on the ", "stop")


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"max_tokens": 3}, 3),
        ({"max_completion_tokens": 2, "max_tokens": 5}, 2),
        ({"max_tokens": 10**9}, None),
        ({}, None),
    ],
    ids=str,
)
def test_an_answer_has_as_many_tokens_as_it_may_have(
    fields: dict[str, int], count: int | None
) -> None:
    model = chat_model(spec=spec_of(context=100))
    decoder = SayingDecoder("the cat " * 100)
    decoder.spec = spec_of(context=100)
    prepared = prepared_chat(model, **fields)
    answer = json.loads(say(prepared, decoder).bytes)
    assert answer["choices"][0]["finish_reason"] == "length"
    left = 100 - len(prepared.generations[0].prompt)
    assert answer["usage"]["completion_tokens"] == (left if count is None else count)


def test_a_prompt_that_fills_the_context_is_refused_with_openais_code() -> None:
    with pytest.raises(ContextLengthError) as raised:
        prepared_chat(messages=[{"role": "user", "content": "x " * CONTEXT}])
    answer = error_answer(raised.value)
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["code"]) == (400, "context_length_exceeded")
    assert (error["type"], error["param"]) == ("invalid_request_error", "messages")
    with pytest.raises(ContextLengthError) as raised:
        prepared_completion(prompt="x " * CONTEXT)
    assert json.loads(error_answer(raised.value).body)["error"]["param"] == "prompt"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_models_logits(stream: bool) -> None:
    text = "Größe 🙂"
    if stream:
        found = [c.choices[0].logprobs for c in chunks(text, logprobs=True, top_logprobs=2)]
        content = [one for logprobs in found if logprobs for one in logprobs.content or ()]
    else:
        logprobs = chat(text, logprobs=True, top_logprobs=2).choices[0].logprobs
        assert logprobs is not None
        content = logprobs.content or []
    ids = LIBRARY.encode(text, add_special_tokens=False).ids
    assert b"".join(bytes(one.bytes or ()) for one in content).decode() == text
    assert len(content) == len(ids)
    norm = np.log(np.exp(SURE) + VOCABULARY - 1)
    for one in content:
        assert one.logprob == pytest.approx(SURE - norm, abs=1e-5)
        first, second = one.top_logprobs
        assert (first.token, first.logprob) == (one.token, one.logprob)
        assert second.logprob == pytest.approx(-norm, abs=1e-4)


def test_logprobs_may_be_without_alternatives() -> None:
    logprobs = chat("Hi", logprobs=True).choices[0].logprobs
    assert logprobs is not None
    assert [one.top_logprobs for one in logprobs.content or ()] == [[]] * len(
        logprobs.content or ()
    )


def test_how_a_model_is_sampled_is_said_by_the_request_or_else_by_its_maker() -> None:
    defaults = SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1)
    model = chat_model(defaults=defaults)

    def options(**fields: object):
        return prepared_chat(model, **fields).generations[0].sampler.options  # type: ignore[attr-defined]

    plain = options()
    assert (plain.temperature, plain.top_p, plain.top_k, plain.min_p) == (0.6, 0.9, 20, 0.0)
    assert (plain.repetition_penalty, plain.seed, plain.logprobs) == (1.1, None, None)
    asked = options(
        temperature=0, top_p=0.5, top_k=-1, min_p=0.1, repetition_penalty=1, presence_penalty=1,
        frequency_penalty=-1, seed=7, logit_bias={"5": -100, "6": 3.5},
    )  # fmt: skip
    assert (asked.temperature, asked.top_p, asked.top_k, asked.min_p) == (0, 0.5, None, 0.1)
    assert (asked.repetition_penalty, asked.presence_penalty) == (1, 1)
    assert (asked.frequency_penalty, asked.seed) == (-1, 7)
    assert asked.bias == ((5, -100.0), (6, 3.5))


def test_a_bias_forbids_a_token() -> None:
    sure = LIBRARY.encode("cat", add_special_tokens=False).ids[0]
    assert chat("cat").choices[0].message.content == "cat"
    biased = chat("cat", logit_bias={str(sure): -100}, temperature=0).choices[0].message
    assert not (biased.content or "").startswith("cat")


def test_an_answer_may_go_on_behind_its_end() -> None:
    answer = chat("Hi", ignore_eos=True, max_tokens=20)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20


class Failing(SayingDecoder):
    """Fails after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__("the cat sat on the mat " * 10, before_step=self._count)
        self._left = steps

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise InferenceError("CUDA is on fire")


def test_an_error_within_a_stream_is_its_last_event_in_the_apis_form() -> None:
    prepared = prepared_chat(stream=True)
    client = say(prepared, Failing(5))
    *chunks, error = map(json.loads, events_of(client.bytes))
    assert len(chunks) > 1
    assert error["error"]["type"] == "server_error"
    assert "fire" not in error["error"]["message"]  # that is for the log
    assert client.errors == []
    assert prepared.answer.is_over
    assert prepared.answer.end(0, client.ends[0]) == b""


def test_an_error_of_a_whole_answer_is_raised() -> None:
    client = say(prepared_chat(n=2), Failing(5))
    assert client.bytes == b""
    assert isinstance(client.errors[0], InferenceError)


def test_a_model_without_a_template_does_not_chat() -> None:
    model = chat_model(None)
    assert not model.can_chat
    with pytest.raises(FieldError, match="no chat template; use /v1/completions"):
        prepared_chat(model)


def test_what_a_template_refuses_is_an_input_error_in_its_words() -> None:
    two = [{"role": "user", "content": "Hi"}] * 2
    with pytest.raises(FieldError, match="must alternate") as raised:
        prepared_chat(chat_model(MISTRAL), messages=two)
    assert raised.value.field == "messages"


def test_a_developer_is_the_system_to_templates_that_know_none() -> None:
    messages = [{"role": "developer", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    text = LIBRARY.decode(
        prepared_chat(messages=messages).generations[0].prompt, skip_special_tokens=False
    )
    assert "<|im_start|>system\nBe brief<|im_end|>" in text
    knowing = (
        "{% for m in messages %}{{ m.role }}{% if m.role == 'developer' %}!{% endif %}{% endfor %}"
    )
    prompt = prepared_chat(chat_model(knowing), messages=messages).generations[0].prompt
    assert LIBRARY.decode(prompt) == "developer!user"


def test_parts_of_text_are_lines() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    prompt = prepared_chat(messages=[{"role": "user", "content": parts}]).generations[0].prompt
    assert "user\na\nb<|im_end|>" in LIBRARY.decode(prompt, skip_special_tokens=False)


def test_calls_in_the_history_have_objects_as_arguments() -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": '{ "city":"Paris"}'},
    }
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21"},
    ]
    for source, written in (
        (LLAMA, '{"name": "f", "parameters": {"city": "Paris"}}'),
        (QWEN2, '{"name": "f", "arguments": {"city": "Paris"}}'),
        (MISTRAL, '{"name": "f", "arguments": {"city": "Paris"}, "id": "'),
    ):
        prompt = prepared_chat(chat_model(source), messages=messages).generations[0].prompt
        assert written in LIBRARY.decode(prompt, skip_special_tokens=False)


def test_a_completion_goes_on_a_text() -> None:
    answer = complete(" sat on the mat.", max_tokens=50)
    (choice,) = answer.choices
    assert (choice.text, choice.index, choice.finish_reason) == (" sat on the mat.", 0, "stop")
    assert (answer.object, answer.model, choice.logprobs) == ("text_completion", "tiny", None)
    assert answer.id.startswith("cmpl-")


def test_a_completion_has_16_tokens_unless_it_says_otherwise() -> None:
    answer = complete("the cat " * 20)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (16, "length")


def test_a_completion_is_streamed_with_its_usage() -> None:
    stream = completion_chunks(" sat.", stream_options={"include_usage": True}, echo=True)
    assert "".join(c.choices[0].text for c in stream[:-1]) == "The cat sat."
    assert stream[-2].choices[0].finish_reason == "stop"
    assert stream[-1].choices == []
    assert stream[-1].usage is not None
    assert all(c.usage is None and "usage" in c.model_fields_set for c in stream[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_texts_or_tokens_one_or_several(stream: bool) -> None:
    ids = LIBRARY.encode("The dog").ids

    def texts(prompt: object, n: int) -> list[str]:
        fields = {"prompt": prompt, "n": n, "echo": True}
        if not stream:
            return [choice.text for choice in complete(" ran.", **fields).choices]
        found = [""] * 4
        for chunk in completion_chunks(" ran.", **fields):
            found[chunk.choices[0].index] += chunk.choices[0].text
        return [text for text in found if text]

    begun = "<|begin_of_text|>The dog ran."
    assert texts("The dog", 1) == ["The dog ran."]
    assert texts(["The dog", "The cat"], 2) == [
        *("The dog ran.", "The dog ran.", "The cat ran.", "The cat ran.")
    ]
    assert texts(ids, 1) == [begun]
    assert texts([ids, ids], 1) == [begun, begun]


def test_a_prompt_starts_as_texts_do_and_names_in_it_are_tokens() -> None:
    prompt = prepared_completion(prompt="a<|im_end|>").generations[0].prompt
    assert list(prompt) == [*LIBRARY.encode("a").ids, EOS]


def test_a_completions_logprobs_are_lists_with_the_place_of_each_token() -> None:
    logprobs = complete("the cat sat", logprobs=1).choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or ()) == "the cat sat"
    for token, offset in zip(logprobs.tokens or (), logprobs.text_offset or (), strict=True):
        assert "the cat sat"[offset:].startswith(token)
    for token, best in zip(logprobs.tokens or (), logprobs.top_logprobs or (), strict=True):
        assert list(best) == [token]
    stream = [c.choices[0].logprobs for c in completion_chunks("the cat sat", logprobs=1)]
    offsets = [offset for one in stream if one for offset in one.text_offset or ()]
    assert offsets == logprobs.text_offset


def test_a_tokenizer_of_another_size_than_the_model_is_met_with_an_error() -> None:
    library = byte_level()
    library.add_tokens(["extra"])
    model = chat_model(library=library, spec=spec_of(LIBRARY))
    with pytest.raises(FieldError, match="use the tokenizer of this model"):
        prepared_completion(model, prompt="extra")
