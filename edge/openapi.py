"""The OpenAPI document of everything that the agent answers, made of the types that it uses.

It is the same for every bundle: `GET /openapi.json` serves it, docs/openapi.json holds it, and
tests compare its paths with those that are served.
"""

from __future__ import annotations

import functools
from http import HTTPStatus
from typing import Any, get_args

import msgspec

from edge import __version__
from edge import openapi_answers as answers
from edge.capture.capture_file import STATE_HEADER
from edge.oip import JSON_LENGTH_HEADER
from edge.openapi_operations import JSON, OPERATIONS, Json, Operation
from edge.routes import TEST_HEADER
from edge.spec import Datatype

_SCHEMA = "#/components/schemas/{name}"

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
    "Test": {
        "name": TEST_HEADER,
        "in": "header",
        "description": "Of a request that only tries the model: it is not compared for drift.",
        "schema": {"type": "string"},
    },
    "ContentEncoding": {
        "name": "Content-Encoding",
        "in": "header",
        "schema": {"enum": ["gzip", "deflate", "identity"]},
    },
    "Since": {
        "name": "since",
        "in": "query",
        "description": "Unix time; only later points are given.",
        "schema": {"type": "number", "minimum": 0, "maximum": 1e12},
    },
    "Seconds": {
        "name": "seconds",
        "in": "query",
        "description": "How far to look back from the newest point.",
        "schema": {"type": "number", "minimum": 1, "maximum": 1e12},
    },
    "Points": {
        "name": "points",
        "in": "query",
        "description": "At most so many points; neighbours are averaged.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 8640},
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
    for operation in OPERATIONS:
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
    for operation in OPERATIONS:
        for kind in (*operation.answer.values(), *(operation.body or {}).values()):
            if not isinstance(kind, dict):
                found |= dict.fromkeys(kind if isinstance(kind, tuple) else (kind,))
        found[operation.failure] = None
    return list(found)


def _schema(kind: Any, schema_of: dict[Any, Json]) -> Json:
    if isinstance(kind, tuple):
        return {"anyOf": [schema_of[one] for one in kind]}
    return kind if isinstance(kind, dict) else schema_of[kind]


def _described(operation: Operation, schema_of: dict[Any, Json]) -> Json:
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
    for kind in dict.fromkeys(operation.failure for operation in OPERATIONS):
        shapes = kind if kind is answers.Failure else (answers.Failure, kind)
        for status, meaning in _MEANING.items():
            failures[f"{kind.__name__}{status}"] = failure = {
                "description": meaning,
                "content": {JSON: {"schema": _schema(shapes, schema_of)}},
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
