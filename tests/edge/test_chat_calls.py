"""Chat over HTTP, with the clients that people use, on a decoder that answers by arithmetic."""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.agent import Agent
from edge.chat.template import ChatTemplate
from edge.errors import InferenceError
from tests.agents import make_config, running_agent
from tests.edge.chat.bundles import (
    END,
    NAME,
    TEMPLATE,
    TOKENIZER,
    TOKENS,
    VOCABULARY,
    chat_parts,
    fake_opener,
)
from tests.edge.chat.fakes import greedy
from tests.fakes import DEADLINE_S, Gate

HELLO = [{"role": "user", "content": "hello"}]
COUNT = 12


def prompt_of(messages: list[dict[str, str]]) -> list[int]:
    text = ChatTemplate.open(TEMPLATE, tokens=TOKENS).render(messages)
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


def expected_text(messages: list[dict[str, str]], count: int = COUNT) -> str:
    """Return what greedy decoding answers, by the fake's arithmetic and the tokenizer's library."""
    tokens = greedy(prompt_of(messages), count, eos=(END,), vocabulary=VOCABULARY)
    text: str = TOKENIZER.decode([t for t in tokens if t != END], skip_special_tokens=True)
    return text


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    config = make_config(tmp_path_factory.mktemp("chat"), chat_parts(), chat_lanes=4)
    with running_agent(config, open_decoder=fake_opener()) as running:
        yield running


def client_of(agent: Agent, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{agent.url}/v1", api_key="none", **{"max_retries": 0, "timeout": 30, **options}
    )


@pytest.fixture
def client(agent: Agent) -> Iterator[openai.OpenAI]:
    with client_of(agent) as opened:
        yield opened


def ask(client: openai.OpenAI, messages: list[Any] = HELLO, **options: Any) -> Any:
    given = {"model": NAME, "temperature": 0, "max_tokens": COUNT, **options}
    return client.chat.completions.create(messages=messages, **given)


def streamed(client: openai.OpenAI, messages: list[Any] = HELLO, **options: Any) -> str:
    chunks = ask(client, messages, stream=True, **options)
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_an_answer_is_what_greedy_decoding_gives(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.choices[0].message.content == expected_text(HELLO)
    assert answer.usage.prompt_tokens == len(prompt_of(HELLO))
    assert answer.usage.completion_tokens == COUNT
    assert answer.choices[0].finish_reason == "length"


def test_a_stream_holds_the_same_text_and_ends_with_its_usage(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == expected_text(HELLO)
    assert chunks[-1].usage.completion_tokens == COUNT
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_a_stream_is_sent_as_events_that_no_proxy_holds_back(agent: Agent) -> None:
    body = {"model": NAME, "messages": HELLO, "max_tokens": 2, "stream": True}
    response = httpx.post(f"{agent.url}/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["edge-queue-ahead"] == "0"
    assert response.text.endswith("data: [DONE]\n\n")


def test_completions_continue_a_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt="The cat", max_tokens=5, temperature=0)
    prompt = TOKENIZER.encode("The cat").ids
    tokens = greedy(prompt, 5, eos=(END,), vocabulary=VOCABULARY)
    assert answer.choices[0].text == TOKENIZER.decode(tokens, skip_special_tokens=True)


def test_the_models_that_talk_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME


def test_a_plain_question_gets_a_plain_answer(agent: Agent) -> None:
    body = {"query": "hello", "max_tokens": COUNT, "temperature": 0}
    response = httpx.post(f"{agent.url}/chat", json=body)
    assert response.status_code == 200
    assert response.json()["answer"] == expected_text(HELLO)


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_other_methods_are_refused_in_the_form_of_the_api(agent: Agent, method: str) -> None:
    response = httpx.request(method, f"{agent.url}/v1/chat/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(client, model="nobody")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as role:
        ask(client, [{"role": "wizard", "content": "x"}])
    assert "role" in str(role.value)
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, [{"role": "user", "content": "cat " * 2000}])
    assert long.value.code == "context_length_exceeded"


def test_tensors_for_a_chat_model_are_refused_with_the_way_to_ask_it(agent: Agent) -> None:
    response = httpx.post(f"{agent.url}/v2/models/{NAME}/infer", json={"inputs": []})
    assert response.status_code == 400
    assert "/v1/chat/completions" in response.json()["error"]


def test_eight_conversations_at_once_are_eight_alone(agent: Agent) -> None:
    talks = [[{"role": "user", "content": f"question {n} " * (n + 1)}] for n in range(8)]
    with ThreadPoolExecutor(8) as pool, client_of(agent) as client:
        answers = list(pool.map(lambda talk: streamed(client, talk), talks))
    assert answers == [expected_text(talk) for talk in talks]


def test_a_second_turn_prefills_only_what_is_new(agent: Agent, client: openai.OpenAI) -> None:
    generator = agent.serving.served_chat(NAME).generator
    first = ask(client, [{"role": "user", "content": "remember this " * 4}])
    talk = [
        {"role": "user", "content": "remember this " * 4},
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "and now?"},
    ]
    before = generator.counters.reused_tokens
    assert ask(client, talk).choices[0].message.content == expected_text(talk)
    assert generator.counters.reused_tokens - before >= len(prompt_of(talk[:1])) - 4


def test_a_client_that_goes_away_frees_its_lane_within_one_step(tmp_path: Any) -> None:
    gate = Gate(holds=False)
    config = make_config(tmp_path, chat_parts(), chat_lanes=1)
    opener = fake_opener(before_step=gate)
    with running_agent(config, open_decoder=opener) as agent, client_of(agent) as client:
        generator = agent.serving.served_chat(NAME).generator
        chunks = ask(client, stream=True, max_tokens=400)
        next(iter(chunks))
        gate.hold()
        gate.wait_entered()
        steps = generator.counters.decode_steps
        chunks.close()
        wait_until(lambda: agent.serving.served_chat(NAME).places.taken == 0)
        gate.open()
        wait_until(lambda: generator.running == 0)
        assert generator.counters.decode_steps - steps <= 1
        assert generator.counters.ended["cancelled"] == 1


def wait_until(condition: Any) -> None:
    """Wait for what other threads do, by asking again and again."""
    done = threading.Event()
    for _ in range(int(DEADLINE_S / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("it never happened")


def test_who_finds_line_and_lanes_full_is_told_to_come_back(tmp_path: Any) -> None:
    gate = Gate(holds=False)
    config = make_config(tmp_path, chat_parts(), chat_lanes=1, queue_size=1)
    opener = fake_opener(before_step=gate)
    with running_agent(config, open_decoder=opener) as agent, client_of(agent) as client:
        generator = agent.serving.served_chat(NAME).generator
        gate.hold()
        with ThreadPoolExecutor(2) as pool:
            running = pool.submit(streamed, client)
            wait_until(lambda: generator.running == 1)
            waiting = pool.submit(streamed, client)
            wait_until(lambda: generator.waiting == 1)
            with pytest.raises(openai.RateLimitError) as refused:
                ask(client)
            assert refused.value.response.headers["retry-after"]
            gate.open()
            assert running.result() == waiting.result() == expected_text(HELLO)


def test_who_waits_hears_how_many_are_before_him(tmp_path: Any) -> None:
    gate = Gate(holds=False)
    config = make_config(tmp_path, chat_parts(), chat_lanes=1)
    opener = fake_opener(before_step=gate)
    with running_agent(config, open_decoder=opener) as agent:
        generator = agent.serving.served_chat(NAME).generator
        gate.hold()
        body = {"model": NAME, "messages": HELLO, "max_tokens": 2, "stream": True}
        url = f"{agent.url}/v1/chat/completions"
        with httpx.Client(timeout=30) as client, client.stream("POST", url, json=body) as first:
            wait_until(lambda: generator.running == 1)
            with client.stream("POST", url, json=body) as second:
                assert second.headers["edge-queue-ahead"] == "0"
                lines = second.iter_lines()
                assert next(line for line in lines if line.startswith(":")) == ": ahead 0"
                gate.open()
                assert list(lines)[-2:] == ["data: [DONE]", ""]
            assert first.read()


def test_an_answer_that_takes_too_long_ends_with_a_timeout(tmp_path: Any) -> None:
    gate = Gate(holds=False)
    config = make_config(tmp_path, chat_parts(), chat_lanes=1, chat_timeout_s=0.05)
    opener = fake_opener(before_step=gate)
    with running_agent(config, open_decoder=opener) as agent:
        gate.hold()
        body = {"model": NAME, "messages": HELLO}
        with ThreadPoolExecutor(1) as pool:
            url = f"{agent.url}/v1/chat/completions"
            asked = pool.submit(httpx.post, url, json=body, timeout=30)
            served = agent.serving.served_chat(NAME)
            wait_until(lambda: served.generator.running == 1)
            wait_until(lambda: served.generator._cancelled)
            gate.open()
            response = asked.result()
        assert response.status_code == 504
        assert response.json()["error"]["type"] == "timeout_error"


def test_a_step_that_fails_is_told_in_the_stream_or_as_a_status(tmp_path: Any) -> None:
    fails = threading.Event()

    def fail() -> None:
        if fails.is_set():
            raise InferenceError("the decoder has lost its mind")

    opener = fake_opener(before_step=fail)
    config = make_config(tmp_path, chat_parts(), chat_lanes=1)
    with running_agent(config, open_decoder=opener) as agent, client_of(agent) as client:
        fails.set()
        with pytest.raises(openai.InternalServerError):
            ask(client)
        with pytest.raises(openai.APIError) as told:
            streamed(client)
        assert "lost its mind" not in str(told.value)
        fails.clear()
        assert streamed(client) == expected_text(HELLO)


def test_metrics_and_telemetry_tell_what_chat_has_done(tmp_path: Any) -> None:
    config = make_config(tmp_path, chat_parts(), chat_lanes=2)
    with running_agent(config, open_decoder=fake_opener()) as agent, client_of(agent) as client:
        for _ in range(2):
            ask(client)
        families = text_string_to_metric_families(httpx.get(f"{agent.url}/metrics").text)
        values = {
            sample.name: sample.value
            for family in families
            for sample in family.samples
            if sample.labels.get("model_name") == NAME
        }
        assert values["vllm:generation_tokens_total"] == 2 * COUNT
        assert values["vllm:prompt_tokens_total"] == 2 * len(prompt_of(HELLO))
        assert values["vllm:time_to_first_token_seconds_count"] == 2
        assert values["vllm:prefix_cache_hits_total"] > 0
        (report,) = httpx.get(f"{agent.url}/telemetry").json()["models"]
        chat = report["chat"]
        assert (chat["lanes"], chat["running"], chat["generated_tokens"]) == (2, 0, 2 * COUNT)
        assert chat["ended"]["length"] == 2
        assert report["requests"]["ok"] == 2


def test_sixty_four_clients_on_four_lanes_are_all_answered(agent: Agent) -> None:
    talks = [[{"role": "user", "content": f"client {n}"}] for n in range(64)]
    with ThreadPoolExecutor(64) as pool, client_of(agent, timeout=120) as client:
        answers = list(pool.map(lambda talk: streamed(client, talk), talks))
    assert answers == [expected_text(talk) for talk in talks]


def test_nobody_in_line_waits_longer_than_twice_his_fair_share(tmp_path: Any) -> None:
    """A share is counted in answers: who came n-th on L lanes is due when n // L rounds are over.

    All wait before the first answer begins, in a known order, and all answers are equally long; so
    at most twice as many as came before, and the lanes beside, may have their first word earlier.
    """
    count, lanes, gate = 64, 4, Gate(holds=False)
    config = make_config(tmp_path, chat_parts(), chat_lanes=lanes, queue_size=count)
    opener = fake_opener(before_step=gate)
    with running_agent(config, open_decoder=opener) as agent, contextlib.ExitStack() as stack:
        generator = agent.serving.served_chat(NAME).generator
        gate.hold()
        host, _, port = agent.url.removeprefix("http://").partition(":")
        waiting = selectors.DefaultSelector()
        for number in range(count):
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            client.sendall(_stream_request(f"client {number}"))
            waiting.register(client, selectors.EVENT_READ, number)
            wait_until(lambda n=number: generator.running + generator.waiting == n + 1)
        gate.open()
        begun: list[int] = []
        received = [b""] * count
        while len(begun) < count:
            for key, _ in waiting.select(timeout=60):
                received[key.data] += key.fileobj.recv(1 << 16)
                if key.data not in begun and b'"content":"' in received[key.data]:
                    begun.append(key.data)
        for place, number in enumerate(begun):
            assert place <= 2 * max(number, lanes), (place, number)


def test_four_hundred_streams_at_once_get_their_whole_answers(tmp_path: Any) -> None:
    """All are open before the first answer begins; read in one thread, as bytes."""
    count, gate = 400, Gate(holds=False)
    config = make_config(tmp_path, chat_parts(), chat_lanes=8, queue_size=count)
    opener = fake_opener(before_step=gate)
    with running_agent(config, open_decoder=opener) as agent, contextlib.ExitStack() as stack:
        generator = agent.serving.served_chat(NAME).generator
        gate.hold()
        host, _, port = agent.url.removeprefix("http://").partition(":")
        clients = []
        for number in range(count):
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            client.sendall(_stream_request(f"client {number}"))
            clients.append(client)
        wait_until(lambda: generator.running + generator.waiting == count)
        gate.open()
        for number, client in enumerate(clients):
            received = b"".join(iter(lambda client=client: client.recv(1 << 16), b""))
            events = re.findall(rb"^data: (\{.*\})\r?$", received, re.M)
            deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
            text = "".join(delta.get("content", "") for delta in deltas)
            assert text == expected_text([{"role": "user", "content": f"client {number}"}], 6)
            assert b"data: [DONE]" in received


def _stream_request(text: str) -> bytes:
    body = json.dumps(
        {"model": NAME, "messages": [{"role": "user", "content": text}],
         "max_tokens": 6, "temperature": 0, "stream": True}
    ).encode()  # fmt: skip
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n".encode() + body


def test_a_chat_model_comes_and_goes(tmp_path: Any) -> None:
    config = make_config(tmp_path, chat_parts())
    with running_agent(config, open_decoder=fake_opener()) as agent:
        for verb, status in (("unload", 503), ("load", 200)):
            url = f"{agent.url}/v2/repository/models/{NAME}/{verb}"
            assert httpx.post(url, timeout=30).status_code == 200
            body = {"model": NAME, "messages": HELLO, "max_tokens": 1}
            said = httpx.post(f"{agent.url}/v1/chat/completions", json=body, timeout=30)
            assert said.status_code == status
            assert isinstance(json.loads(said.text), dict)
