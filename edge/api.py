"""The HTTP surface as a Flask app: Open Inference Protocol v2, /predict, /metrics and /telemetry.

Every answer under /v2 and /predict is JSON, and every answer that is not 200 is `{"error": "..."}`.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from edge import __version__
from edge.errors import EdgeError, InputError
from edge.extensions import (
    EXTENSIONS,
    PLATFORM_FROM_BACKEND,
    backend_of,
    model_config,
    model_stats,
    repository_index,
)
from edge.http_answer import AGENT_FAILED, HttpAnswer, answer_from_error, too_large
from edge.infer import Inference, Route
from edge.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from edge.spec import TensorSpec
from edge.telemetry import report_from_serving

SERVER_NAME = "edge-agent"

logger = logging.getLogger(__name__)


class _IndexRequest(msgspec.Struct, frozen=True):
    ready: bool = False


def create_app(inference: Inference, *, max_body_bytes: int) -> Flask:
    """Return the WSGI application that answers for what inference serves.

    The agent's own server sends inference past it; see `infer.InferHandler`.
    """
    serving, clock = inference.serving, inference.clock
    app = Flask(SERVER_NAME, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False
    _register_errors(app, max_body_bytes)

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
        return _json({"name": SERVER_NAME, "version": __version__, "extensions": EXTENSIONS})

    def model_metadata(name: str, version: str | None = None) -> Response:
        model = serving.model(name, version)
        return _json(
            {
                "name": model.name,
                "versions": [model.version],
                "platform": PLATFORM_FROM_BACKEND[backend_of(serving, model)],
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
        return answered(Route(name=name, version=version))

    def predict(name: str) -> Response:
        return answered(Route(name=name, is_image=True))

    def answered(route: Route) -> Response:
        body = request.get_data(cache=False)
        return _response(inference.answer(request.environ, body, route))

    def config(name: str, version: str | None = None) -> Response:
        return _json(model_config(serving, serving.model(name, version)))

    def stats(name: str, version: str | None = None) -> Response:
        return _json(model_stats(serving, (serving.model(name, version),)))

    def all_stats() -> Response:
        return _json(model_stats(serving, serving.bundle.manifest.models))

    def index() -> Response:
        body = request.get_data(cache=False)
        try:
            asked = msgspec.json.decode(body or b"{}", type=_IndexRequest)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise InputError(f'the body is not {{"ready": true or false}}: {error}') from error
        return _json(repository_index(serving, ready_only=asked.ready))

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
        ("/v2/models/<name>/config", config),
        ("/v2/models/<name>/versions/<version>/config", config),
        ("/v2/models/<name>/stats", stats),
        ("/v2/models/<name>/versions/<version>/stats", stats),
        ("/v2/models/stats", all_stats),
        ("/metrics", metrics),
        ("/telemetry", telemetry),
    ):
        app.add_url_rule(rule, view_func=view, methods=["GET"], strict_slashes=False)
    # The specification's OpenAPI file has this spelling as well.
    app.add_url_rule("/v2/", view_func=server_metadata, methods=["GET"])
    for rule in ("/v2/models/<name>/infer", "/v2/models/<name>/versions/<version>/infer"):
        app.add_url_rule(rule, view_func=infer, methods=["POST"])
    app.add_url_rule("/predict/<name>", view_func=predict, methods=["POST"])
    app.add_url_rule("/v2/repository/index", view_func=index, methods=["POST"])
    return app


def _register_errors(app: Flask, max_body_bytes: int) -> None:
    def edge_error(error: EdgeError) -> Response:
        return _response(answer_from_error(error))

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

    def entity_too_large(_: RequestEntityTooLarge) -> Response:
        return edge_error(too_large(max_body_bytes))

    def unexpected(error: Exception) -> Response:
        logger.error("request failed path=%s", request.path, exc_info=error)
        return _error(500, AGENT_FAILED)

    app.register_error_handler(RequestEntityTooLarge, entity_too_large)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(EdgeError, edge_error)
    app.register_error_handler(Exception, unexpected)


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.wire_shape}


def _response(answer: HttpAnswer) -> Response:
    return Response(answer.body, status=answer.status, headers=answer.headers)


def _error(status: int, message: str, **facts: bool) -> Response:
    return _json({"error": message, **facts}, status=status)


def _json(content: object, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status=status, content_type="application/json")
