"""Inference over HTTP, from the bytes of a request to those of its answer.

Most requests are of this kind, so they do not pass through Flask: `Shortcut` recognises them by
method and path and gives everything else on.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from edge import oip
from edge.errors import EdgeError, InputError, QueueFullError
from edge.http_answer import (
    AGENT_FAILED,
    HttpAnswer,
    answer_from_error,
    json_error,
    packed,
    too_large,
    unpacked,
)
from edge.manifest import Model
from edge.serving import ServedModel, Serving
from edge.spec import check_feeds, check_tensor

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TIMEOUT_HEADER = "Edge-Timeout-Ms"
INFER_PATH = re.compile(r"/v2/models/([\w.-]+)(?:/versions/([\w.-]+))?/infer/?", re.ASCII)
_MAX_DIGITS = 15

logger = logging.getLogger(__name__)

Parse = Callable[[Model], oip.InferRequest]


class Inference:
    """Answers inference requests; may be used from any thread.

    max_requests: of one model that may be inside at once; the next is refused before its body is
    read, and requests for other models are not kept out.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        max_body_bytes: int,
        max_requests: int,
        request_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.request_timeout_s = request_timeout_s
        self._serving = serving
        self._max_body_bytes = max_body_bytes
        self._max_requests = max_requests
        self._clock = clock
        self._places = {
            model.name: threading.BoundedSemaphore(max_requests)
            for model in serving.bundle.manifest.models
        }

    def infer(self, environ: WSGIEnvironment, name: str, version: str | None) -> HttpAnswer:
        """Return the answer to one request of the Open Inference Protocol; raises EdgeError."""
        served = self._serving.served_model(name, version)
        parse = functools.partial(self._parse, environ)
        answer = self.answer(served, parse, timeout_s=_timeout_s(environ))
        return packed(answer, environ.get("HTTP_ACCEPT_ENCODING", ""))

    def answer(
        self, served: ServedModel, parse: Parse, *, timeout_s: float | None = None
    ) -> HttpAnswer:
        """Parse, run, encode and count one request; raises EdgeError.

        timeout_s: the client's own limit, beside that of the configuration and of the request.
        """
        started = self._clock()
        try:
            return self._answer(served, parse, started, timeout_s)
        except EdgeError as error:
            served.record_error(error.code, total_s=self._clock() - started)
            raise

    def _answer(
        self, served: ServedModel, parse: Parse, started: float, timeout_s: float | None
    ) -> HttpAnswer:
        model = served.model
        place = self._places[model.name]
        if not place.acquire(blocking=False):
            raise QueueFullError(
                f"{self._max_requests} requests for model {model.name!r} are being answered "
                "already; retry later"
            )
        try:
            parsed = parse(model)
            limits = (self.request_timeout_s, timeout_s, parsed.timeout_s)
            deadline = started + min(limit for limit in limits if limit is not None)
            begun = self._clock()
            answer = served.worker.infer(parsed.feeds, deadline=deadline, priority=parsed.priority)
            ended = self._clock()
            encoded = oip.encode_infer(
                answer.outputs,
                parsed,
                model=model.name,
                version=model.version,
                outputs=model.outputs,
            )
        finally:
            place.release()
        done = self._clock()
        served.record_answer(
            answer,
            rows=parsed.rows,
            parse_s=begun - started,
            encode_s=done - ended,
            total_s=done - started,
        )
        return HttpAnswer(status=200, body=encoded.body, headers=encoded.headers)

    def _parse(self, environ: WSGIEnvironment, model: Model) -> oip.InferRequest:
        body = self._body(environ)
        length = oip.json_length_from_header(
            environ.get("HTTP_INFERENCE_HEADER_CONTENT_LENGTH"), body_bytes=len(body)
        )
        if length == 0:
            parsed = oip.parse_raw(body, inputs=model.inputs, outputs=model.outputs)
        else:
            check = functools.partial(check_tensor, specs=model.inputs, profile=model.profile)
            parsed = oip.parse_infer(body, length, outputs=model.outputs, check=check)
        check_feeds(parsed.feeds, model.inputs, model.profile)
        return parsed

    def _body(self, environ: WSGIEnvironment) -> bytes:
        stream = environ["wsgi.input"]
        given = environ.get("CONTENT_LENGTH")
        if given:
            if not given.isdecimal() or len(given) > _MAX_DIGITS:
                raise InputError("Content-Length must be a decimal number of bytes")
            if int(given) > self._max_body_bytes:
                raise too_large(self._max_body_bytes)
            body = stream.read(int(given))
            if len(body) < int(given):
                raise InputError("the body ends before its announced length")
        else:
            body = stream.read(self._max_body_bytes + 1)
            if len(body) > self._max_body_bytes:
                raise too_large(self._max_body_bytes)
        encoding = environ.get("HTTP_CONTENT_ENCODING", "")
        return unpacked(body, encoding, max_body_bytes=self._max_body_bytes)


class Shortcut:
    """A WSGI application: inference to `Inference`, everything else to the app behind it."""

    def __init__(self, app: WSGIApplication, inference: Inference, serving: Serving) -> None:
        self._app = app
        self._inference = inference
        self._serving = serving

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = INFER_PATH.fullmatch(environ["PATH_INFO"])
        if path is None or environ["REQUEST_METHOD"] != "POST":
            return self._app(environ, start_response)
        answer = self._answered(environ, path[1], path[2])
        self._serving.metrics.record_response(answer.status)
        headers = [*answer.headers.items(), ("Content-Length", str(len(answer.body)))]
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", headers)
        return [answer.body]

    def _answered(self, environ: WSGIEnvironment, name: str, version: Any) -> HttpAnswer:
        try:
            return self._inference.infer(environ, name, version)
        except EdgeError as error:
            return answer_from_error(error)
        except Exception as error:
            logger.error("request failed path=%s", environ["PATH_INFO"], exc_info=error)
            return json_error(500, AGENT_FAILED)


def _timeout_s(environ: WSGIEnvironment) -> float | None:
    """Return the limit that the client gives in TIMEOUT_HEADER, in seconds."""
    text = environ.get("HTTP_EDGE_TIMEOUT_MS")
    if text is None:
        return None
    if not text.isdecimal() or len(text) > _MAX_DIGITS or int(text) == 0:
        raise InputError(f"{TIMEOUT_HEADER} must be a positive number of milliseconds")
    return int(text) / 1e3
