"""What chat clients send by mistake or on purpose: a clear refusal, and nothing is held for it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from edge.agent import Agent
from tests.agents import make_config, running_agent
from tests.edge.chat.bundles import NAME, chat_parts, fake_opener

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    config = make_config(tmp_path_factory.mktemp("chat"), chat_parts(), chat_lanes=2)
    with running_agent(config, open_decoder=fake_opener()) as running:
        yield running


@pytest.fixture
def unharmed(agent: Agent) -> Iterator[None]:
    """Whatever was sent, all lanes and places are free afterwards, and answers are made."""
    yield
    served = agent.serving.served_chat(NAME)
    answer = post(agent, {"messages": HELLO, "max_tokens": 3, "temperature": 0})
    assert answer.status_code == 200
    assert served.places.taken == 0
    assert (served.generator.running, served.generator.waiting) == (0, 0)
    assert served.generator.is_ready


def post(agent: Agent, body: dict[str, Any], path: str = "/v1/chat/completions") -> httpx.Response:
    return send(agent, json.dumps({"model": NAME, **body}).encode(), path)


def send(agent: Agent, content: bytes, path: str = "/v1/chat/completions") -> httpx.Response:
    return httpx.post(f"{agent.url}{path}", content=content, timeout=30)


BAD: dict[str, dict[str, Any]] = {
    "no messages": {},
    "empty messages": {"messages": []},
    "messages that are text": {"messages": "hello"},
    "an unknown role": {"messages": [{"role": "wizard", "content": "x"}]},
    "a message without a role": {"messages": [{"content": "x"}]},
    "an image": {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
        ]
    },
    "no tokens": {"messages": HELLO, "max_tokens": 0},
    "fewer than no tokens": {"messages": HELLO, "max_tokens": -1},
    "a thousand stop strings": {"messages": HELLO, "stop": [str(n) for n in range(1000)]},
    "an empty stop string": {"messages": HELLO, "stop": ""},
    "a temperature below zero": {"messages": HELLO, "temperature": -0.1},
    "a temperature of infinity": {"messages": HELLO, "temperature": 1e400},
    "top_p above one": {"messages": HELLO, "top_p": 1.5},
    "a thousand choices": {"messages": HELLO, "n": 1000},
    "no choices": {"messages": HELLO, "n": 0},
    "logprobs without asking": {"messages": HELLO, "top_logprobs": 3},
    "a hundred logprobs": {"messages": HELLO, "logprobs": True, "top_logprobs": 100},
    "a schema that is none": {
        "messages": HELLO,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "wizard"}},
        },
    },
    "an unknown format": {"messages": HELLO, "response_format": {"type": "xml"}},
    "a tool without a name": {"messages": HELLO, "tools": [{"type": "function", "function": {}}]},
    "a named tool that is not there": {
        "messages": HELLO,
        "tools": [{"type": "function", "function": {"name": "a", "parameters": {}}}],
        "tool_choice": {"type": "function", "function": {"name": "b"}},
    },
    "a conversation that the template refuses": {"messages": [{"role": "tool", "content": None}]},
    "a longer prompt than the context": {"messages": [{"role": "user", "content": "cat " * 9999}]},
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_refused_in_the_form_of_the_api(
    agent: Agent, body: dict[str, Any], stream: bool
) -> None:
    response = post(agent, {**body, "stream": stream})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "talker", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"model": "talker", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": 5, "messages": []}',
        b'{"model": "talker", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["empty", "half", "list", "null", "latin", "surrogate", "number", "deep"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/chat"])
def test_a_body_that_cannot_be_read_is_refused(agent: Agent, content: bytes, path: str) -> None:
    response = send(agent, content, path)
    assert response.status_code == 400, response.text
    assert response.json()["error"]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/chat"])
def test_a_body_beyond_the_cap_is_refused_before_it_is_parsed(agent: Agent, path: str) -> None:
    content = b'{"model": "talker", "query": "' + b"a" * (9 << 20) + b'"}'
    assert send(agent, content, path).status_code == 413


@pytest.mark.usefixtures("unharmed")
def test_more_tokens_than_the_context_holds_end_with_length(agent: Agent) -> None:
    response = post(agent, {"messages": HELLO, "max_tokens": 10**9, "ignore_eos": True})
    assert response.status_code == 200
    choice = response.json()["choices"][0]
    usage = response.json()["usage"]
    assert choice["finish_reason"] in {"length", "stop"}
    assert usage["total_tokens"] <= agent.serving.served_chat(NAME).generator.spec.context


@pytest.mark.usefixtures("unharmed")
def test_a_hundred_clients_that_vanish_leave_nothing_behind(agent: Agent) -> None:
    body = json.dumps({"model": NAME, "messages": HELLO, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    host, _, port = agent.url.removeprefix("http://").partition(":")

    def vanish(number: int) -> None:
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(head.encode() + body[: len(body) - number % 2])
            if number % 6 in {2, 4}:  # whole requests: the others would wait for a time-out
                client.recv(1)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(vanish, range(100)))
    served = agent.serving.served_chat(NAME)
    pause = threading.Event()
    for _ in range(3000):
        if served.places.taken == 0 and served.generator.running == 0:
            break
        pause.wait(0.01)
    assert (served.places.taken, served.generator.running) == (0, 0)
