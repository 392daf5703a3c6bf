"""Linear layers and embeddings of a graph, in the precision that their weights get.

Layers that read the same activations are written as one: a quantized kernel then packs them once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto

from host_tools.chat.graph import Graph
from host_tools.chat.quantize import block_size, int4_blocks, int8_channels, packed_pairs
from host_tools.chat.weights import FloatArray, Weights, in_chunks, whole

Precision = Literal["float", "int8", "int4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Layers written as one: y = x W + b.

    name: of the node. layers: names of the layers in the checkpoint, whose outputs follow each
    other. bias: whether they have one.
    """

    name: str
    layers: tuple[str, ...]
    bias: bool = False


def add_linear(graph: Graph, weights: Weights, x: str, linear: Linear, precision: Precision) -> str:
    """Add the layer behind activations [..., inputs] and return its output [..., outputs]."""
    matrix = _matrix(graph, weights, linear, precision)
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
    rows = (chunk.astype(dtype) for _, chunk in in_chunks(weights, name))
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
        return _int4(graph, name, (inputs, outputs), block, chunks)
    if precision != "float":
        return _int8(graph, name, (inputs, outputs), chunks)
    matrix = np.empty((inputs, outputs), graph.float_dtype)
    for begin, chunk in chunks:
        matrix[:, begin : begin + len(chunk)] = chunk.T
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
    name: str,
    shape: tuple[int, int],
    block: int,
    chunks: Iterator[tuple[int, FloatArray]],
) -> str:
    inputs, outputs = shape
    packed = np.empty((inputs, outputs // 2), np.uint8)
    scales = np.empty((inputs // block, outputs), graph.float_dtype)
    for begin, chunk in chunks:
        end = begin + len(chunk)
        values, scale = int4_blocks(chunk, block)
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
    scales = np.empty(shape[1], graph.float_dtype)
    for begin, chunk in chunks:
        end = begin + len(chunk)
        values, scales[begin:end] = int8_channels(chunk)
        matrix[:, begin:end] = values.T
    # TensorRT 8 wants zero points, and so does ONNX Runtime: where int8 may saturate it rewrites
    # the weights as uint8, with a single zero point of its own that no kernel takes. A tensor of
    # zeros for all layers would be rewritten twice, which it refuses.
    zeros = np.zeros(shape[1], np.int8)
    return graph.add(
        "DequantizeLinear",
        graph.weight(f"{name}.int8", TensorProto.INT8, shape, [matrix]),
        graph.floats(f"{name}.scale", scales),
        graph.weight(f"{name}.zero", TensorProto.INT8, zeros.shape, [zeros]),
        name=name,
        axis=1,
    )
