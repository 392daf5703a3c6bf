from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from edge.agent import Agent
from edge.errors import InferenceError, InputError, UnknownModelError
from edge.http_client import AgentClient
from edge.oip import JSON_LENGTH_HEADER
from edge.oip_client import infer, outputs_from_answer
from tests.agents import make_config, running_agent
from tests.models import affine


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running_agent(make_config(tmp_path_factory.mktemp("agent"))) as agent:
        yield agent


@pytest.mark.parametrize("model", ["affine", "affine/versions/1"])
def test_a_model_is_asked_by_name_or_version(agent: Agent, model: str) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with closing(AgentClient(agent.url)) as client:
        np.testing.assert_array_equal(infer(client, model, {"x": x})["y"], affine(x)["y"])


def test_a_refusal_is_an_error_with_the_words_of_the_agent(agent: Agent) -> None:
    x = np.zeros((1, 5), np.float32)
    with closing(AgentClient(agent.url)) as client:
        with pytest.raises(InferenceError, match=r"affine/infer answers 400: .*shape"):
            infer(client, "affine", {"x": x})
        with pytest.raises(UnknownModelError, match="answers 404"):
            infer(client, "other", {"x": x})


def answer(*outputs: dict[str, Any], tail: bytes = b"") -> tuple[dict[str, str], bytes]:
    head = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    return {JSON_LENGTH_HEADER.lower(): str(len(head))}, head + tail


def test_outputs_in_binary_and_json_are_read_from_one_answer() -> None:
    headers, body = answer(
        {"name": "n", "datatype": "INT16", "shape": [2], "parameters": {"binary_data_size": 4}},
        {"name": "j", "datatype": "FP32", "shape": [2, 1], "data": [[1], [2.5]]},
        {"name": "t", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 11}},
        tail=b"\x01\x00\xff\xff" + b"\x03\x00\x00\x00cat" + b"\x00\x00\x00\x00",
    )
    outputs = outputs_from_answer(headers, body)
    assert outputs is not None
    assert {name: (a.dtype.str, a.tolist()) for name, a in outputs.items()} == {
        "n": ("<i2", [1, -1]),
        "j": ("<f4", [[1], [2.5]]),
        "t": ("|O", [b"cat", b""]),
    }


def test_fp16_in_json_which_answers_may_have_is_read() -> None:
    half = {"name": "h", "datatype": "FP16", "shape": [2], "data": [0.5, 65504]}
    outputs = outputs_from_answer(*answer(half))
    assert outputs is not None
    assert outputs["h"].dtype == np.float16
    assert outputs["h"].tolist() == [0.5, 65504]


def test_an_object_without_outputs_has_none() -> None:
    assert outputs_from_answer({}, b'{"predictions": []}') is None


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [-1]},
        {"shape": [9_000_000_000]},
        {"shape": [1] * 65},
        {"datatype": "BF16"},
        {"parameters": {"binary_data_size": -4}},
        {"parameters": {"binary_data_size": 9}},
        {"shape": [0], "parameters": {"binary_data_size": 0}},
        {"parameters": {}},
    ],
)
def test_an_answer_that_cannot_be_read_is_an_error(change: dict[str, Any]) -> None:
    good = {"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    assert outputs_from_answer(*answer(good, tail=bytes(4))) is not None
    with pytest.raises(InputError):
        outputs_from_answer(*answer({**good, **change}, tail=bytes(4)))
