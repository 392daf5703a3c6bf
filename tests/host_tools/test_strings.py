"""A model of strings from its file to the answers that an unmodified tritonclient reads."""

from __future__ import annotations

import contextlib
import gzip
import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from calibration.lint import lint
from calibration.model_file import load_model
from edge.agent import Agent
from edge.config import AgentConfig
from edge.errors import BuildError, ModelError
from edge.http_client import AgentClient
from edge.oip_client import infer
from edge.spec import Profile, TensorSpec
from edge.trt_session import TrtSession
from host_tools.build import BuildOptions, build_engines
from host_tools.errors import ExportError
from host_tools.export import ExportRequest, export_model
from host_tools.keys import generate_keys
from host_tools.pack import PackRequest, pack
from tests.agents import running_agent
from tests.models import WORDS, save, text_model

CALLERS = 8
SENT = [["dog"], ["a,b"], ['nobody\'s "word"\0'], ["grün"]]
FOLLOWING = {word: WORDS[(place + 1) % len(WORDS)] for place, word in enumerate(WORDS)}


def expected(rows: list[list[str]]) -> dict[str, list]:
    return {
        "same": [[word.encode()] for [word] in rows],
        "number": [[WORDS.index(word) if word in WORDS else -1] for [word] in rows],
        "next": [[FOLLOWING.get(word, "?").encode()] for [word] in rows],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with words.onnx and a signed bundle, made as a user makes them."""
    path = tmp_path_factory.mktemp("words")
    source = save(text_model(), path / "source.onnx")
    request = ExportRequest(
        source=str(source), out=path / "words.onnx", shapes=("text=1x1:1x1:8x1",)
    )
    export_model(request, say=lambda _: None)
    np.savez(path / "golden.npz", text=np.array([[w] for w in (*WORDS, "else", "x")]))
    private, _ = generate_keys("release", path / "keys")
    lines: list[str] = []
    pack(
        PackRequest(
            out=path / "bundle", name="words", version="1", fp32=path / "words.onnx",
            golden=path / "golden.npz", key=private, threads=1,
        ),
        say=lines.append,
    )  # fmt: skip
    assert any("may run together" in line for line in lines)
    return path


@pytest.fixture(scope="module")
def agent(folder: Path) -> Iterator[Agent]:
    config = AgentConfig(
        bundle=folder / "bundle", trusted_keys=folder / "keys", port=0, intra_op_threads=1,
        cache=folder / "cache",
    )  # fmt: skip
    with running_agent(config) as running:
        yield running


@pytest.fixture
def client(agent: Agent) -> Iterator[triton.InferenceServerClient]:
    with contextlib.closing(connected(agent)) as opened:
        yield opened


def connected(agent: Agent) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(agent.url.removeprefix("http://"))


def text_input(rows: list[list[Any]], *, binary: bool) -> triton.InferInput:
    array = np.array(rows, dtype=np.object_)
    tensor = triton.InferInput("text", list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def post(agent: Agent, body: bytes, **headers: str) -> tuple[dict, bytes]:
    request = urllib.request.Request(
        f"{agent.url}/v2/models/words/infer",
        body,
        {k.replace("_", "-"): v for k, v in headers.items()},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(answer.headers), answer.read()


def test_metadata_and_config_say_strings(client: triton.InferenceServerClient) -> None:
    assert client.get_model_metadata("words")["inputs"] == [
        {"name": "text", "datatype": "BYTES", "shape": [-1, 1]}
    ]
    config = client.get_model_config("words")
    assert config["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": [1]}]
    kinds = [output["data_type"] for output in config["output"]]
    assert kinds == ["TYPE_STRING", "TYPE_INT64", "TYPE_STRING"]


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_out", [False, True, None])
@pytest.mark.parametrize("binary_in", [False, True])
def test_tritonclient_reads_back_what_it_sent(
    client: triton.InferenceServerClient,
    binary_in: bool,
    binary_out: bool | None,
    compression: str | None,
) -> None:
    wanted = None
    if binary_out is not None:
        wanted = [triton.InferRequestedOutput(name, binary_out) for name in expected(SENT)]
    result = client.infer(
        "words",
        [text_input(SENT, binary=binary_in)],
        outputs=wanted,
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    for name, rows in expected(SENT).items():
        got = result.as_numpy(name).tolist()
        # What came as JSON text, tritonclient leaves as text.
        assert [[v.encode() if isinstance(v, str) else v for v in row] for row in got] == rows


def test_arrays_of_bytes_are_strings_too(client: triton.InferenceServerClient) -> None:
    rows = [[word.encode()] for [word] in SENT]
    result = client.infer("words", [text_input(rows, binary=True)])
    assert result.as_numpy("same").tolist() == rows


def test_requests_of_many_callers_are_joined_and_each_gets_its_own(agent: Agent) -> None:
    def ask(caller: int) -> None:
        # A client of its own: greenlets, of which it is made, belong to a thread.
        with contextlib.closing(connected(agent)) as client:
            for number in range(caller, 64, CALLERS):
                rows = [[WORDS[(number + place) % 4]] for place in range(1 + number % 3)]
                result = client.infer("words", [text_input(rows, binary=number % 2 == 0)])
                for name, values in expected(rows).items():
                    assert result.as_numpy(name).tolist() == values

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(ask, range(CALLERS)))


def test_the_whole_body_may_be_one_string(agent: Agent) -> None:
    headers, body = post(agent, "grün".encode(), Inference_Header_Content_Length="0")
    tail = body[int(headers["Inference-Header-Content-Length"]) :]
    assert tail == b"\x05\0\0\0" + "grün".encode() + (2).to_bytes(8, "little") + b"\x03\0\0\0a,b"


def test_curl_sends_strings_as_json_packed_with_gzip(agent: Agent) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["cat", "a,b"]}
    body = gzip.compress(json.dumps({"inputs": [tensor]}).encode())
    outputs = json.loads(post(agent, body, Content_Encoding="gzip")[1])["outputs"]
    assert [output["data"] for output in outputs] == [["cat", "a,b"], [0, 3], ["dog", "cat"]]


def test_what_is_no_text_is_a_400_that_says_so(client: triton.InferenceServerClient) -> None:
    tensor = text_input([[b"cat"], [b"\xff\xfe"]], binary=True)
    with pytest.raises(InferenceServerException, match="'text': an element is no UTF-8") as caught:
        client.infer("words", [tensor])
    assert caught.value.status() == "400"
    # Nobody else is harmed, and the model stays ready.
    assert client.is_model_ready("words")


def test_our_own_client_speaks_strings(agent: Agent) -> None:
    with contextlib.closing(AgentClient(agent.url)) as own:
        text = np.array([[b"cat"], [b"dog"]], object)
        outputs = infer(own, "words", {"text": text})
    assert {name: array.tolist() for name, array in outputs.items()} == expected([["cat"], ["dog"]])


def test_tensorrt_is_refused_wherever_it_could_be_asked_for(folder: Path) -> None:
    model = folder / "words.onnx"
    found = [finding.message for finding in lint(load_model(model), "rtx")]
    assert any("'text' holds strings, which TensorRT does not have" in line for line in found)
    options = BuildOptions(
        model=model, targets=("rtx-4060",), precisions=("fp32",), out=folder / "engines"
    )
    with pytest.raises(BuildError, match="'text' is BYTES, and TensorRT has no strings"):
        build_engines(options, say=lambda _: None)
    assert not (folder / "engines").exists()
    request = ExportRequest(source=str(model), out=folder / "for_jetson.onnx", target="jetpack6")
    with pytest.raises(ExportError, match="has no strings; export without --target"):
        export_model(request, say=lambda _: None)
    spec = TensorSpec(name="text", datatype="BYTES", shape=(1, 1))
    with pytest.raises(ModelError, match="'text' is BYTES, and TensorRT has no strings"):
        TrtSession.open(
            b"",  # type: ignore[arg-type]
            library=None,  # type: ignore[arg-type]
            inputs=(spec,),
            outputs=(),
            profile=Profile(ranges={}),
        )
