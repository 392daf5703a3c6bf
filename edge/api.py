"""The HTTP surface as a Flask app: Open Inference Protocol v2, /predict, /metrics and /telemetry.

Every answer under /v2 and /predict is JSON, and every answer that is not 200 is `{"error": "..."}`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from edge import __version__, oip
from edge.errors import BodyTooLargeError, EdgeError, QueueFullError, UnsupportedEncodingError
from edge.manifest import Model
from edge.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from edge.predict import ImageRequests
from edge.serving import ServedModel, Serving
from edge.spec import TensorSpec, check_feeds, check_tensor
from edge.telemetry import report_from_serving

SERVER_NAME = "edge-agent"
RETRY_AFTER_S = 1

logger = logging.getLogger(__name__)

# The only place that turns an error into a status; a code that is not here is a 500.
_STATUS_FROM_CODE = {
    "input": 400,
    "body-too-large": 413,
    "unsupported-encoding": 415,
    "unknown-model": 404,
    "queue-full": 429,
    "not-ready": 503,
    "deadline": 504,
}
_PLATFORM_FROM_BACKEND = {
    "ort": "onnx_onnxv1",
    "trt": "tensorrt_plan",
    "trt-rtx": "tensorrt_plan",
}


def create_app(
    serving: Serving,
    *,
    max_body_bytes: int,
    max_requests: int,
    request_timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Flask:
    """Return the WSGI application that answers for serving.

    max_requests: inference requests that may be inside at once. The server needs a few threads
    more, so that the refusal of the next one, health and metrics never wait for a model.
    """
    app = Flask(SERVER_NAME, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False
    _register_errors(app, max_body_bytes)
    places = threading.BoundedSemaphore(max_requests)
    images = ImageRequests()

    @app.after_request
    def count(response: Response) -> Response:
        serving.metrics.record_response(response.status_code)
        return response

    def health_live() -> Response:
        return _json({"live": True})

    def health_ready() -> Response:
        if serving.is_ready:
            return _json({"ready": True})
        return _error(503, f"not ready: {serving.condition}", ready=False)

    def server_metadata() -> Response:
        return _json(
            {"name": SERVER_NAME, "version": __version__, "extensions": ["binary_tensor_data"]}
        )

    def model_metadata(name: str, version: str | None = None) -> Response:
        model = serving.model(name, version)
        served = serving.served.get(name)
        variant = model.variants[0] if served is None else served.choice.variant
        return _json(
            {
                "name": model.name,
                "versions": [model.version],
                "platform": _PLATFORM_FROM_BACKEND[variant.backend],
                "inputs": [_metadata(spec) for spec in model.inputs],
                "outputs": [_metadata(spec) for spec in model.outputs],
            }
        )

    def model_ready(name: str, version: str | None = None) -> Response:
        model = serving.model(name, version)
        if serving.is_model_ready(model.name):
            return _json({"name": model.name, "ready": True})
        return _error(503, f"model {name!r} is not ready: {serving.condition}", ready=False)

    def infer(name: str, version: str | None = None) -> Response:
        return answered(serving.served_model(name, version), _parse)

    def predict(name: str) -> Response:
        parse = functools.partial(images.parse, request, timeout_s=request_timeout_s)
        return answered(serving.served_model(name, None), parse)

    def answered(served: ServedModel, parse: Callable[[Model], oip.InferRequest]) -> Response:
        started = clock()
        try:
            with _place(places, max_requests):
                parsed = parse(served.model)
                answer = served.worker.infer(parsed.feeds, deadline=started + request_timeout_s)
                encoded = oip.encode_infer(
                    answer.outputs,
                    parsed,
                    model=served.model.name,
                    version=served.model.version,
                    outputs=served.model.outputs,
                )
        except EdgeError as error:
            served.metrics.record_error(error.code)
            raise
        served.record_answer(answer, total_s=clock() - started)
        return Response(encoded.body, headers=encoded.headers)

    def metrics() -> Response:
        return Response(serving.metrics.exposition(), content_type=METRICS_CONTENT_TYPE)

    def telemetry() -> Response:
        return _json(report_from_serving(serving, now=clock()))

    for rule, view in (
        ("/v2/health/live", health_live),
        ("/v2/health/ready", health_ready),
        ("/v2", server_metadata),
        ("/v2/models/<name>", model_metadata),
        ("/v2/models/<name>/versions/<version>", model_metadata),
        ("/v2/models/<name>/ready", model_ready),
        ("/v2/models/<name>/versions/<version>/ready", model_ready),
        ("/metrics", metrics),
        ("/telemetry", telemetry),
    ):
        app.add_url_rule(rule, view_func=view, methods=["GET"], strict_slashes=False)
    # The specification's OpenAPI file has this spelling as well.
    app.add_url_rule("/v2/", view_func=server_metadata, methods=["GET"])
    for rule in ("/v2/models/<name>/infer", "/v2/models/<name>/versions/<version>/infer"):
        app.add_url_rule(rule, view_func=infer, methods=["POST"])
    app.add_url_rule("/predict/<name>", view_func=predict, methods=["POST"])
    return app


def _register_errors(app: Flask, max_body_bytes: int) -> None:
    def edge_error(error: EdgeError) -> Response:
        status = _STATUS_FROM_CODE.get(error.code, 500)
        if status == 500:
            logger.debug("request failed path=%s: %s", request.path, error)
            return _error(500, "the model failed to run this request; the agent's log says why")
        response = _error(status, str(error))
        if status == 429:
            response.headers["Retry-After"] = str(RETRY_AFTER_S)
        return response

    def http_error(error: HTTPException) -> Response:
        if error.code == 404:
            message = f"there is nothing at {request.path}; see /v2 and /v2/models/NAME"
        elif error.code == 405:
            message = f"{request.path} does not take {request.method}"
        else:
            message = error.description or error.name
        response = _error(error.code or 500, message)
        if error.code == 405:
            response.headers["Allow"] = ", ".join(sorted(getattr(error, "valid_methods", ())))
        return response

    def too_large(_: RequestEntityTooLarge) -> Response:
        return edge_error(
            BodyTooLargeError(
                f"the request body exceeds {max_body_bytes} bytes; send fewer rows at once, or "
                "raise max_body_bytes"
            )
        )

    def unexpected(error: Exception) -> Response:
        logger.error("request failed path=%s", request.path, exc_info=error)
        return _error(500, "the agent failed to answer this request; its log says why")

    app.register_error_handler(RequestEntityTooLarge, too_large)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(EdgeError, edge_error)
    app.register_error_handler(Exception, unexpected)


@contextlib.contextmanager
def _place(places: threading.BoundedSemaphore, count: int) -> Iterator[None]:
    """Hold one of the places for requests, or refuse at once."""
    if not places.acquire(blocking=False):
        raise QueueFullError(f"{count} requests are being answered already; retry later")
    try:
        yield
    finally:
        places.release()


def _parse(model: Model) -> oip.InferRequest:
    body = _body()
    length = oip.json_length_from_header(
        request.headers.get(oip.JSON_LENGTH_HEADER), body_bytes=len(body)
    )
    check = functools.partial(check_tensor, specs=model.inputs, profile=model.profile)
    parsed = oip.parse_infer(body, length, outputs=model.outputs, check=check)
    check_feeds(parsed.feeds, model.inputs, model.profile)
    return parsed


def _body() -> bytes:
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedEncodingError(
            f"Content-Encoding {encoding!r} is not supported; send the body uncompressed"
        )
    return request.get_data(cache=False)


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.wire_shape}


def _error(status: int, message: str, **facts: bool) -> Response:
    return _json({"error": message, **facts}, status=status)


def _json(content: object, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status=status, content_type="application/json")
