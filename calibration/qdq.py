"""Write a calibrated model as explicit Q/DQ, in the one form that every TensorRT accepts.

int8 with an explicit zero point of 0; a Q and a DQ node on activations (per tensor) and on float
weights (per output channel); the bias stays float.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from calibration.graph import GraphIndex, attribute, drop_unread_initializers
from calibration.placement import Placement
from edge.spec import AnyArray

INT8_MAX = 127.0


def quantize(
    model: onnx.ModelProto,
    placement: Placement,
    amax: Mapping[str, float],
    *,
    share_pairs: bool = True,
) -> onnx.ModelProto:
    """Return a copy of the float model with Q/DQ around every placed node and on every skip edge.

    amax: clipping range per activation tensor. share_pairs: one pair for all who read a tensor,
    which TensorRT wants; else every reader gets a pair of its own with a scale that differs in the
    last bit, because ONNX Runtime merges equal pairs and then no longer fuses the products that
    read them into integer kernels.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    index = GraphIndex.of(graph)
    by_name = {node.name: node for node in graph.node}
    before: dict[str, list[onnx.NodeProto]] = {}
    behind: dict[str, tuple[onnx.NodeProto, onnx.NodeProto]] = {}
    uses: dict[str, int] = {}

    def activation(tensor: str, reader: str) -> str:
        """Return the tensor behind a Q/DQ pair, making the pair where there is none to share."""
        scale = np.float32(amax[tensor] / INT8_MAX)
        if not share_pairs:
            for _ in range(uses.get(tensor, 0)):
                scale = np.nextafter(scale, np.float32(np.inf))
            uses[tensor] = uses.get(tensor, 0) + 1
            pair = _pair(graph, tensor, f"{reader}/input", scale, None)
            before.setdefault(reader, []).extend(pair)
            return str(pair[1].output[0])
        if tensor not in behind:
            behind[tensor] = _pair(graph, tensor, f"{tensor}/int8", scale, None)
        return str(behind[tensor][1].output[0])

    for place in placement.quantized:
        node = by_name[place.name]
        weight = numpy_helper.to_array(index.weights[place.weight])
        scale = weight_scale(weight, place.channel_axis)
        pair = _pair(graph, place.weight, f"{place.name}/weight", scale, place.channel_axis)
        before.setdefault(place.name, []).extend(pair)
        node.input[0] = activation(place.activation, place.name)
        node.input[1] = pair[1].output[0]
    for skip in placement.skips:
        node = by_name[skip.add]
        position = list(node.input).index(skip.tensor)
        node.input[position] = activation(skip.tensor, skip.add)
    from_outside = [pair for tensor, pair in behind.items() if tensor not in index.producers]
    ordered = [node for pair in from_outside for node in pair]
    for node in graph.node:
        ordered += [*before.get(node.name, ()), node]
        ordered += [new for name in node.output for new in behind.get(name, ())]
    del graph.node[:]
    graph.node.extend(ordered)
    return quantized


def with_stored_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose quantized weights are stored as int8, a quarter of the size.

    The Q node of each constant weight is computed now and dropped, its DQ node stays. ONNX Runtime
    and TensorRT >= 10 read this form; TensorRT 8.x wants the float weights with Q and DQ.
    """
    stored = onnx.ModelProto()
    stored.CopyFrom(model)
    graph = stored.graph
    index = GraphIndex.of(graph)
    folded, kept = {}, []
    for node in graph.node:
        weight = index.weights.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if weight is None:
            kept.append(node)
            continue
        scale = numpy_helper.to_array(index.weights[node.input[1]])
        axis = attribute(node, "axis", 1)
        folded[node.output[0]] = int8_from_weight(numpy_helper.to_array(weight), scale, axis)
    del graph.node[:]
    graph.node.extend(kept)
    drop_unread_initializers(graph)
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in folded.items())
    return stored


def int8_from_weight(weight: AnyArray, scale: AnyArray, axis: int) -> npt.NDArray[np.int8]:
    """Return QuantizeLinear of a weight with zero point 0: round half to even, saturate."""
    shape = [1] * weight.ndim
    if scale.ndim:
        shape[axis] = scale.size
    return np.clip(np.rint(weight / scale.reshape(shape)), -128, 127).astype(np.int8)


def weight_scale(weight: AnyArray, channel_axis: int) -> npt.NDArray[np.float32]:
    """Return the symmetric int8 scale of every output channel, shape (channels,)."""
    others = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    amax = np.abs(weight).max(axis=others).astype(np.float32)
    scale = np.where(amax > 0, amax, np.float32(1.0)) / np.float32(INT8_MAX)
    # A channel of zeros, or of subnormal numbers, needs some positive scale.
    return np.asarray(np.maximum(scale, np.finfo(np.float32).tiny), np.float32)


def _pair(
    graph: onnx.GraphProto, tensor: str, prefix: str, scale: AnyArray | np.float32, axis: int | None
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """Add scale and zero point, and return (Q, DQ) nodes over the tensor."""
    values = np.asarray(scale, np.float32)
    parameters = [f"{prefix}_scale", f"{prefix}_zero_point"]
    graph.initializer.append(numpy_helper.from_array(values, parameters[0]))
    graph.initializer.append(
        numpy_helper.from_array(np.zeros(values.shape, np.int8), parameters[1])
    )
    quantized, result = f"{prefix}_quantized", f"{prefix}_dequantized"
    nodes = (
        helper.make_node("QuantizeLinear", [tensor, *parameters], [quantized], name=f"{prefix}_q"),
        helper.make_node(
            "DequantizeLinear", [quantized, *parameters], [result], name=f"{prefix}_dq"
        ),
    )
    if axis is not None:
        for node in nodes:
            node.attribute.append(helper.make_attribute("axis", axis))
    return nodes
