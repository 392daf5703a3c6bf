from __future__ import annotations

import httpx
import msgspec
import openai
import pytest

from edge.errors import (
    BodyTooLargeError,
    ContextLengthError,
    DeadlineError,
    InferenceError,
    InputError,
    NotReadyError,
    QueueFullError,
    UnknownModelError,
)
from edge.openai_form import FieldError, decoded, error_answer


class _Part(msgspec.Struct):
    kind: str


class _Request(msgspec.Struct):
    model: str
    parts: list[_Part] = []
    bias: dict[str, float] = {}


DECODER = msgspec.json.Decoder(_Request)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"model": 1}', "model"),
        (b"{}", "model"),
        (b'{"model": "a", "parts": [{"kind": "b"}, {"kind": 1}]}', "parts[1].kind"),
        (b'{"model": "a", "parts": [{}]}', "parts[0].kind"),
        (b'{"model": "a", "bias": {"7": "b"}}', "bias"),
    ],
)
def test_an_error_names_the_field(body, field):
    with pytest.raises(FieldError) as raised:
        decoded(DECODER, body, "request")
    assert raised.value.field == field


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_a_body_that_is_no_request_is_an_error_without_a_field(body):
    with pytest.raises(InputError, match="the body is no request") as raised:
        decoded(DECODER, body, "request")
    assert not isinstance(raised.value, FieldError)


@pytest.mark.parametrize(
    ("error", "raised", "param", "code"),
    [
        (FieldError("no", "n"), openai.BadRequestError, "n", "input"),
        (InputError("no"), openai.BadRequestError, None, "input"),
        (ContextLengthError("long"), openai.BadRequestError, None, "context_length_exceeded"),
        (UnknownModelError("none"), openai.NotFoundError, "model", "model_not_found"),
        (BodyTooLargeError("large"), openai.APIStatusError, None, "body-too-large"),
        (QueueFullError("full"), openai.RateLimitError, None, "queue-full"),
        (NotReadyError("not yet"), openai.InternalServerError, None, "not-ready"),
        (DeadlineError("late"), openai.InternalServerError, None, "deadline"),
        (InferenceError("secret"), openai.InternalServerError, None, "inference"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_openais_client_raises_its_own_error_for_each(error, raised, param, code):
    answer = error_answer(error)

    def reply(request: httpx.Request) -> httpx.Response:
        return httpx.Response(answer.status, content=answer.body, headers=answer.headers)

    with (
        httpx.Client(transport=httpx.MockTransport(reply)) as http,
        openai.OpenAI(
            api_key="k", base_url="http://d/v1", http_client=http, max_retries=0
        ) as client,
        pytest.raises(raised) as caught,
    ):
        client.models.list()
    assert (caught.value.param, caught.value.code) == (param, code)
    assert ("secret" in str(caught.value)) is False
