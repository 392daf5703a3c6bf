"""Questions about an ONNX graph: who makes a tensor, who reads it, what does each node cost."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import onnx

from calibration.errors import GraphError
from calibration.runtime import run_exposing
from edge.spec import Feeds

COMPUTE_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class GraphIndex:
    """Lookup tables over one graph; valid until the graph is changed."""

    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    consumers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> GraphIndex:
        """Return the index of a graph; subgraphs of control flow are not entered."""
        index = cls()
        index.weights.update((tensor.name, tensor) for tensor in graph.initializer)
        for node in graph.node:
            index.producers.update((name, node) for name in node.output if name)
            for name in dict.fromkeys(node.input):
                if name:
                    index.consumers.setdefault(name, []).append(node)
        return index


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which every node has a name of its own and every constant is an initializer.

    The rest of this package takes both for granted.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = [
        n for n in graph.node if n.op_type == "Constant" and n.attribute[0].name == "value"
    ]
    for node in constants:
        graph.initializer.append(node.attribute[0].t)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)
    taken = {node.name for node in graph.node}
    seen = {""}
    for position, node in enumerate(graph.node):
        if node.name in seen:
            names = (f"{node.op_type}_{n}" for n in itertools.count(position))
            node.name = next(name for name in names if name not in taken)
            taken.add(node.name)
        seen.add(node.name)
    return copy


def drop_unread_initializers(graph: onnx.GraphProto) -> None:
    """Remove the initializers that no node, none in a subgraph, and no output reads."""
    read = _names_read(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _names_read(graph: onnx.GraphProto) -> set[str]:
    read = {output.name for output in graph.output}
    for node in graph.node:
        read.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                read |= _names_read(inner)
    return read


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node, or the default of its operator."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def attribute_float(node: onnx.NodeProto, name: str, default: float) -> float:
    """Return a float attribute of a node, or the default of its operator."""
    return next((float(a.f) for a in node.attribute if a.name == name), default)


def compute_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that multiply and accumulate, in graph order."""
    return [node for node in graph.node if node.op_type in COMPUTE_OPS]


def macs_by_node(model: onnx.ModelProto, feeds: Feeds) -> dict[str, int]:
    """Return multiply-accumulates per compute node name, for one run with these feeds.

    Shapes are read off a real run, so dynamic graphs are counted exactly.
    """
    nodes = compute_nodes(model.graph)
    wanted = [name for node in nodes for name in (*node.input[:2], node.output[0])]
    shapes = {name: value.shape for name, value in run_exposing(model, feeds, wanted).items()}
    index = GraphIndex.of(model.graph)
    for name in wanted:
        if name in index.weights:
            shapes[name] = tuple(index.weights[name].dims)
    return {node.name: _macs(node, shapes) for node in nodes}


def int8_nodes(graph: onnx.GraphProto) -> set[str]:
    """Return the names of compute nodes whose two operands both come from DequantizeLinear."""
    index = GraphIndex.of(graph)

    def is_dequantized(name: str) -> bool:
        node = index.producers.get(name)
        return node is not None and node.op_type == "DequantizeLinear"

    nodes = compute_nodes(graph)
    return {node.name for node in nodes if all(is_dequantized(n) for n in node.input[:2])}


def int8_mac_percent(model: onnx.ModelProto, macs: dict[str, int]) -> float:
    """Return the share of multiply-accumulates that a quantized model does in int8, in percent."""
    total = sum(macs.values())
    if total == 0:
        raise GraphError("the graph has no convolution or matrix product to count")
    return 100.0 * sum(macs[name] for name in int8_nodes(model.graph)) / total


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    left, right, out = (shapes[n] for n in (node.input[0], node.input[1], node.output[0]))
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    inner = left[0] if node.op_type == "Gemm" and attribute(node, "transA", 0) else left[-1]
    return math.prod(out) * inner
