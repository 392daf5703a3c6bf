"""The OpenAPI document says what is served: paths, methods, and the form of real answers."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import numpy as np
import pytest
from flask import Flask

from edge import openapi, openapi_answers
from edge.agent import Agent
from edge.api import create_app
from edge.bundle import Bundle
from edge.http_answer import STATUS_FROM_CODE
from edge.routes import Route
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
    """An agent with a model of tensors, an encoder and a detector."""
    manifest, files = affine_parts()
    others = (encoder_parts(), detector_parts(("cat", "dog")))
    models = (*manifest.models, *(m for other, _ in others for m in other.models))
    for _, more in others:
        files |= more
    config = make_config(
        tmp_path_factory.mktemp("agent"), (replace(manifest, models=models), files)
    )
    with running_agent(config) as running:
        yield running


def ask(agent: Agent, method: str, path: str, content: object = None) -> bytes:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"{agent.url}{path}", body, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def documented() -> set[tuple[str, str]]:
    return {(path, method) for path, item in PATHS.items() for method in item}


def is_run(path: str) -> bool:
    """Whether a path is answered by running a model, and so is none of Flask's."""
    return Route.of(re.sub(r"{\w+}", "m", path)) is not None


def test_every_rule_of_the_application_is_described_and_nothing_else_is(app: Flask) -> None:
    served = set()
    for rule in app.url_map.iter_rules():
        path = rule.rule.replace("<name>", "{MODEL_NAME}").replace("<version>", "{MODEL_VERSION}")
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            served.add((path.rstrip("/"), method.lower()))
    described = {(path, method) for path, method in documented() if not is_run(path)}
    assert served == described


def test_every_path_that_runs_a_model_is_described() -> None:
    described = {path for path in PATHS if is_run(path)}
    assert described == {
        f"{openapi.MODEL}/infer",
        f"{openapi.VERSION}/infer",
        "/predict/{MODEL_NAME}",
        "/v1/embeddings",
    }
    assert all(set(PATHS[path]) == {"post"} for path in described)


def test_every_path_of_the_protocol_is_described() -> None:
    text = (REPOSITORY / "tests/data/open_inference_rest.yaml").read_text(encoding="utf-8")
    paths = re.findall(r"^  '?(/v2[^':]*)'?:$", text, re.M)
    assert len(paths) == 6
    assert {path.rstrip("/") for path in paths} <= set(PATHS)


def test_every_status_of_an_error_is_described_where_models_run() -> None:
    for path in (f"{openapi.MODEL}/infer", "/predict/{MODEL_NAME}"):
        found = set(PATHS[path]["post"]["responses"])
        changing = {"409"}  # of models that are loaded
        assert {str(status) for status in STATUS_FROM_CODE.values()} - changing <= found
        assert {"200", "408", "431", "500"} <= found
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
