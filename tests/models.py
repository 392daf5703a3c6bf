"""Tiny ONNX models, built in code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge.spec import Datatype, Profile, ShapeRange, TensorSpec

ONNX_FROM_DATATYPE: dict[Datatype, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}

# y = 2 x + 1, row by row; s = sum of each row of y.
AFFINE_INPUTS = (TensorSpec(name="x", datatype="FP32", shape=("batch", 4)),)
AFFINE_OUTPUTS = (
    TensorSpec(name="y", datatype="FP32", shape=("batch", 4)),
    TensorSpec(name="s", datatype="FP32", shape=("batch",)),
)
AFFINE_PROFILE = Profile(ranges={"x": ShapeRange(min=(1, 4), opt=(1, 4), max=(8, 4))})


def model_from_nodes(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """Return a checked model of opset 17."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        outputs,
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def affine_model(*, scale: float = 2.0, offset: float = 1.0) -> onnx.ModelProto:
    """Return y = scale x + offset and s = sum of y over the last axis; shapes as AFFINE_*."""
    return model_from_nodes(
        [
            helper.make_node("Mul", ["x", "scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offset"], ["y"]),
            helper.make_node("ReduceSum", ["y", "axes"], ["s"], keepdims=0),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, ["batch"]),
        ],
        {
            "scale": np.full(4, scale, np.float32),
            "offset": np.full(4, offset, np.float32),
            "axes": np.array([1], np.int64),
        },
    )


def affine(x: np.ndarray, *, scale: float = 2.0) -> dict[str, np.ndarray]:
    """Return what `affine_model(scale=scale)` must give, by numpy."""
    y = (scale * x + 1.0).astype(np.float32)
    return {"y": y, "s": y.sum(axis=1, dtype=np.float32)}


def identity_model(datatype: Datatype) -> onnx.ModelProto:
    """Return y = x for a tensor of shape (2, 3)."""
    kind = ONNX_FROM_DATATYPE[datatype]
    return model_from_nodes(
        [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", kind, [2, 3])],
        [helper.make_tensor_value_info("y", kind, [2, 3])],
    )


def gather_model() -> onnx.ModelProto:
    """Return y = table[i]: an index out of range fails at run time, not at check time."""
    return model_from_nodes(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [helper.make_tensor_value_info("i", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        {"table": np.arange(4, dtype=np.float32)},
    )


WORDS = ("cat", "dog", "grün", "a,b")


def text_model() -> onnx.ModelProto:
    """Return three outputs of strings (batch, 1): themselves, their number, and the next of WORDS.

    What is not among WORDS has the number -1 and is followed by "?".
    """
    number = helper.make_node(
        "LabelEncoder", ["text"], ["number"], domain="ai.onnx.ml",
        keys_strings=WORDS, values_int64s=range(len(WORDS)), default_int64=-1,
    )  # fmt: skip
    following = helper.make_node(
        "LabelEncoder", ["text"], ["next"], domain="ai.onnx.ml",
        keys_strings=WORDS, values_strings=(*WORDS[1:], WORDS[0]), default_string="?",
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Identity", ["text"], ["same"]), number, following],
        "words",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["batch", 1])],
        [
            helper.make_tensor_value_info("same", TensorProto.STRING, ["batch", 1]),
            helper.make_tensor_value_info("number", TensorProto.INT64, ["batch", 1]),
            helper.make_tensor_value_info("next", TensorProto.STRING, ["batch", 1]),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write the model as one file and return the path."""
    path.write_bytes(model.SerializeToString())
    return path
