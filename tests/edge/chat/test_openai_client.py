"""OpenAI's own client, unmodified, on answers that are handed to it in place of a network's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import openai
import pydantic
import pytest

from edge.chat.chat_model import ChatModel
from edge.chat.openai_request import chat_request, completion_request
from edge.errors import EdgeError
from edge.openai_form import error_answer
from tests.edge.chat.talking import SayingDecoder, chat_model, say
from tests.edge.chat.templates import QWEN2
from tests.edge.chat.test_chat_forms import CALLS
from tests.edge.chat.test_chat_model import Failing

# What the client speaks HTTP with, up to its version 2 and since.
httpx: Any = importlib.import_module("httpx2" if find_spec("httpx2") else "httpx")
HI: Any = [{"role": "user", "content": "Hi"}]


class Weather(pydantic.BaseModel):
    kind: str
    degrees: int


class get_weather(pydantic.BaseModel):  # noqa: N801 - the name of the tool
    city: str


class now(pydantic.BaseModel):  # noqa: N801
    pass


def client_of(
    open_decoder: Callable[[], SayingDecoder], model: ChatModel | None = None
) -> openai.OpenAI:
    """Return a client of a model; every request to it has a decoder of its own."""
    served = model or chat_model(QWEN2)

    def answered(request: Any) -> Any:
        try:
            if request.url.path == "/v1/chat/completions":
                prepared = served.chat(chat_request(request.content))
            else:
                prepared = served.complete(completion_request(request.content))
            client = say(prepared, open_decoder())
            if client.errors:
                raise client.errors[0]
        except EdgeError as error:
            refused = error_answer(error)
            return httpx.Response(refused.status, content=refused.body, headers=refused.headers)
        headers = {"Content-Type": prepared.answer.content_type}
        return httpx.Response(200, content=client.bytes, headers=headers)

    transport = httpx.MockTransport(answered)
    return openai.OpenAI(
        base_url="http://device/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx.Client(transport=transport),
    )


def test_the_client_parses_an_answer_of_its_users_own_type() -> None:
    client = client_of(lambda: SayingDecoder('{"kind": "sun", "degrees": 21}'))
    answer = client.chat.completions.parse(model="tiny", messages=HI, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(kind="sun", degrees=21)


def test_the_client_parses_the_arguments_of_its_users_own_functions() -> None:
    _, said, content = CALLS["hermes"]
    client = client_of(lambda: SayingDecoder(said))
    tools = [openai.pydantic_function_tool(get_weather), openai.pydantic_function_tool(now)]
    answer = client.chat.completions.parse(model="tiny", messages=HI, tools=tools)
    message = answer.choices[0].message
    calls = [call.function.parsed_arguments for call in message.tool_calls or ()]
    assert calls == [get_weather(city="Paris"), now()]
    assert message.content == content


@pytest.mark.parametrize("form", ["text", "calls"])
def test_what_the_client_gathers_of_a_stream_is_what_a_whole_answer_says(form: str) -> None:
    _, calling, _ = CALLS["hermes"]
    client = client_of(lambda: SayingDecoder(calling if form == "calls" else "Größe 🙂!"))
    fields: dict[str, Any] = {"model": "tiny", "messages": HI, "logprobs": True, "top_logprobs": 1}
    if form == "calls":
        fields["tools"] = [openai.pydantic_function_tool(get_weather)]
        fields["tools"] += [openai.pydantic_function_tool(now)]
    whole = client.chat.completions.create(**fields).choices[0]
    with client.chat.completions.stream(**fields, stream_options={"include_usage": True}) as events:
        final = events.get_final_completion()
    gathered = final.choices[0]
    assert gathered.finish_reason == whole.finish_reason
    assert (gathered.message.content or None) == whole.message.content
    assert [
        (call.function.name, call.function.arguments) for call in gathered.message.tool_calls or ()
    ] == [(call.function.name, call.function.arguments) for call in whole.message.tool_calls or ()]
    assert gathered.logprobs == whole.logprobs
    assert final.usage is not None


def test_an_error_within_a_stream_is_the_clients_error() -> None:
    client = client_of(lambda: Failing(5))
    stream = client.chat.completions.create(model="tiny", messages=HI, stream=True)
    said = []
    with pytest.raises(openai.APIError, match="log says why") as raised:
        said += [chunk.choices[0].delta.content for chunk in stream]
    assert raised.value.type == "server_error"


def test_errors_are_of_the_clients_classes_with_their_codes() -> None:
    client = client_of(lambda: SayingDecoder("Hi"))
    long: Any = [{"role": "user", "content": "x " * 3000}]
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="tiny", messages=long)
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="tiny", messages=HI, stop=["a"] * 1000)
    assert raised.value.param == "stop"
    with pytest.raises(openai.InternalServerError):
        client_of(lambda: Failing(5)).chat.completions.create(model="tiny", messages=HI)


def test_the_client_completes_a_text() -> None:
    client = client_of(lambda: SayingDecoder(" sat."))
    answer = client.completions.create(model="tiny", prompt="The cat", echo=True)
    assert answer.choices[0].text == "The cat sat."
    stream = client.completions.create(model="tiny", prompt="The cat", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == " sat."
