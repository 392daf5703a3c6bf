"""An unmodified tritonclient against the real server: the protocol as others speak it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from edge.agent import Agent
from tests.agents import make_config, running_agent
from tests.models import affine

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    path: Path = tmp_path_factory.mktemp("agent")
    with running_agent(make_config(path, max_body_bytes=100_000)) as running:
        yield running


@pytest.fixture
def client(agent: Agent) -> Iterator[triton.InferenceServerClient]:
    with contextlib.closing(
        triton.InferenceServerClient(agent.url.removeprefix("http://"))
    ) as opened:
        yield opened


def input_of(array: np.ndarray, *, binary: bool, datatype: str = "FP32") -> triton.InferInput:
    tensor = triton.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def test_live_ready_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("affine")
    assert client.is_model_ready("affine", "1")
    assert not client.is_model_ready("absent")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("affine")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True, None])
def test_inference_in_json_and_binary(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None
) -> None:
    wanted = None  # then tritonclient asks for everything in binary
    if binary_out is not None:
        wanted = [triton.InferRequestedOutput(name, binary_out) for name in ("s", "y")]
    result = client.infer(
        "affine", [input_of(X, binary=binary_in)], outputs=wanted, request_id="r1"
    )
    assert result.get_response()["id"] == "r1"
    for name, expected in affine(X).items():
        got = result.as_numpy(name)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    ("array", "datatype", "problem"),
    [
        (np.zeros((1, 5), np.float32), "FP32", "shape [1, 5] has 5 on axis 1, the model accepts 4"),
        (np.zeros(4, np.float32), "FP32", "got rank 1 (shape [4]), the model takes rank 2"),
        (np.zeros((9, 4), np.float32), "FP32", "the model accepts 1..8"),
        (np.zeros((1, 4), np.float64), "FP64", "datatype is FP64, the model takes FP32"),
    ],
)
def test_the_error_text_of_wrong_feeds_reaches_the_user(
    client: triton.InferenceServerClient,
    array: np.ndarray,
    datatype: str,
    problem: str,
    binary: bool,
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("affine", [input_of(array, binary=binary, datatype=datatype)])
    assert caught.value.status() == "400"
    assert problem in caught.value.message()


def test_an_unknown_model_is_a_404(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="'absent' is unknown") as caught:
        client.infer("absent", [input_of(X, binary=True)])
    assert caught.value.status() == "404"


def test_a_path_that_is_not_served_is_a_404(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="there is nothing at") as caught:
        client.get_trace_settings()
    assert caught.value.status() == "404"


def test_a_missing_input_is_a_400(client: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("other", [1, 4], "FP32")
    tensor.set_data_from_numpy(X[:1])
    with pytest.raises(InferenceServerException, match="'other' is unknown; the model takes 'x'"):
        client.infer("affine", [tensor])


def test_a_body_over_the_cap_is_a_413(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="exceeds 100000 bytes") as caught:
        client.infer("affine", [input_of(np.zeros((10_000, 4), np.float32), binary=True)])
    assert caught.value.status() == "413"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_requests_and_answers_may_be_compressed(
    client: triton.InferenceServerClient, algorithm: str
) -> None:
    result = client.infer(
        "affine",
        [input_of(X, binary=True)],
        request_id="r" * 1024,
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), affine(X)["y"])


def test_configuration_statistics_and_index_are_what_triton_gives(
    client: triton.InferenceServerClient,
) -> None:
    config = client.get_model_config("affine")
    assert (config["name"], config["max_batch_size"]) == ("affine", 8)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    assert config["output"][1] == {"name": "s", "data_type": "TYPE_FP32", "dims": []}
    assert (config["backend"], config["platform"]) == ("onnxruntime", "onnx_onnxv1")
    before = client.get_inference_statistics("affine")["model_stats"][0]["inference_count"]
    client.infer("affine", [input_of(X, binary=True)], priority=1, timeout=5_000_000)
    after = client.get_inference_statistics("affine")["model_stats"][0]
    assert after["inference_count"] == before + len(X)
    runs = sum(entry["compute_infer"]["count"] for entry in after["batch_stats"])
    assert runs == after["execution_count"] > 0
    assert client.get_model_repository_index() == [
        {"name": "affine", "version": "1", "state": "READY", "reason": ""}
    ]


def test_a_truncated_binary_tensor_is_a_400(client: triton.InferenceServerClient) -> None:
    body, length = triton.InferenceServerClient.generate_request_body([input_of(X, binary=True)])
    response = client._post(
        "v2/models/affine/infer",
        body[:-5],
        {"Inference-Header-Content-Length": str(length)},
        None,
    )
    assert response.status_code == 400
    assert b"the body ends after 43 bytes" in response.read()
