"""Bias correction: take out the mean error that rounding the weights and clipping leave behind.

For every output channel c of a quantized node, over calibration samples:

    b'_c = b_c - E[(Wq * Q(x))_c - (W * x)_c]

x is the input in the float model, so all nodes are measured in one pass, by a twin of each that
computes with the rounded weights and the clipped input.
Source: Nagel et al. 2019, arXiv 1906.04721, section 4.2 (here with measured means).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.graph import GraphIndex, drop_unread_initializers
from calibration.placement import Placement, QuantizedNode
from calibration.qdq import INT8_MAX, int8_from_weight, weight_scale
from calibration.runtime import Runner
from edge.spec import AnyArray, Feeds


def mean_errors(
    model: onnx.ModelProto,
    placement: Placement,
    amax: Mapping[str, float],
    batches: Iterable[Feeds],
) -> dict[str, AnyArray]:
    """Return E[Wq * Q(x) - W * x] per output channel, for every node with a place for a bias."""
    index = GraphIndex.of(model.graph)
    by_name = {node.name: node for node in model.graph.node}
    nodes = [n for n in placement.quantized if _bias_owner(by_name[n.name], index) is not None]
    return _mean_errors(model, nodes, amax, batches) if nodes else {}


def bias_corrected(
    model: onnx.ModelProto, placement: Placement, errors: Mapping[str, AnyArray]
) -> onnx.ModelProto:
    """Return the float model with the biases that its quantized form should have.

    Its float outputs are no longer those of the model: it is only to be quantized with this
    placement. errors: as `mean_errors` gives them; those of nodes that stay float are left out.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index = GraphIndex.of(copy.graph)
    by_name = {node.name: node for node in copy.graph.node}
    for node in placement.quantized:
        owner = _bias_owner(by_name[node.name], index)
        if owner is not None and node.name in errors:
            _subtract(copy.graph, index, owner, errors[node.name])
    drop_unread_initializers(copy.graph)
    return copy


def _bias_owner(node: onnx.NodeProto, index: GraphIndex) -> onnx.NodeProto | None:
    """Return the node with the bias: this one, or the Add of a constant that alone reads it."""
    if node.op_type in {"Conv", "ConvTranspose", "Gemm"}:
        has_own = len(node.input) < 3 or node.input[2] in index.weights
        return node if has_own else None
    readers = index.consumers.get(node.output[0], [])
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    constants = [name for name in readers[0].input if name in index.weights]
    is_vector = len(constants) == 1 and len(index.weights[constants[0]].dims) == 1
    return readers[0] if is_vector else None


def _mean_errors(
    model: onnx.ModelProto,
    nodes: list[QuantizedNode],
    amax: Mapping[str, float],
    batches: Iterable[Feeds],
) -> dict[str, AnyArray]:
    """Return the mean of twin minus node per output channel, by node name."""
    runner = Runner(_with_twins(model, nodes, amax))
    found: dict[str, list[AnyArray]] = {node.name: [] for node in nodes}
    for feeds in batches:
        values = runner.run(feeds)
        for node in nodes:
            found[node.name].append(values[_error_name(node)].reshape(-1))
    # The median of the batches' means: one strange sample must not move a bias.
    return {name: np.median(errors, axis=0) for name, errors in found.items()}


def _error_name(node: QuantizedNode) -> str:
    return f"{node.name}/mean_error"


def _with_twins(
    model: onnx.ModelProto, nodes: list[QuantizedNode], amax: Mapping[str, float]
) -> onnx.ModelProto:
    """Return the model with the mean error of every node as its only outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    index = GraphIndex.of(graph)
    by_name = {node.name: node for node in graph.node}
    opset = next(o.version for o in copy.opset_import if o.domain in {"", "ai.onnx"})
    del graph.output[:]

    def constant(name: str, values: AnyArray) -> str:
        graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    zero = constant("bias_twins/zero", np.zeros((), np.int8))
    for place in nodes:
        node, name = by_name[place.name], place.name
        weight = numpy_helper.to_array(index.weights[place.weight])
        scales = weight_scale(weight, place.channel_axis)
        shape = [1] * weight.ndim
        shape[place.channel_axis] = scales.size
        rounded = int8_from_weight(weight, scales, place.channel_axis) * scales.reshape(shape)
        scale = constant(
            f"{name}/twin_scale", np.array(amax[place.activation] / INT8_MAX, np.float32)
        )
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name, twin.output[0] = f"{name}/twin", f"{name}/twin_output"
        twin.input[0] = f"{name}/twin_input"
        twin.input[1] = constant(f"{name}/twin_weight", rounded.astype(np.float32))
        difference, channels_last = f"{name}/error", f"{name}/error_rows"
        middle = f"{name}/twin_q"
        graph.node.extend(
            (
                helper.make_node("QuantizeLinear", [place.activation, scale, zero], [middle]),
                helper.make_node("DequantizeLinear", [middle, scale, zero], [twin.input[0]]),
                twin,
                helper.make_node("Sub", [twin.output[0], node.output[0]], [difference]),
            )
        )
        if node.op_type in {"Conv", "ConvTranspose"}:
            axes = [axis for axis in range(weight.ndim) if axis != 1]
            source = difference
        else:
            source, axes = channels_last, [0]
            width = scales.size
            rows = constant(f"{name}/twin_rows", np.array([-1, width], np.int64))
            graph.node.append(helper.make_node("Reshape", [difference, rows], [channels_last]))
        if opset < 18:
            mean = helper.make_node(
                "ReduceMean", [source], [_error_name(place)], axes=axes, keepdims=0
            )
        else:
            axes_name = constant(f"{name}/twin_axes", np.array(axes, np.int64))
            mean = helper.make_node(
                "ReduceMean", [source, axes_name], [_error_name(place)], keepdims=0
            )
        graph.node.append(mean)
        graph.output.append(
            helper.make_tensor_value_info(_error_name(place), TensorProto.FLOAT, None)
        )
    return copy


def _subtract(
    graph: onnx.GraphProto, index: GraphIndex, owner: onnx.NodeProto, error: AnyArray
) -> None:
    """Subtract an error from the bias, under a new name: the old one may have other readers."""
    if owner.op_type == "Add":
        position = next(i for i, name in enumerate(owner.input) if name in index.weights)
    else:
        position = 2
    has_bias = len(owner.input) > position
    old = numpy_helper.to_array(index.weights[owner.input[position]]) if has_bias else 0.0
    name = f"{owner.name}/corrected_bias"
    values = np.asarray(old - error, np.float32)
    graph.initializer.append(numpy_helper.from_array(values, name))
    if has_bias:
        owner.input[position] = name
    else:
        owner.input.append(name)
