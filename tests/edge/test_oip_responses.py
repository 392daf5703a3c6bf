"""Answers of the protocol, as JSON and in binary."""

import json
import math
import struct
from typing import Any

import numpy as np
import pytest

from edge import oip
from edge.errors import InputError
from edge.spec import TensorSpec
from tests.edge.oip_requests import OUTPUTS, accept, parse, tensor

HALF = (TensorSpec(name="h", datatype="FP16", shape=(2,)),)


def test_fp16_outputs_are_binary_only() -> None:
    with pytest.raises(InputError, match="FP16"):
        parse(tensor(), specs=HALF)
    request = oip.parse_infer(
        json.dumps({"inputs": [tensor()], "parameters": {"binary_data_output": True}}).encode(),
        None,
        outputs=HALF,
        check=accept,
    )
    response = oip.encode_infer(
        {"h": np.array([1, 2], np.float16)}, request, model="m", version="1", outputs=HALF
    )
    assert response.body.endswith(struct.pack("<2e", 1, 2))


def encode(results: dict[str, np.ndarray], **fields: Any) -> oip.InferResponse:
    request = parse(tensor(), **fields)
    return oip.encode_infer(results, request, model="m", version="7", outputs=OUTPUTS)


RESULTS = {"y": np.array([[1.5, 0.1]], np.float32), "k": np.array([2**62])}


def test_a_json_response_has_the_fields_of_the_protocol() -> None:
    response = encode(RESULTS, id="abc")
    assert response.headers == {"Content-Type": "application/json"}
    assert json.loads(response.body) == {
        "model_name": "m",
        "model_version": "7",
        "id": "abc",
        "outputs": [
            # 0.1 in float32, written with the digits that bring it back exactly.
            {"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 0.10000000149011612]},
            {"name": "k", "shape": [1], "datatype": "INT64", "data": [4611686018427387904]},
        ],
    }


def test_a_response_has_no_id_if_the_request_had_none() -> None:
    assert "id" not in json.loads(encode(RESULTS).body)


def test_a_binary_response_is_json_then_raw_tensors_in_order() -> None:
    response = encode(
        RESULTS,
        outputs=[
            {"name": "k", "parameters": {"binary_data": True}},
            {"name": "y", "parameters": {"binary_data": True}},
        ],
    )
    assert response.json_length is not None
    assert response.headers == {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(response.json_length),
    }
    head = json.loads(response.body[: response.json_length])
    assert [o["parameters"] for o in head["outputs"]] == [
        {"binary_data_size": 8},
        {"binary_data_size": 8},
    ]
    assert not any("data" in output for output in head["outputs"])
    assert response.body[response.json_length :] == struct.pack("<q2f", 2**62, 1.5, 0.1)


def test_binary_and_json_outputs_mix() -> None:
    response = encode(
        RESULTS, outputs=[{"name": "k"}, {"name": "y", "parameters": {"binary_data": True}}]
    )
    head = json.loads(response.body[: response.json_length])
    assert head["outputs"][0]["data"] == [2**62]
    assert response.body[response.json_length :] == struct.pack("<2f", 1.5, 0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_json_cannot_carry_is_an_error_that_names_binary(bad: float) -> None:
    results = {**RESULTS, "y": np.array([[1, bad]], np.float32)}
    with pytest.raises(InputError, match="binary_data"):
        encode(results)
    assert encode(results, parameters={"binary_data_output": True}).json_length is not None


TEXT = (TensorSpec(name="t", datatype="BYTES", shape=("n", 1)),)


def encode_text(values: list[bytes], **fields: Any) -> oip.InferResponse:
    array = np.array(values, object).reshape(-1, 1)
    request = parse(tensor(), specs=TEXT, **fields)
    return oip.encode_infer({"t": array}, request, model="m", version="1", outputs=TEXT)


def test_strings_are_answered_as_json_text_or_with_their_lengths() -> None:
    values = ["grüß".encode(), b"", b"a\0"]
    described = json.loads(encode_text(values).body)["outputs"][0]
    assert described == {
        "name": "t", "shape": [3, 1], "datatype": "BYTES", "data": ["grüß", "", "a\0"]
    }  # fmt: skip
    response = encode_text(values, parameters={"binary_data_output": True})
    assert response.body[response.json_length :] == struct.pack(
        "<I6sII2s", 6, values[0], 0, 2, values[2]
    )


def test_bytes_that_are_no_text_are_refused_in_json_and_sent_in_binary() -> None:
    with pytest.raises(InputError, match=r"no UTF-8.*binary_data"):
        encode_text([b"\xff"])
    response = encode_text([b"\xff"], parameters={"binary_data_output": True})
    assert response.body.endswith(struct.pack("<I1s", 1, b"\xff"))


def test_outputs_that_are_views_are_encoded_row_major() -> None:
    base = np.arange(8, dtype=np.float32).reshape(2, 4)
    results = {**RESULTS, "y": base[:, ::2].T}
    assert json.loads(encode(results).body)["outputs"][0]["data"] == [0, 4, 2, 6]
