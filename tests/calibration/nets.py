"""Small float models built in code, and the samples to calibrate them on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.model_file import set_facts
from calibration.placement import place
from calibration.qdq import quantize
from calibration.runtime import run_exposing
from edge.manifest import Provenance
from edge.spec import Profile, ShapeRange

IMAGE = (3, 8, 8)


def conv_net(seed: int = 0, batch: str | int = "batch") -> onnx.ModelProto:
    """Conv 3->8, Relu, Conv 8->8 with a residual Add, Relu, GlobalAveragePool, Gemm -> 5 logits."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        fan_in = int(np.prod(shape[1:])) or 1
        values = rng.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)
        return numpy_helper.from_array(values, name)

    initializers = [
        weight("w1", 8, 3, 3, 3),
        weight("b1", 8),
        weight("w2", 8, 8, 3, 3),
        weight("w3", 5, 8),
        weight("b3", 5),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a"], name="add"),
        helper.make_node("Relu", ["a"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], name="head", transB=1),
    ]
    return _model(nodes, initializers, [batch, *IMAGE], [batch, 5], "logits")


def shared_input_net(seed: int = 0) -> onnx.ModelProto:
    """Three MatMuls that read one activation, as q, k and v of an attention do, then Softmax."""
    rng = np.random.default_rng(seed)
    initializers = [
        numpy_helper.from_array(rng.normal(0, 0.2, (32, 32)).astype(np.float32), name)
        for name in ("wq", "wk", "wv")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], name="q"),
        helper.make_node("MatMul", ["x", "wk"], ["k"], name="k"),
        helper.make_node("MatMul", ["x", "wv"], ["v"], name="v"),
        helper.make_node("Transpose", ["k"], ["kt"], name="t", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"], name="scores"),
        helper.make_node("Softmax", ["s"], ["p"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="mix"),
    ]
    return _model(nodes, initializers, ["batch", 4, 32], ["batch", 4, 32], "y")


def feeds_for(model: onnx.ModelProto, *, rows: int = 2) -> dict[str, np.ndarray]:
    """Return normal samples for one of the nets above."""
    row = IMAGE if model.graph.output[0].name == "logits" else (4, 32)
    return {"x": np.random.default_rng(0).normal(0, 1, (rows, *row)).astype(np.float32)}


def amax_of(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, float]:
    """Return the largest magnitude of tensors of the model on `feeds_for`."""
    values = run_exposing(model, feeds_for(model), names)
    return {name: float(np.abs(value).max()) for name, value in values.items()}


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in the form for TensorRT, calibrated on `feeds_for`."""
    placement = place(model)
    return quantize(model, placement, amax_of(model, placement.activations))


def _model(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    input_shape: list[str | int],
    output_shape: list[str | int],
    output: str,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, output_shape)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    tail = tuple(int(d) for d in input_shape[1:])
    low, high = (1, 32) if isinstance(input_shape[0], str) else (input_shape[0],) * 2
    bounds = ShapeRange(min=(low, *tail), opt=(low, *tail), max=(high, *tail))
    set_facts(
        model,
        Profile(ranges={"x": bounds}),
        Provenance(source="tests", opset=17, exporter="code", tools={}),
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def write_samples(path: Path, count: int, seed: int = 1, **extra: np.ndarray) -> Path:
    """Write `count` random images, smooth enough to have structure, as "x" in an .npz file."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 1, (count, *IMAGE)).cumsum(axis=2).astype(np.float32)
    np.savez(path, x=images, **extra)
    return path
