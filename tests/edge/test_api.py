import gzip
import json
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from werkzeug.test import Client

from edge import __version__
from edge.serving import Serving
from edge.worker import Worker
from tests.edge.api_clients import (
    GOOD,
    INFER,
    MAX_BODY_BYTES,
    X,
    affine_serving,
    asking,
    error_of,
    good,
    loading,
    make_app,
)
from tests.fakes import FakeSession, Gate
from tests.models import affine


@pytest.fixture
def serving() -> Serving:
    return affine_serving()


@pytest.fixture
def load(serving: Serving) -> Iterator[Callable[..., Worker]]:
    with loading(serving) as load:
        yield load


@pytest.fixture
def ask(serving: Serving) -> Iterator[Callable[..., Client]]:
    with asking(serving) as ask:
        yield ask


@pytest.fixture
def client(load: Callable[..., Worker], ask: Callable[..., Client]) -> Client:
    load(FakeSession())
    return ask()


def test_health(client: Client) -> None:
    for path, body in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/affine/ready", {"name": "affine", "ready": True}),
        ("/v2/models/affine/versions/1/ready", {"name": "affine", "ready": True}),
    ):
        response = client.get(path)
        assert response.status_code == 200
        assert response.content_type == "application/json"
        assert response.get_json() == body


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata(client: Client, path: str) -> None:
    assert client.get(path).get_json() == {
        "name": "edge-agent",
        "version": __version__,
        "extensions": [
            "binary_tensor_data",
            "model_configuration",
            "model_repository",
            "statistics",
        ],
    }


@pytest.mark.parametrize("path", ["/v2/models/affine", "/v2/models/affine/versions/1"])
def test_model_metadata(client: Client, path: str) -> None:
    assert client.get(path).get_json() == {
        "name": "affine",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "s", "datatype": "FP32", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("path", [INFER, "/v2/models/affine/versions/1/infer"])
def test_json_inference(client: Client, path: str) -> None:
    response = client.post(path, json={**GOOD, "id": "7"})
    assert response.status_code == 200
    body = response.get_json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("affine", "1", "7")
    got = {output["name"]: output["data"] for output in body["outputs"]}
    expected = affine(X)
    assert got == {"y": expected["y"].ravel().tolist(), "s": expected["s"].tolist()}


def test_a_content_type_is_not_required(client: Client) -> None:
    assert client.post(INFER, data=json.dumps(GOOD)).status_code == 200


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (good(datatype="FP64"), "datatype is FP64, the model takes FP32"),
        (good(shape=[4], data=[1, 2, 3, 4]), "rank 1"),
        (good(shape=[1, 5], data=[1, 2, 3, 4, 5]), "axis 1"),
        (good(shape=[9, 4], data=[0] * 36), "accepts 1..8"),
        (good(shape=[2, 4]), "needs 8 values"),
        (good(name="z"), "'z' is unknown"),
        ('{"inputs": []}', "'x' is missing"),
        (good().replace("1.0", "NaN"), "NaN"),
        (good().replace("1.0", "-Infinity"), "Infinity"),
        (good(data=0).replace(": 0", ": " + "[" * 1500 + "]" * 1500), "nested too deeply"),
        (good()[:-10], "truncated"),
        ("", "truncated"),
        ("\x00\xff", "malformed"),
    ],
)
def test_a_bad_request_is_a_400_with_its_reason(client: Client, body: str, problem: str) -> None:
    assert problem in error_of(client.post(INFER, data=body), 400)


@pytest.mark.parametrize("value", ["abc", "-5", "999999"])
def test_a_bad_json_length_is_a_400(client: Client, value: str) -> None:
    headers = {"Inference-Header-Content-Length": value}
    assert "Inference-Header-Content-Length" in error_of(
        client.post(INFER, data=good(), headers=headers), 400
    )


@pytest.mark.parametrize("encoding", ["br", "gzip, identity", "zstd"])
def test_an_unknown_encoding_is_a_415(client: Client, encoding: str) -> None:
    response = client.post(INFER, data=good(), headers={"Content-Encoding": encoding})
    assert "send gzip, deflate" in error_of(response, 415)


def compressed(content: bytes, encoding: str) -> bytes:
    return gzip.compress(content) if encoding == "gzip" else zlib.compress(content)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies_are_read_up_to_the_cap_of_what_they_hold(
    client: Client, encoding: str
) -> None:
    headers = {"Content-Encoding": encoding}
    whole = compressed(good().encode(), encoding)
    response = client.post(INFER, data=whole, headers=headers)
    assert response.get_json()["outputs"][0]["data"] == affine(X)["y"].ravel().tolist()
    bomb = compressed(b" " * 100_000_000, encoding)[:MAX_BODY_BYTES]
    assert "4096 bytes" in error_of(client.post(INFER, data=bomb, headers=headers), 413)
    for bad in (whole[:-3], whole + b"x", b"hello", b""):
        error_of(client.post(INFER, data=bad, headers=headers), 400)


@pytest.mark.parametrize(
    ("accepted", "kind"), [("gzip, deflate", "gzip"), ("deflate;q=1", "deflate")]
)
def test_an_answer_is_compressed_for_who_asks_if_it_is_long(
    client: Client, accepted: str, kind: str
) -> None:
    short = client.post(INFER, json=GOOD, headers={"Accept-Encoding": accepted})
    assert "Content-Encoding" not in short.headers
    rows = np.tile(X, (8, 1))
    tensor = {"name": "x", "shape": [8, 4], "datatype": "FP32", "data": rows.ravel().tolist()}
    body = {"inputs": [tensor], "id": "i" * 1024}
    response = client.post(INFER, json=body, headers={"Accept-Encoding": accepted})
    assert response.headers["Content-Encoding"] == kind
    unpack = gzip.decompress if kind == "gzip" else zlib.decompress
    assert json.loads(unpack(response.data))["id"] == "i" * 1024


def test_a_body_without_json_is_a_row(client: Client) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    response = client.post(INFER, data=X.tobytes(), headers=headers)
    length = int(response.headers["Inference-Header-Content-Length"])
    np.testing.assert_array_equal(
        np.frombuffer(response.data[length:], np.float32)[:4], affine(X)["y"].ravel()
    )


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5", "9" * 20])
def test_a_bad_time_limit_is_a_400(client: Client, value: str) -> None:
    response = client.post(INFER, json=GOOD, headers={"Edge-Timeout-Ms": value})
    assert "Edge-Timeout-Ms" in error_of(response, 400)


@pytest.mark.parametrize("how", ["header", "parameter"])
def test_a_client_may_give_a_shorter_time_limit(
    ask: Callable[..., Client], load: Callable[..., Worker], how: str
) -> None:
    gate = Gate()
    load(FakeSession(before_run=gate))
    client = ask()
    headers = {"Edge-Timeout-Ms": "20"} if how == "header" else {}
    body = {**GOOD, "parameters": {"timeout": 20_000} if how == "parameter" else {}}
    assert "time limit" in error_of(client.post(INFER, json=body, headers=headers), 504)
    gate.open()


def test_statistics_count_rows_runs_and_failures(client: Client) -> None:
    assert client.post(INFER, json=GOOD).status_code == 200
    assert client.post(INFER, json=GOOD).status_code == 200
    assert client.post(INFER, data=b"{").status_code == 400
    for path in (
        "/v2/models/affine/stats",
        "/v2/models/affine/versions/1/stats",
        "/v2/models/stats",
    ):
        (stats,) = client.get(path).get_json()["model_stats"]
        assert (stats["name"], stats["version"]) == ("affine", "1")
        assert stats["inference_count"] == 2
        counts = {name: entry["count"] for name, entry in stats["inference_stats"].items()}
        assert (counts["success"], counts["fail"], counts["queue"]) == (2, 1, 2)
        assert stats["inference_stats"]["success"]["ns"] > 0


def test_the_index_says_which_models_can_answer(client: Client, serving: Serving) -> None:
    ready = [{"name": "affine", "version": "1", "state": "READY", "reason": ""}]
    assert client.post("/v2/repository/index").get_json() == ready
    serving.phase = "stopping"
    (entry,) = client.post("/v2/repository/index", json={}).get_json()
    assert (entry["state"], "stopping" in entry["reason"]) == ("UNAVAILABLE", True)
    assert client.post("/v2/repository/index", json={"ready": True}).get_json() == []
    assert "ready" in error_of(client.post("/v2/repository/index", data=b"[]"), 400)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/nope"),
        ("GET", "/v2/models/nope/ready"),
        ("POST", "/v2/models/nope/infer"),
        ("GET", "/v2/models/affine/versions/2"),
        ("POST", "/v2/models/affine/versions/2/infer"),
        ("GET", "/index.html"),
        ("GET", "/v2/nope"),
        ("GET", "/v3"),
        ("GET", "/v2//health/live"),
        ("GET", "/v2/models/"),
        ("GET", "/static/x"),
        ("GET", "/v2/models/affine/versions/1/infer/extra"),
        ("POST", "/v2/models/%2e%2e/infer"),
        ("GET", "/v2/models/a%2fb"),
    ],
)
def test_what_does_not_exist_is_a_404(client: Client, method: str, path: str) -> None:
    error_of(client.open(path, method=method), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", INFER),
        ("PUT", INFER),
        ("DELETE", INFER),
        ("OPTIONS", INFER),
        ("POST", "/v2/health/live"),
        ("POST", "/v2"),
        ("POST", "/metrics"),
        ("DELETE", "/telemetry"),
        ("BREW", "/v2/health/ready"),
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_one(
    client: Client, method: str, path: str
) -> None:
    response = client.open(path, method=method)
    assert method in error_of(response, 405)
    assert response.headers["Allow"] in {"POST", "GET, HEAD"}


def test_metrics_and_telemetry_count_every_outcome(client: Client) -> None:
    for body in (good(), good(), good(name="z")):
        client.post(INFER, data=body)
    text = client.get("/metrics").text
    assert 'edge_inference_requests_total{model="affine",outcome="ok"} 2.0' in text
    assert 'edge_inference_requests_total{model="affine",outcome="input"} 1.0' in text
    model = client.get("/telemetry").get_json()["models"][0]
    assert model["requests"] == {"ok": 2, "input": 1}
    assert model["latency"]["requests"] == 2
    stages = model["latency"]["stages"]
    assert set(stages) == {"queue", "compute", "total"}
    assert stages["total"]["p50_ms"] >= stages["compute"]["p50_ms"] >= 0


def test_every_route_answers_an_error_as_json(client: Client, serving: Serving) -> None:
    rules = list(make_app(serving).url_map.iter_rules())
    assert len(rules) > 10
    for rule in rules:
        error_of(client.open(rule.rule.replace("<", "").replace(">", ""), method="PATCH"), 405)
