"""Requests of the protocol as tests write them."""

import json
from typing import Any

from edge import oip
from edge.spec import TensorSpec

OUTPUTS = (
    TensorSpec(name="y", datatype="FP32", shape=("n", 2)),
    TensorSpec(name="k", datatype="INT64", shape=("n",)),
)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}


def accept(name: str, datatype: str, shape: tuple[int, ...]) -> None:
    """Take any tensor, whatever the model."""


def parse(
    *inputs: dict[str, Any], specs: tuple[TensorSpec, ...] = OUTPUTS, **fields: Any
) -> oip.InferRequest:
    body = json.dumps({"inputs": list(inputs), **fields}).encode()
    return oip.parse_infer(body, None, outputs=specs, check=accept)


def binary(datatype: str, shape: list[int], size: int, name: str = "x") -> dict[str, Any]:
    return {
        "name": name,
        "datatype": datatype,
        "shape": shape,
        "parameters": {"binary_data_size": size},
    }
