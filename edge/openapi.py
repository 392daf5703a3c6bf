"""The OpenAPI document of everything that the agent answers, made of the types that it uses.

It is the same for every bundle: `GET /openapi.json` serves it, docs/openapi.json holds it, and
tests compare its paths with those that are served.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, get_args

import msgspec

from edge import __version__
from edge import openapi_answers as answers
from edge.capture.capture_file import CAPTURE_PATH, STATE_HEADER
from edge.capture.recording import Wish
from edge.embeddings import EmbeddingsRequest
from edge.extensions import ChangeRequest, IndexRequest
from edge.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from edge.oip import JSON_LENGTH_HEADER, RequestHead
from edge.predict import TextRequest
from edge.spec import Datatype
from edge.telemetry import Report

Json = dict[str, Any]

OPENAPI_PATH = "/openapi.json"
MODEL = "/v2/models/{MODEL_NAME}"
VERSION = f"{MODEL}/versions/{{MODEL_VERSION}}"

_JSON = "application/json"
_BINARY = "application/octet-stream"
_SCHEMA = "#/components/schemas/{name}"
_BYTES: Json = {}  # any bytes: the content type says how they are read

# What each status means, wherever it is answered.
_MEANING = {
    400: "The request is not valid; the text says what is wrong with it.",
    403: "The configuration of the agent does not allow it; the text names the key.",
    404: "There is no such model, version, path or recording.",
    408: "The request did not arrive in time.",
    409: "The bundle does not give the model in a form that works here, or one recording is under "
    "way already.",
    413: "The body exceeds max_body_bytes.",
    415: "The body has a Content-Encoding that is not gzip or deflate.",
    429: "Too many requests wait already; Retry-After says when to come back.",
    431: "The head of the request is too large.",
    500: "The model or the agent failed; its log says why.",
    503: "Not ready, stopping, or no room for another connection or body.",
    504: "The request was not answered within its time limit.",
}
# Any connection may meet these, whatever it asks for.
_ALWAYS = (400, 408, 413, 431, 500, 503)
_RUN = (404, 415, 429, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """One method of one path.

    answer, body: by content type a type, several of which one is met, or a schema. failure: type
    of errors; what is refused before its path is known has the plain form everywhere.
    """

    path: str
    method: str
    id: str
    summary: str
    answer: dict[str, Any]
    statuses: tuple[int, ...] = ()
    body: dict[str, Any] | None = None
    needs_body: bool = False
    parameters: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    failure: type = answers.Failure


def _get(path: str, id_: str, summary: str, answer: Any) -> _Operation:
    statuses = (404,) if "{" in path else ()
    return _Operation(
        path=path, method="get", id=id_, summary=summary, answer={_JSON: answer}, statuses=statuses
    )


def _change(verb: str, summary: str, statuses: tuple[int, ...]) -> _Operation:
    return _Operation(
        path=f"/v2/repository/models/{{MODEL_NAME}}/{verb}",
        method="post",
        id=f"{verb}Model",
        summary=summary,
        answer={_JSON: answers.Done},
        statuses=statuses,
        body={_JSON: ChangeRequest},
    )


def _of_model(suffix: str, id_: str, summary: str, answer: Any) -> tuple[_Operation, _Operation]:
    return (
        _get(MODEL + suffix, id_, summary, answer),
        _get(VERSION + suffix, f"{id_}OfVersion", summary, answer),
    )


def _infer(path: str, id_: str) -> _Operation:
    return _Operation(
        path=path,
        method="post",
        id=id_,
        summary="Run a model on tensors, in JSON or binary.",
        answer={_JSON: answers.InferenceResponse, _BINARY: _BYTES},
        statuses=_RUN,
        body={_JSON: RequestHead, _BINARY: _BYTES},
        needs_body=True,
        parameters=("JsonLength", "TimeoutMs", "ContentEncoding", "AcceptEncoding"),
        headers=(JSON_LENGTH_HEADER,),
    )


def _capture(
    method: str, id_: str, summary: str, statuses: tuple[int, ...], body: Any = None
) -> _Operation:
    is_frames = method != "delete"
    return _Operation(
        path=CAPTURE_PATH,
        method=method,
        id=id_,
        summary=summary,
        answer={_BINARY: _BYTES} if is_frames else {_JSON: answers.Done},
        statuses=(403, *statuses),
        body=None if body is None else {_JSON: body},
        headers=(STATE_HEADER,) if is_frames else (),
    )


_IMAGES: Json = {
    "type": "object",
    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    "required": ["image"],
}

_OPERATIONS: tuple[_Operation, ...] = (
    _get("/v2/health/live", "isLive", "Whether the agent answers.", answers.Live),
    _get("/v2/health/ready", "isReady", "Whether every model works.", answers.Ready),
    _get("/v2", "serverMetadata", "The agent and its extensions.", answers.ServerMetadata),
    *_of_model("", "modelMetadata", "A model's inputs and outputs.", answers.ModelMetadata),
    *_of_model("/ready", "isModelReady", "Whether a model works.", answers.ModelReady),
    *_of_model("/config", "modelConfig", "A model's Triton configuration.", answers.ModelConfig),
    *_of_model("/stats", "modelStatistics", "A model's counters.", answers.Statistics),
    _get("/v2/models/stats", "statistics", "The counters of all models.", answers.Statistics),
    _infer(f"{MODEL}/infer", "infer"),
    _infer(f"{VERSION}/infer", "inferOfVersion"),
    _Operation(
        path="/v2/repository/index",
        method="post",
        id="repositoryIndex",
        summary="The models that are served or could be.",
        answer={_JSON: tuple[answers.IndexEntry, ...]},
        statuses=(429,),
        body={_JSON: IndexRequest},
    ),
    _change("load", "Open a model, anew if it is open.", (404, 409, 429)),
    _change("unload", "Close a model when its last request is answered.", (404, 429)),
    _Operation(
        path="/predict/{MODEL_NAME}",
        method="post",
        id="predict",
        summary="Run a model on images or text.",
        answer={_JSON: (answers.Predictions, answers.Detections, answers.InferenceResponse)},
        statuses=(*_RUN, 409),
        body={
            "multipart/form-data": _IMAGES,
            "image/*": _BYTES,
            _JSON: TextRequest,
        },
        needs_body=True,
        parameters=("TimeoutMs", "AcceptEncoding"),
    ),
    _Operation(
        path="/v1/embeddings",
        method="post",
        id="embeddings",
        summary="The vectors of texts, as OpenAI's clients ask for them.",
        answer={_JSON: answers.Embeddings},
        statuses=(*_RUN, 409),
        body={_JSON: EmbeddingsRequest},
        needs_body=True,
        failure=answers.OpenAiFailure,
    ),
    _Operation(
        path="/v1/models",
        method="get",
        id="openAiModels",
        summary="The models, as OpenAI's clients list them.",
        answer={_JSON: answers.OpenAiModels},
        failure=answers.OpenAiFailure,
    ),
    _Operation(
        path="/v1/models/{MODEL_NAME}",
        method="get",
        id="openAiModel",
        summary="One model, as OpenAI's clients list it.",
        answer={_JSON: answers.OpenAiModel},
        statuses=(404,),
        failure=answers.OpenAiFailure,
    ),
    _capture("post", "beginCapture", "Record requests; gives the head of a file.", (409,), Wish),
    _capture("get", "fetchCapture", "What the file holds next; its end when it is over.", (404,)),
    _capture("delete", "endCapture", "Record no more; what is held can be fetched.", (404,)),
    _get("/telemetry", "telemetry", "What is served, why, how fast, and on what.", Report),
    _Operation(
        path="/metrics",
        method="get",
        id="metrics",
        summary="Everything that Prometheus collects.",
        answer={METRICS_CONTENT_TYPE.partition(";")[0]: {"type": "string"}},
    ),
    _get(OPENAPI_PATH, "openApi", "This document.", {"type": "object"}),
)

_PARAMETERS: Json = {
    "MODEL_NAME": {
        "name": "MODEL_NAME",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
    },
    "MODEL_VERSION": {
        "name": "MODEL_VERSION",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
    },
    "JsonLength": {
        "name": JSON_LENGTH_HEADER,
        "in": "header",
        "description": "Bytes of the JSON part; raw tensors follow it. 0: the body is one tensor.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "TimeoutMs": {
        "name": "Edge-Timeout-Ms",
        "in": "header",
        "description": "Milliseconds that the client waits at most.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "ContentEncoding": {
        "name": "Content-Encoding",
        "in": "header",
        "schema": {"enum": ["gzip", "deflate", "identity"]},
    },
    "AcceptEncoding": {
        "name": "Accept-Encoding",
        "in": "header",
        "schema": {"type": "string"},
    },
}
_HEADERS: Json = {
    JSON_LENGTH_HEADER: {
        "description": "Bytes of the JSON part; absent if no tensor follows it.",
        "schema": {"type": "integer", "minimum": 1},
    },
    STATE_HEADER: {
        "description": "Whether more will come.",
        "schema": {"enum": ["recording", "over"]},
    },
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 0}},
}


def document() -> Json:
    """Return the OpenAPI 3.1 document."""
    types = _types()
    schemas, components = msgspec.json.schema_components(types, ref_template=_SCHEMA)
    schema_of = dict(zip(types, schemas, strict=True))
    _describe_tensors(components)
    paths: Json = {}
    for operation in _OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Edge Kit agent",
            "version": __version__,
            "description": "Open Inference Protocol v2 with Triton's extensions, and what makes "
            "the agent easy to use and to watch. A path may end with a slash.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": _failures(schema_of),
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
        },
    }


@functools.cache
def encoded() -> bytes:
    """Return the document's JSON."""
    return msgspec.json.format(msgspec.json.encode(document()), indent=1) + b"\n"


def _types() -> list[Any]:
    found: dict[Any, None] = {}
    for operation in _OPERATIONS:
        for kind in (*operation.answer.values(), *(operation.body or {}).values()):
            if not isinstance(kind, dict):
                found |= dict.fromkeys(kind if isinstance(kind, tuple) else (kind,))
        found[operation.failure] = None
    return list(found)


def _schema(kind: Any, schema_of: dict[Any, Json]) -> Json:
    if isinstance(kind, tuple):
        return {"anyOf": [schema_of[one] for one in kind]}
    return kind if isinstance(kind, dict) else schema_of[kind]


def _described(operation: _Operation, schema_of: dict[Any, Json]) -> Json:
    def content(kinds: dict[str, Any]) -> Json:
        return {media: {"schema": _schema(kind, schema_of)} for media, kind in kinds.items()}

    named = [name for name in ("MODEL_NAME", "MODEL_VERSION") if f"{{{name}}}" in operation.path]
    success: Json = {"description": "Done.", "content": content(operation.answer)}
    if operation.headers:
        success["headers"] = {
            name: {"$ref": f"#/components/headers/{name}"} for name in operation.headers
        }
    responses: Json = {"200": success}
    for status in sorted({*_ALWAYS, *operation.statuses}):
        responses[str(status)] = {
            "$ref": f"#/components/responses/{operation.failure.__name__}{status}"
        }
    described: Json = {
        "operationId": operation.id,
        "summary": operation.summary,
        "responses": responses,
    }
    names = (*named, *operation.parameters)
    if names:
        described["parameters"] = [{"$ref": f"#/components/parameters/{name}"} for name in names]
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.needs_body,
            "content": content(operation.body),
        }
    return described


def _failures(schema_of: dict[Any, Json]) -> Json:
    """Return the answers that are not 200, by the type of the error and its status."""
    failures: Json = {}
    for kind in dict.fromkeys(operation.failure for operation in _OPERATIONS):
        shapes = kind if kind is answers.Failure else (answers.Failure, kind)
        for status, meaning in _MEANING.items():
            failures[f"{kind.__name__}{status}"] = failure = {
                "description": meaning,
                "content": {_JSON: {"schema": _schema(shapes, schema_of)}},
            }
            if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
                failure["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return failures


def _describe_tensors(components: Json) -> None:
    """Say of a request's inputs what their types cannot: data is read when the model is known."""
    tensor = components["RequestInput"]["properties"]
    tensor["datatype"] = {"enum": list(get_args(Datatype))}
    value = {"type": ["number", "string", "boolean", "array"]}
    tensor["data"] = {
        "description": "Values, row-major, flat or nested as the shape; text for BYTES.",
        "type": "array",
        "items": value,
    }
