"""The OpenAPI document says what is served: paths, methods, and the form of real answers."""

from __future__ import annotations

import ast
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import numpy as np
import pytest
from flask import Flask

from edge import openapi, openapi_answers, openapi_operations, routes
from edge.agent import Agent
from edge.api import create_app
from edge.bundle import Bundle
from edge.capture.capture_file import CAPTURE_PATH, STATE_HEADER
from edge.http_answer import STATUS_FROM_CODE
from edge.serving import Serving
from edge.telemetry import Report
from tests.agents import make_config, running_agent
from tests.bundles import affine_parts
from tests.detectors import SIDE, detector_parts, photo
from tests.encoders import encoder_parts

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = openapi.document()
PATHS = DOCUMENT["paths"]
X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
INFER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": X.ravel().tolist()}]}

NAMED = {**INFER, "id": "a"}
EMBED = {"model": "encoder", "input": ["cat", "dog"]}


@pytest.fixture(scope="module")
def app() -> Flask:
    manifest, _ = affine_parts()
    bundle = Bundle(root=Path(), manifest=manifest, signed_by=None)
    serving = Serving(bundle, started=0.0, allow_unsigned=True)
    return create_app(serving, None, max_body_bytes=1024, clock=lambda: 0.0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with a model of tensors, an encoder and a detector, that may record."""
    manifest, files = affine_parts()
    others = (encoder_parts(), detector_parts(("cat", "dog")))
    models = (*manifest.models, *(m for other, _ in others for m in other.models))
    for _, more in others:
        files |= more
    parts = (replace(manifest, models=models), files)
    config = make_config(tmp_path_factory.mktemp("agent"), parts, allow_capture=True)
    with running_agent(config) as running:
        yield running


def ask(agent: Agent, method: str, path: str, content: object = None) -> bytes:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"{agent.url}{path}", body, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def template(path: str) -> str:
    """Return a rule of Flask's, or a pattern of `routes`, as the document writes paths."""
    path = path.replace("(?:", "").replace(")?/", "/").removesuffix("/?")
    path = re.sub(r"<name>|(?<!versions/)\([^()]*\)", "{MODEL_NAME}", path)
    return re.sub(r"<version>|\([^()]*\)", "{MODEL_VERSION}", path).rstrip("/")


def literals() -> set[str]:
    """Return every string in the source of edge/ that may be a path, but for the document's own."""
    found = set()
    for module in (REPOSITORY / "edge").rglob("*.py"):
        if not module.name.startswith("openapi"):
            tree = ast.parse(module.read_text(encoding="utf-8"))
            found |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return {text for text in found if isinstance(text, str) and re.fullmatch(r"/[\w./-]*", text)}


def allowed(agent: Agent, path: str) -> set[str] | None:
    """Return the methods that the agent takes at a path; None if there is nothing."""
    request = urllib.request.Request(f"{agent.url}{path}", method="PATCH")
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=10)
    with raised.value as answer:
        if answer.status == 404:
            return None
        assert answer.status == 405
        return set(answer.headers["Allow"].split(", ")) - {"HEAD"}


@pytest.mark.parametrize("ending", ["", "/"])
def test_what_is_described_is_served_with_these_methods_and_no_others(
    agent: Agent, ending: str
) -> None:
    described = {path: {method.upper() for method in item} for path, item in PATHS.items()}
    path_of = {path: path.format(MODEL_NAME="encoder", MODEL_VERSION="1") for path in PATHS}
    assert {path: allowed(agent, path_of[path] + ending) for path in PATHS} == described


def test_what_is_served_is_described(agent: Agent, app: Flask) -> None:
    rules = {template(rule.rule) or "/" for rule in app.url_map.iter_rules()}
    patterns = {p.pattern for p in vars(routes).values() if isinstance(p, re.Pattern)}
    runs = {template(pattern) for pattern in patterns}
    served = {path.rstrip("/") or "/" for path in literals() if allowed(agent, path)}
    assert runs == {
        f"{openapi_operations.VERSION}/infer",
        "/predict/{MODEL_NAME}",
        "/v1/embeddings",
    }
    assert CAPTURE_PATH in served
    assert rules | runs | served <= set(PATHS)


def test_every_path_of_the_protocol_is_described() -> None:
    text = (REPOSITORY / "tests/data/open_inference_rest.yaml").read_text(encoding="utf-8")
    paths = re.findall(r"^  '?(/v2[^':]*)'?:$", text, re.M)
    assert len(paths) == 6
    assert {path.rstrip("/") for path in paths} <= set(PATHS)


def test_every_status_of_an_error_is_described_where_models_run() -> None:
    for path in (f"{openapi_operations.MODEL}/infer", "/predict/{MODEL_NAME}"):
        found = set(PATHS[path]["post"]["responses"])
        changing = {"409"}  # of models that are loaded
        assert {str(status) for status in STATUS_FROM_CODE.values()} - changing <= found
        assert {"200", "408", "431", "500"} <= found
    assert {"200", "403", "404"} <= set(PATHS[CAPTURE_PATH]["get"]["responses"])
    load = PATHS["/v2/repository/models/{MODEL_NAME}/load"]["post"]["responses"]
    assert {"409", "404", "429"} <= set(load)


def test_every_reference_of_the_document_leads_somewhere() -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "$ref":
                    yield value
                else:
                    yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(DOCUMENT))
    assert found
    for reference in found:
        node: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    # And nothing lies in the components that no one refers to.
    for kind, members in DOCUMENT["components"].items():
        unused = {f"#/components/{kind}/{name}" for name in members} - found
        allowed = {r for r in unused if kind == "responses"}
        assert unused == allowed, unused


def test_the_document_is_served_and_its_bytes_are_those_of_the_code(agent: Agent) -> None:
    assert ask(agent, "GET", "/openapi.json") == openapi.encoded()


@pytest.mark.parametrize(
    ("method", "path", "content", "kind"),
    [
        ("GET", "/v2/health/live", None, openapi_answers.Live),
        ("GET", "/v2/health/ready", None, openapi_answers.Ready),
        ("GET", "/v2", None, openapi_answers.ServerMetadata),
        ("GET", "/v2/models/affine", None, openapi_answers.ModelMetadata),
        ("GET", "/v2/models/affine/ready", None, openapi_answers.ModelReady),
        ("GET", "/v2/models/affine/config", None, openapi_answers.ModelConfig),
        ("POST", "/v2/models/affine/infer", INFER, openapi_answers.InferenceResponse),
        ("POST", "/v2/models/affine/versions/1/infer", NAMED, openapi_answers.InferenceResponse),
        ("GET", "/v2/models/affine/versions/1/stats", None, openapi_answers.Statistics),
        ("GET", "/v2/models/stats", None, openapi_answers.Statistics),
        ("POST", "/v2/repository/index", {}, tuple[openapi_answers.IndexEntry, ...]),
        ("GET", "/telemetry", None, Report),
        ("POST", "/predict/encoder", {"text": "cat"}, openapi_answers.InferenceResponse),
        ("POST", "/v1/embeddings", EMBED, openapi_answers.Embeddings),
        ("GET", "/v1/models", None, openapi_answers.OpenAiModels),
        ("GET", "/v1/models/encoder", None, openapi_answers.OpenAiModel),
    ],
)
def test_answers_have_the_fields_that_the_document_gives_them(
    agent: Agent, method: str, path: str, content: object, kind: type
) -> None:
    """Types of answers refuse fields they do not know, and miss none that they do."""
    body = ask(agent, method, path, content)
    msgspec.json.decode(body, type=kind)


def test_boxes_have_the_fields_that_the_document_gives_them(agent: Agent) -> None:
    content = photo([[0.2, 0.4, 0.6, 0.8, 0.0, 1.0]], (SIDE, SIDE))
    request = urllib.request.Request(f"{agent.url}/predict/detector", content)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found = msgspec.json.decode(answer.read(), type=openapi_answers.Detections)
    assert [len(boxes) for boxes in found.detections] == [1]


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_the_answer_to_a_change_of_models_is_described(tmp_path: Path, verb: str) -> None:
    with running_agent(make_config(tmp_path)) as agent:
        body = ask(agent, "POST", f"/v2/repository/models/affine/{verb}", {})
    msgspec.json.decode(body, type=openapi_answers.Done)


def test_the_answers_of_a_recording_are_described(agent: Agent) -> None:
    headers = DOCUMENT["components"]["headers"]
    states = headers[STATE_HEADER]["schema"]["enum"]
    for method, content, state in (
        ("post", {"seconds": 60}, "recording"),
        ("get", None, "recording"),
        ("delete", None, None),
        ("get", None, "over"),
    ):
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{agent.url}{CAPTURE_PATH}", body, method=method.upper())
        with urllib.request.urlopen(request, timeout=10) as answer:
            described = PATHS[CAPTURE_PATH][method]["responses"]["200"]
            assert {answer.headers["Content-Type"]} == set(described["content"])
            assert answer.headers[STATE_HEADER] == state
            assert (STATE_HEADER in described.get("headers", {})) == (state in states)
    assert set(DOCUMENT["components"]["schemas"]["Wish"]["properties"]) == {
        "seconds",
        "max_bytes",
        "share",
        "redact",
    }


def test_answers_are_the_types_of_the_document() -> None:
    structs = [
        kind
        for kind in vars(openapi_answers).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__name__[0] != "_"
    ]
    assert {kind.__name__ for kind in structs} <= set(DOCUMENT["components"]["schemas"])
    for kind in structs:
        fields = DOCUMENT["components"]["schemas"][kind.__name__]["properties"]
        assert set(fields) == set(get_type_hints(kind)) - {"__struct_fields__", "__struct_config__"}
