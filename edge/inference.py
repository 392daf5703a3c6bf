"""Inference requests as they come: whom they are for, what they ask, how long they may take."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import msgspec

from edge import embeddings, oip
from edge.asked import Asked
from edge.errors import InputError
from edge.http_answer import HttpAnswer, unpacked
from edge.http_request import HttpRequest
from edge.manifest import Model
from edge.predict import Predictor
from edge.routes import Route
from edge.served import ServedModel
from edge.serving import Serving
from edge.spec import AnyArray, check_feeds, check_tensor, check_together, name_of_strings

TIMEOUT_HEADER = "Edge-Timeout-Ms"
# From here on a tensor is parsed or encoded outside the event loop.
LARGE_BYTES = 64 << 10
_MAX_DIGITS = 15
_TIMEOUT = TIMEOUT_HEADER.lower().encode()
_JSON_LENGTH = oip.JSON_LENGTH_HEADER.lower().encode()

Parse = Callable[[ServedModel], Asked]


class Inference:
    """How requests are read and answered; may be used from any thread."""

    def __init__(
        self,
        serving: Serving,
        *,
        max_body_bytes: int,
        request_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.serving = serving
        self.clock = clock
        self.predictor = Predictor(max_body_bytes=max_body_bytes, timeout_s=request_timeout_s)
        self._request_timeout_s = request_timeout_s
        self._max_body_bytes = max_body_bytes

    def addressed(self, request: HttpRequest, route: Route) -> Addressed:
        """Return the model that a request is for and what reads it, once the model is known.

        Raises InputError if the body has to name the model, and does not.
        """
        if route.kind == "embeddings":
            most = min(self._max_body_bytes, embeddings.MAX_BODY_BYTES)
            body = unpacked(request.body, request.header(b"content-encoding"), max_body_bytes=most)
            parse = functools.partial(embeddings.asked_from_body, body)
            return Addressed(name=embeddings.model_of(body), parse=parse)
        assert route.name is not None  # noqa: S101 - see Route
        read = self.predictor.asked if route.kind == "predict" else self._asked
        parse = functools.partial(read, request)
        return Addressed(name=route.name, version=route.version, parse=parse)

    def limit_s(self, request: HttpRequest, asked: Asked) -> float:
        """Return how long the request may take: the shortest of all that is said about it."""
        limits = (self._request_timeout_s, _timeout_s(request), asked.timeout_s)
        return min(limit for limit in limits if limit is not None)

    def _asked(self, request: HttpRequest, served: ServedModel) -> Asked:
        model = served.model
        parsed = self._parsed(request, model)
        return Asked(
            parts=(parsed.feeds,),
            encode=functools.partial(_encoded, parsed, model),
            timeout_s=parsed.timeout_s,
            priority=parsed.priority,
        )

    def _parsed(self, request: HttpRequest, model: Model) -> oip.InferRequest:
        encoding = request.header(b"content-encoding")
        body = unpacked(request.body, encoding, max_body_bytes=self._max_body_bytes)
        length = oip.json_length_from_header(
            request.header(_JSON_LENGTH) if _JSON_LENGTH in request.headers else None,
            body_bytes=len(body),
        )
        if length == 0:
            parsed = oip.parse_raw(body, inputs=model.inputs, outputs=model.outputs)
            check_feeds(parsed.feeds, model.inputs, model.profile)
            return parsed
        check = functools.partial(check_tensor, specs=model.inputs, profile=model.profile)
        parsed = oip.parse_infer(body, length, outputs=model.outputs, check=check)
        check_together(parsed.feeds, model.inputs)
        return parsed


class Addressed(msgspec.Struct, frozen=True, kw_only=True):
    """The model that a request is for, and what reads the request."""

    name: str
    version: str | None = None
    parse: Parse


def is_light(request: HttpRequest, model: Model) -> bool:
    """Whether a request takes no time to parse; numbers in binary are views, so they take none."""
    size, text = len(request.body), request.header(_JSON_LENGTH)
    is_packed = b"content-encoding" in request.headers
    if text.isdecimal() and not is_packed and name_of_strings(*model.inputs) is None:
        size = min(size, int(text[:_MAX_DIGITS]))
    return size <= LARGE_BYTES


def _encoded(parsed: oip.InferRequest, model: Model, outputs: Mapping[str, AnyArray]) -> HttpAnswer:
    response = oip.encode_infer(
        outputs, parsed, model=model.name, version=model.version, outputs=model.outputs
    )
    return HttpAnswer(status=200, body=response.body, headers=response.headers)


def _timeout_s(request: HttpRequest) -> float | None:
    """Return the limit that the client gives in TIMEOUT_HEADER, in seconds."""
    if _TIMEOUT not in request.headers:
        return None
    text = request.header(_TIMEOUT)
    if not text.isdecimal() or len(text) > _MAX_DIGITS or int(text) == 0:
        raise InputError(f"{TIMEOUT_HEADER} must be a positive number of milliseconds")
    return int(text) / 1e3
