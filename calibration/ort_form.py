"""Write a calibrated model as ONNX Runtime on a CPU runs it fastest: in integer kernels.

The form of `qdq` keeps the outputs of convolutions in float, as TensorRT wants; ONNX Runtime then
computes the convolution in float as well. Here every convolution and Gemm also has a quantized
output, behind its activation, a quantized bias, and one Q per tensor that all readers share; an
Add of two quantized tensors is quantized too. MatMul keeps the form of `qdq`, which fuses as it
is. A tensor behind a ReLU is uint8 with zero point 0, so that ONNX Runtime can drop the ReLU;
every other tensor is uint8 with zero point 128: ONNX Runtime rewrites int8 to that on x86, and then
no longer fuses a convolution whose output an Add reads too.

x86 CPUs with AVX2 but without VNNI may saturate in products of uint8 and int8; the self-test of
the bundle is what notices there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from calibration.graph import GraphIndex, attribute_float, drop_unread_initializers
from calibration.placement import Placement, QuantizedNode
from calibration.qdq import INT8_MAX, int8_from_weight, quantize, weight_scale
from edge.spec import AnyArray

UINT8_MAX = 255.0
SIGNED_ZERO = 128  # of a uint8 tensor whose values have both signs
# Operators that only move values: their output has the range of their input.
_MOVES = frozenset(
    {"Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
_ACTIVATIONS = frozenset({"Clip", "Relu"})


@dataclass(slots=True)
class _Plan:
    """Which nodes become integer kernels, and which tensors are quantized for them, in order.

    root: quantized tensor to the one whose range it has; itself, unless it only moves values.
    """

    index: GraphIndex
    nodes: list[QuantizedNode] = field(default_factory=list)
    root: dict[str, str] = field(default_factory=dict)


def ort_activations(model: onnx.ModelProto, placement: Placement) -> tuple[str, ...]:
    """Return the tensors that `quantize_for_ort` needs the ranges of, each once."""
    matmuls = (node.activation for node in _matmuls(model, placement))
    return tuple(dict.fromkeys((*_plan(model, placement).root.values(), *matmuls)))


def quantize_for_ort(
    model: onnx.ModelProto, placement: Placement, amax: Mapping[str, float]
) -> onnx.ModelProto:
    """Return a copy of the float model in which ONNX Runtime fuses every placed node.

    amax: clipping range of every tensor in `ort_activations`. A ConvTranspose stays float, ONNX
    Runtime has no integer kernel for it.
    """
    matmuls = Placement(quantized=_matmuls(model, placement), kept_float={})
    plan = _plan(model, placement)
    quantized = quantize(model, matmuls, amax, share_pairs=False)
    graph = quantized.graph
    by_name = {node.name: node for node in graph.node}
    before: dict[str, list[onnx.NodeProto]] = {}
    scales: dict[str, AnyArray] = {}
    behind: dict[str, list[onnx.NodeProto]] = {}
    for tensor, root in plan.root.items():
        is_positive = _is_positive(root, plan.index)
        scales[tensor] = _scale(amax[root], UINT8_MAX if is_positive else INT8_MAX)
        zero = np.array(0 if is_positive else SIGNED_ZERO, np.uint8)
        behind[tensor] = _pair(graph, tensor, scales[tensor], zero)
        for reader in plan.index.consumers.get(tensor, ()):
            _replace_input(by_name[reader.name], tensor, f"{tensor}_dequantized")
    for place in plan.nodes:
        before[place.name] = _constants(
            graph, by_name[place.name], place, plan.index, scales[place.activation]
        )
    made_by_graph = [name for name in behind if name not in plan.index.producers]
    ordered = [node for name in made_by_graph for node in behind[name]]
    for node in graph.node:
        ordered += [*before.get(node.name, ()), node]
        ordered += [new for name in node.output for new in behind.get(name, ())]
    del graph.node[:]
    graph.node.extend(ordered)
    drop_unread_initializers(graph)
    return quantized


def _matmuls(model: onnx.ModelProto, placement: Placement) -> tuple[QuantizedNode, ...]:
    operators = {node.name: node.op_type for node in model.graph.node}
    return tuple(node for node in placement.quantized if operators[node.name] == "MatMul")


def _plan(model: onnx.ModelProto, placement: Placement) -> _Plan:
    plan = _Plan(index=GraphIndex.of(model.graph))
    placed = {node.name: node for node in placement.quantized}
    outputs = {output.name for output in model.graph.output}
    for node in model.graph.node:
        place = placed.get(node.name)
        if place is not None and _has_integer_kernel(node, plan.index):
            plan.nodes.append(place)
            _add(plan, place.activation)
        elif node.op_type != "Add" or not all(name in plan.root for name in node.input):
            continue
        result = _behind_activation(node, plan)
        if result not in outputs:
            _add(plan, result)
    return plan


def _add(plan: _Plan, tensor: str) -> None:
    if tensor in plan.root:
        return
    root, node = tensor, plan.index.producers.get(tensor)
    while node is not None and node.op_type in _MOVES:
        root = node.input[0]
        if root in plan.root:
            root = plan.root[root]
            break
        node = plan.index.producers.get(root)
    plan.root[tensor] = root


def _has_integer_kernel(node: onnx.NodeProto, index: GraphIndex) -> bool:
    if node.op_type == "Conv":
        return True
    if node.op_type != "Gemm":
        return False
    bias = index.weights.get(node.input[2]) if len(node.input) > 2 else None
    is_plain = attribute_float(node, "alpha", 1.0) == 1.0 == attribute_float(node, "beta", 1.0)
    return is_plain and (len(node.input) == 2 or (bias is not None and len(bias.dims) == 1))


def _behind_activation(node: onnx.NodeProto, plan: _Plan) -> str:
    """Return the output of the ReLU or Clip that alone reads this node, else the node's own."""
    tensor = node.output[0]
    readers = plan.index.consumers.get(tensor, [])
    if len(readers) == 1 and readers[0].op_type in _ACTIVATIONS:
        return str(readers[0].output[0])
    return str(tensor)


def _is_positive(tensor: str, index: GraphIndex) -> bool:
    """Whether no value of the tensor can be negative."""
    node = index.producers.get(tensor)
    if node is None or node.op_type not in _ACTIVATIONS:
        return False
    if node.op_type == "Relu":
        return True
    low = index.weights.get(node.input[1]) if len(node.input) > 1 else None
    return low is not None and bool(numpy_helper.to_array(low) >= 0)


def _scale(amax: float, levels: float) -> AnyArray:
    """Return amax / levels; a tensor that was always zero gets some positive scale."""
    # Rounded down, so that the range never passes the limit of a Clip that it follows.
    scale = np.float32(amax / levels)
    if float(scale) * levels > amax:
        scale = np.nextafter(scale, np.float32(0))
    return np.asarray(scale if scale >= np.finfo(np.float32).tiny else 1 / levels, np.float32)


def _pair(
    graph: onnx.GraphProto, tensor: str, scale: AnyArray, zero: AnyArray
) -> list[onnx.NodeProto]:
    parameters = [f"{tensor}_scale", f"{tensor}_zero_point"]
    for name, value in zip(parameters, (scale, zero), strict=True):
        graph.initializer.append(numpy_helper.from_array(value, name))
    middle = f"{tensor}_quantized"
    return [
        helper.make_node("QuantizeLinear", [tensor, *parameters], [middle], name=f"{tensor}_q"),
        helper.make_node(
            "DequantizeLinear",
            [middle, *parameters],
            [f"{tensor}_dequantized"],
            name=f"{tensor}_dq",
        ),
    ]


def _constants(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    place: QuantizedNode,
    index: GraphIndex,
    input_scale: AnyArray,
) -> list[onnx.NodeProto]:
    """Store weight and bias as integers and return the DQ node of each.

    The bias has the scale that the int32 accumulator has: input scale times weight scale.
    """
    weight = numpy_helper.to_array(index.weights[place.weight])
    scale = weight_scale(weight, place.channel_axis)
    values = int8_from_weight(weight, scale, place.channel_axis)
    nodes = [_dequantize(graph, f"{place.name}/weight", values, scale, place.channel_axis)]
    node.input[1] = nodes[0].output[0]
    if len(node.input) > 2 and node.input[2] in index.weights:
        bias = numpy_helper.to_array(index.weights[node.input[2]]).astype(np.float64)
        bias_scale = (input_scale * scale).astype(np.float32)
        limits = np.iinfo(np.int32)
        values = np.clip(np.rint(bias / bias_scale), limits.min, limits.max).astype(np.int32)
        nodes.append(_dequantize(graph, f"{place.name}/bias", values, bias_scale, 0))
        node.input[2] = nodes[1].output[0]
    return nodes


def _dequantize(
    graph: onnx.GraphProto, prefix: str, values: AnyArray, scale: AnyArray, axis: int
) -> onnx.NodeProto:
    names = [f"{prefix}_quantized", f"{prefix}_scale", f"{prefix}_zero_point"]
    zero = np.zeros(scale.shape, values.dtype)
    for name, array in zip(names, (values, scale, zero), strict=True):
        graph.initializer.append(numpy_helper.from_array(array, name))
    return helper.make_node(
        "DequantizeLinear", names, [f"{prefix}_dequantized"], name=f"{prefix}_dq", axis=axis
    )


def _replace_input(node: onnx.NodeProto, old: str, new: str) -> None:
    for position, name in enumerate(node.input):
        if name == old:
            node.input[position] = new
