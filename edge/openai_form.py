"""What all requests in the manner of OpenAI's API have in common: how they are read and refused."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from edge.errors import ContextLengthError, EdgeError, InputError, UnknownModelError
from edge.http_answer import HttpAnswer, answer_from_error

_T = TypeVar("_T")
_TYPE_FROM_STATUS = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
# Where OpenAI's clients look for a code of their own.
_CODES = {UnknownModelError: "model_not_found", ContextLengthError: "context_length_exceeded"}
_PLACE = re.compile(r" - at `\$\.?([^`]+)`")
_MISSING = re.compile(r"missing required field `(\w+)`")
_ANY_KEY = "[...]"


class FieldError(InputError):
    """A field of the request is wrong; `field` names it, as in `messages[0].role`."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


def decoded(decoder: msgspec.json.Decoder[_T], body: bytes, what: str) -> _T:
    """Return the value that a body spells; raises FieldError or InputError. what: it should be."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        message, field = f"the body is no {what}: {reason}", _field(reason)
        if field is None:
            raise InputError(message) from error
        raise FieldError(message, field) from error


def _field(reason: str) -> str | None:
    """Return the field that msgspec complains of, None for the body as a whole."""
    place, missing = _PLACE.search(reason), _MISSING.search(reason)
    names = [] if place is None else [place[1].replace(_ANY_KEY, "")]
    names += [] if missing is None else [missing[1]]
    return ".".join(names) or None


def error_answer(error: EdgeError) -> HttpAnswer:
    """Return the answer for an error, as OpenAI's clients read it."""
    param = error.field if isinstance(error, FieldError | ContextLengthError) else None
    if isinstance(error, UnknownModelError):
        param = "model"
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), error.code)
    return in_openai_form(answer_from_error(error), param=param, code=code)


def in_openai_form(
    answer: HttpAnswer, *, param: str | None = None, code: str | None = None
) -> HttpAnswer:
    """Return an answer `{"error": message}` in the form that OpenAI's clients read."""
    message = msgspec.json.decode(answer.body)["error"]
    kind = _TYPE_FROM_STATUS.get(answer.status, "server_error")
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return HttpAnswer(
        status=answer.status, body=msgspec.json.encode(body), headers=dict(answer.headers)
    )
