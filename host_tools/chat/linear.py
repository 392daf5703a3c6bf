"""Linear layers and embeddings of a graph, in the precision that their weights get.

Layers that read the same activations are written as one: a quantized kernel then packs them once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto

from edge.spec import AnyArray
from host_tools.chat.graph import Graph
from host_tools.chat.quantize import INT8_MAX, block_size, int4_blocks, int8_channels, packed_pairs
from host_tools.chat.scaling import Activations
from host_tools.chat.weights import FloatArray, Weights, cast, in_chunks, whole

Precision = Literal["float", "int8", "int4", "w8a8"]

# TensorRT 8 reads no later opset, and no weights that are int8 in the file: it rounds them itself.
PACKED_OPSET = 18

HALF_SCALES_OPSET = 19  # before it, DequantizeLinear gives FP32 alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Layers written as one: y = x W + b.

    name: of the node. layers: names of the layers in the checkpoint, whose outputs follow each
    other. bias: whether they have one. activations: what calibration found about what they read;
    "w8a8" cannot be without.
    """

    name: str
    layers: tuple[str, ...]
    bias: bool = False
    activations: Activations | None = None


def add_linear(graph: Graph, weights: Weights, x: str, linear: Linear, precision: Precision) -> str:
    """Add the layer behind activations [..., inputs] and return its output [..., outputs]."""
    matrix = _matrix(graph, weights, linear, precision)
    if precision == "w8a8":
        x = _rounded_activations(graph, x, linear)
    y = graph.add("MatMul", x, matrix, name=linear.name)
    if not linear.bias:
        return y
    bias = np.concatenate([whole(weights, f"{layer}.bias") for layer in linear.layers])
    return graph.add(
        "Add", y, graph.floats(f"{linear.name}.bias", bias), name=f"{linear.name}.biased"
    )


def add_embedding(graph: Graph, weights: Weights, tokens: str, layer: str, *, half: bool) -> str:
    """Add the lookup of token ids in a table, stored as FP16 if half; return the activations."""
    datatype = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    dtype = np.dtype(np.float16 if half else np.float32)
    name = f"{layer}.weight"
    rows = (cast(chunk, dtype, name) for _, chunk in in_chunks(weights, name))
    table = graph.weight(name, datatype, weights.shape(name), rows)
    found = graph.add("Gather", table, tokens, name=layer, axis=0)
    if half == graph.half:
        return found
    return graph.add("Cast", found, name=f"{layer}.cast", to=graph.float_type)


def _matrix(graph: Graph, weights: Weights, linear: Linear, precision: Precision) -> str:
    shapes = [weights.shape(f"{layer}.weight") for layer in linear.layers]
    inputs, outputs = shapes[0][1], sum(shape[0] for shape in shapes)
    name = f"{linear.name}.weight"
    chunks = _columns(weights, linear)
    block = block_size(inputs)
    if precision == "int4" and block is not None and all(shape[0] % 2 == 0 for shape in shapes):
        return _int4(graph, linear, (inputs, outputs), block, chunks)
    if precision == "w8a8" and graph.opset < PACKED_OPSET:
        return _int8_in_float(graph, name, (inputs, outputs), chunks)
    if precision != "float":
        return _int8(graph, name, (inputs, outputs), chunks)
    matrix = np.empty((inputs, outputs), graph.float_dtype)
    for begin, chunk in chunks:
        matrix[:, begin : begin + len(chunk)] = cast(chunk, matrix.dtype, name).T
    return graph.weight(name, graph.float_type, matrix.shape, [matrix])


def _columns(weights: Weights, linear: Linear) -> Iterator[tuple[int, FloatArray]]:
    """Yield (first output, weights [some outputs, inputs]) over all the layers."""
    offset = 0
    for layer in linear.layers:
        for begin, chunk in in_chunks(weights, f"{layer}.weight"):
            yield offset + begin, chunk
        offset += weights.shape(f"{layer}.weight")[0]


def _int4(
    graph: Graph,
    linear: Linear,
    shape: tuple[int, int],
    block: int,
    chunks: Iterator[tuple[int, FloatArray]],
) -> str:
    inputs, outputs = shape
    name = f"{linear.name}.weight"
    importance = None if linear.activations is None else linear.activations.importance
    packed = np.empty((inputs, outputs // 2), np.uint8)
    scales = np.empty((inputs // block, outputs), np.float32)
    for begin, chunk in chunks:
        end = begin + len(chunk)
        values, scale = int4_blocks(chunk, block, importance)
        packed[:, begin // 2 : end // 2] = packed_pairs(values.T)
        scales[:, begin:end] = scale.T
    return graph.add(
        "DequantizeLinear",
        graph.weight(f"{name}.int4", TensorProto.INT4, shape, [packed]),
        graph.floats(f"{name}.scale", scales),
        name=name,
        axis=0,
        block_size=block,
    )


def _int8(
    graph: Graph, name: str, shape: tuple[int, int], chunks: Iterator[tuple[int, FloatArray]]
) -> str:
    matrix = np.empty(shape, np.int8)
    scales = np.empty(shape[1], np.float32)
    for begin, chunk in chunks:
        end = begin + len(chunk)
        values, scales[begin:end] = int8_channels(chunk)
        matrix[:, begin:end] = values.T
    stored = graph.weight(f"{name}.int8", TensorProto.INT8, shape, [matrix])
    # TensorRT 8 wants zero points, and so does ONNX Runtime: where int8 may saturate it rewrites
    # the weights as uint8, with a single zero point of its own that no kernel takes. A tensor of
    # zeros for all layers would be rewritten twice, which it refuses.
    zeros = np.zeros(shape[1], np.int8)
    zero = graph.weight(f"{name}.zero", TensorProto.INT8, zeros.shape, [zeros])
    scale = f"{name}.scale"
    if graph.half and graph.opset < HALF_SCALES_OPSET:
        graph.weight(scale, TensorProto.FLOAT, scales.shape, [scales])
        full = graph.add("DequantizeLinear", stored, scale, zero, name=f"{name}.float", axis=1)
        return graph.add("Cast", full, name=name, to=TensorProto.FLOAT16)
    graph.floats(scale, scales)
    return graph.add("DequantizeLinear", stored, scale, zero, name=name, axis=1)


def _int8_in_float(
    graph: Graph, name: str, shape: tuple[int, int], chunks: Iterator[tuple[int, FloatArray]]
) -> str:
    """Add weights in float with the pair of nodes that rounds them to int8."""
    matrix = np.empty(shape, graph.float_dtype)
    scales = np.empty(shape[1], graph.float_dtype)
    for begin, chunk in chunks:
        end = begin + len(chunk)
        matrix[:, begin:end] = chunk.T
        scales[begin:end] = int8_channels(chunk)[1]
    return _rounded(graph, graph.floats(f"{name}.float", matrix), scales, name=name, axis=1)


def _rounded_activations(graph: Graph, x: str, linear: Linear) -> str:
    """Add the pair of nodes that rounds what a layer reads to int8 of one range."""
    if linear.activations is None:
        raise ValueError(f"{linear.name} has no range of activations")
    amax = linear.activations.amax
    scale = np.array(amax / INT8_MAX if amax > 0 else 1.0, graph.float_dtype)
    return _rounded(graph, x, scale, name=f"{linear.name}.input")


def _rounded(graph: Graph, x: str, scale: AnyArray, *, name: str, **attributes: int) -> str:
    """Add Q and DQ nodes with tensors of their own.

    ONNX Runtime merges pairs that share them, and then fuses none of the layers behind.
    """
    zero = np.zeros(scale.shape, np.int8)
    parameters = (
        graph.floats(f"{name}.scale", scale),
        graph.weight(f"{name}.zero", TensorProto.INT8, zero.shape, [zero]),
    )
    integers = graph.add("QuantizeLinear", x, *parameters, name=f"{name}.int8", **attributes)
    return graph.add("DequantizeLinear", integers, *parameters, name=name, **attributes)
