"""What the agent answers without running a model, as a Flask app: /v2, /metrics and /telemetry.

Inference never comes here, see `infer`. Every answer under /v2 is JSON, and every answer that is
not 200 is `{"error": "..."}`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from edge import __version__, openai_form, openai_models, openapi
from edge.errors import EdgeError, InputError
from edge.extensions import (
    EXTENSIONS,
    PLATFORM_FROM_BACKEND,
    ChangeRequest,
    IndexRequest,
    backend_of,
    model_config,
    model_stats,
    repository_index,
)
from edge.history.history import HistoryQuery
from edge.http_answer import (
    AGENT_FAILED,
    HttpAnswer,
    answer_from_error,
    too_large,
    wrong_method,
)
from edge.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from edge.openapi_operations import OPENAPI_PATH
from edge.pages import page_answer
from edge.repository import Repository
from edge.serving import Serving
from edge.spec import TensorSpec
from edge.telemetry import report_from_serving

SERVER_NAME = "edge-agent"

DASHBOARD = Path(__file__).with_name("dashboard.html")

logger = logging.getLogger(__name__)


def create_app(
    serving: Serving,
    repository: Repository,
    *,
    max_body_bytes: int,
    clock: Callable[[], float],
) -> Flask:
    """Return the WSGI application that describes and changes what is served.

    clock: that of the agent.
    """
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

    def config(name: str, version: str | None = None) -> Response:
        return _json(model_config(serving, serving.model(name, version)))

    def stats(name: str, version: str | None = None) -> Response:
        return _json(model_stats(serving, (serving.model(name, version),)))

    def all_stats() -> Response:
        return _json(model_stats(serving, serving.models))

    def index() -> Response:
        body = request.get_data(cache=False)
        try:
            asked = msgspec.json.decode(body or b"{}", type=IndexRequest)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise InputError(f'the body is not {{"ready": true or false}}: {error}') from error
        return _json(repository_index(serving, ready_only=asked.ready))

    def load(name: str) -> Response:
        _check_change(request.get_data(cache=False))
        repository.load(name).result()
        return _json({})

    def unload(name: str) -> Response:
        _check_change(request.get_data(cache=False))
        repository.unload(name).result()
        return _json({})

    def listed_models() -> Response:
        return _json(openai_models.model_list(serving))

    def listed_model(name: str) -> Response:
        try:
            return _json(openai_models.model_entry(serving, name))
        except EdgeError as error:
            return _response(openai_form.error_answer(error))

    def metrics() -> Response:
        return Response(serving.metrics.exposition(), content_type=METRICS_CONTENT_TYPE)

    def openapi_document() -> Response:
        return Response(openapi.encoded(), content_type="application/json")

    def dashboard() -> Response:
        return _response(page_answer(DASHBOARD))

    def telemetry() -> Response:
        return _json(report_from_serving(serving, now=clock()))

    def history() -> Response:
        try:
            query = msgspec.convert(request.args.to_dict(), HistoryQuery, strict=False)
        except msgspec.ValidationError as error:
            raise InputError(
                f"{error}; give numbers for since, seconds and points, or none"
            ) from error
        return _json(serving.history.report(query))

    def log() -> Response:
        return _json(serving.log.report())

    for rule, view in (
        ("/", dashboard),
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
        ("/v1/models", listed_models),
        ("/v1/models/<name>", listed_model),
        ("/metrics", metrics),
        ("/telemetry", telemetry),
        ("/telemetry/history", history),
        ("/telemetry/log", log),
        (OPENAPI_PATH, openapi_document),
    ):
        app.add_url_rule(rule, view_func=view, methods=["GET"], strict_slashes=False)
    # The specification's OpenAPI file has this spelling as well.
    app.add_url_rule("/v2/", view_func=server_metadata, methods=["GET"])
    for rule, view in (
        ("/v2/repository/index", index),
        ("/v2/repository/models/<name>/load", load),
        ("/v2/repository/models/<name>/unload", unload),
    ):
        app.add_url_rule(rule, view_func=view, methods=["POST"], strict_slashes=False)
    return app


def _register_errors(app: Flask, max_body_bytes: int) -> None:
    def edge_error(error: EdgeError) -> Response:
        return _response(answer_from_error(error))

    def http_error(error: HTTPException) -> Response:
        if error.code == 404:
            message = f"there is nothing at {request.path}; see /v2 and /v2/models/NAME"
        elif error.code == 405:
            allowed = ", ".join(sorted(getattr(error, "valid_methods", ())))
            return _response(wrong_method(request.method, request.path, allowed))
        else:
            message = error.description or error.name
        return _error(error.code or 500, message)

    def entity_too_large(_: RequestEntityTooLarge) -> Response:
        return edge_error(too_large(max_body_bytes))

    def unexpected(error: Exception) -> Response:
        logger.error("request failed path=%s", request.path, exc_info=error)
        return _error(500, AGENT_FAILED)

    app.register_error_handler(RequestEntityTooLarge, entity_too_large)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(EdgeError, edge_error)
    app.register_error_handler(Exception, unexpected)


def _check_change(body: bytes) -> None:
    """Raise InputError for a load or unload that wants what a signed bundle cannot give."""
    try:
        asked = msgspec.json.decode(body or b"{}", type=ChangeRequest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f'the body is not {{"parameters": {{...}}}}: {error}') from error
    given = sorted(set(asked.parameters) - {"unload_dependents"})
    if given:
        raise InputError(
            f"parameter {given[0]!r} is not supported: models come from the signed bundle alone; "
            "replace that, then load"
        )


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.wire_shape}


def _response(answer: HttpAnswer) -> Response:
    return Response(answer.body, status=answer.status, headers=answer.headers)


def _error(status: int, message: str, **facts: bool) -> Response:
    return _json({"error": message, **facts}, status=status)


def _json(content: object, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status=status, content_type="application/json")
