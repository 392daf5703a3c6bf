"""Bias correction: take out the mean error that quantization leaves in every output channel.

For channel c of a quantized node, over calibration samples, with all nodes before it corrected:

    b'_c = b_c - E[y_int8_c - y_float_c]

One graph holds both models, and subtracts the mean of the batch where a corrected bias will, so
that one pass gives the errors of all nodes in their order.
Source: Nagel et al. 2019, arXiv 1906.04721, section 4.2 (here with measured means).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.graph import GraphIndex, drop_unread_initializers
from calibration.placement import Placement
from calibration.runtime import Runner
from edge.spec import AnyArray, Feeds

_PREFIX = "int8/"
_MAX_RANK = 6
_AXES_AS_INPUT = 18  # opset of ReduceMean


def mean_errors(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    placement: Placement,
    batches: Iterable[Feeds],
) -> dict[str, AnyArray]:
    """Return E[y_int8 - y_float] per output channel, by node with a place for a bias.

    quantized: one of the int8 forms of the model, with this placement. Empty for a graph with
    control flow.
    """
    index = GraphIndex.of(model.graph)
    by_name = {node.name: node for node in model.graph.node}
    names = [
        node.name
        for node in placement.quantized
        if _bias_owner(by_name[node.name], index) is not None
    ]
    if not names or any(a.HasField("g") for n in model.graph.node for a in n.attribute):
        return {}
    runner = Runner(_pair_of_models(model, quantized, names))
    found: dict[str, list[AnyArray]] = {name: [] for name in names}
    for feeds in batches:
        values = runner.run(feeds)
        for name in names:
            found[name].append(values[_error_name(name)].reshape(-1))
    # The median of the batches' means: one strange sample must not move a bias.
    return {name: np.median(errors, axis=0) for name, errors in found.items()}


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


def _error_name(node: str) -> str:
    return f"{node}/mean_error"


def _pair_of_models(
    model: onnx.ModelProto, quantized: onnx.ModelProto, names: list[str]
) -> onnx.ModelProto:
    """Return one graph of both models whose outputs are the mean errors of the named nodes."""
    pair = onnx.ModelProto()
    pair.CopyFrom(model)
    graph = pair.graph
    del graph.output[:]
    known = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(t for t in quantized.graph.initializer if t.name not in known)
    made = {name for node in quantized.graph.node for name in node.output if name}
    opset = next(o.version for o in pair.opset_import if o.domain in {"", "ai.onnx"})
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    ranks = {n.name: len(weights[n.input[1]].dims) for n in model.graph.node if n.name in names}
    for node in quantized.graph.node:
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name = _PREFIX + node.name
        twin.input[:] = [_PREFIX + name if name in made else name for name in node.input]
        twin.output[:] = [_PREFIX + name if name else name for name in node.output]
        behind: list[onnx.NodeProto] = []
        if node.name in names:
            behind = _correction(graph, twin, node, ranks[node.name], opset)
            graph.output.append(
                helper.make_tensor_value_info(_error_name(node.name), TensorProto.FLOAT, None)
            )
        graph.node.extend([twin, *behind])
    return pair


def _correction(
    graph: onnx.GraphProto, twin: onnx.NodeProto, node: onnx.NodeProto, rank: int, opset: int
) -> list[onnx.NodeProto]:
    """Return the nodes that measure a mean error and take it out of what the twin's readers see."""
    corrected = twin.output[0]
    raw = twin.output[0] = f"{corrected}/raw"
    difference, error = f"{corrected}/error", _error_name(node.name)

    def constant(name: str, values: list[int]) -> str:
        full = f"{corrected}/{name}"
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), full))
        return full

    nodes = [helper.make_node("Sub", [raw, node.output[0]], [difference])]
    if node.op_type in {"Conv", "ConvTranspose"}:
        axes, keep, source = [axis for axis in range(rank) if axis != 1], 1, difference
    else:  # a product keeps its channels in the last axis, whatever the rank
        axes, keep, source = list(range(-_MAX_RANK, -1)), 0, f"{corrected}/deep"
        shape = constant("ones", [1] * _MAX_RANK)
        nodes.append(helper.make_node("Expand", [difference, shape], [source]))
    if opset < _AXES_AS_INPUT:
        nodes.append(helper.make_node("ReduceMean", [source], [error], axes=axes, keepdims=keep))
    else:
        inputs = [source, constant("axes", axes)]
        nodes.append(helper.make_node("ReduceMean", inputs, [error], keepdims=keep))
    return [*nodes, helper.make_node("Sub", [raw, error], [corrected])]


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
