"""Which nodes become int8, and which tensors must therefore be observed.

Quantized: Conv, ConvTranspose, Gemm and MatMul with a constant float weight. Everything else
stays float: softmax, normalisation, activations, products of two activations, layers with too few
channels or rows for int8 kernels, and the head, the last product before the output, where an error
reaches the answer unweakened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx

from calibration.errors import GraphError
from calibration.graph import GraphIndex, attribute, compute_nodes
from edge.errors import UsageError

HEAD = "head"
SMALL = "too few channels for int8 kernels"
GEMV = "a matrix times one row, which int8 kernels are not made for"
FEW_CHANNELS = 16
_IMAGE_CHANNELS = 3  # the first convolution has kernels of its own
_CHANNEL_STEP = 8
# What may stand between the head and the output; with a second input only if it is a constant.
_HEAD_TRANSPARENT = frozenset(
    {
        "Add",
        "ArgMax",
        "Cast",
        "Clip",
        "Div",
        "Flatten",
        "Identity",
        "LogSoftmax",
        "Mul",
        "Reshape",
        "Sigmoid",
        "Softmax",
        "Squeeze",
        "Sub",
        "Tanh",
        "TopK",
        "Transpose",
        "Unsqueeze",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedNode:
    """A node that will run in int8: its activation, its weight, and the weight's channel axis."""

    name: str
    activation: str
    weight: str
    channel_axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipEdge:
    """The operand of a residual Add that does not come out of the convolution before it."""

    add: str
    tensor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The nodes that become int8, and the compute nodes that stay float, each with the reason.

    skips: edges that TensorRT wants in int8 as well, so that the sum before them is written once,
    in int8; else every block of a residual net starts with a pass that only quantizes.
    """

    quantized: tuple[QuantizedNode, ...]
    kept_float: dict[str, str]
    skips: tuple[SkipEdge, ...] = ()

    @property
    def activations(self) -> tuple[str, ...]:
        """The tensors to observe, each once, in graph order."""
        tensors = [node.activation for node in self.quantized]
        return tuple(dict.fromkeys((*tensors, *(skip.tensor for skip in self.skips))))


def place(model: onnx.ModelProto, keep_float: Sequence[str] = ()) -> Placement:
    """Return the placement for a float model whose nodes have unique names.

    keep_float: shell patterns of node names that must stay float.
    Raises UsageError for a pattern that matches no compute node, GraphError if nothing is left or
    the model is quantized already.
    """
    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph.node):
        raise GraphError("the model has Q/DQ nodes already; calibrate the float model instead")
    index = GraphIndex.of(model.graph)
    nodes = compute_nodes(model.graph)
    for pattern in keep_float:
        if not any(fnmatchcase(node.name, pattern) for node in nodes):
            names = ", ".join(node.name for node in nodes[:5])
            raise UsageError(f"--keep-float {pattern!r} matches no node; nodes: {names}, ...")
    heads, rows = _heads(model.graph, index), _rows(model)
    quantized, kept = [], {}
    for node in nodes:
        candidate = _candidate(node, index)
        if candidate is None:
            kept[node.name] = _float_reason(node, index)
        elif node.name in heads:
            kept[node.name] = HEAD
        elif has_few_channels(node, tuple(index.weights[node.input[1]].dims)):
            kept[node.name] = SMALL
        elif _reads_one_row(node, rows):
            kept[node.name] = GEMV
        elif any(fnmatchcase(node.name, pattern) for pattern in keep_float):
            kept[node.name] = "asked for"
        else:
            quantized.append(candidate)
    if not quantized:
        raise GraphError("no Conv, Gemm or MatMul with constant weights is left to quantize")
    skips = skip_edges(model.graph, {node.name for node in quantized})
    return Placement(quantized=tuple(quantized), kept_float=kept, skips=skips)


def without(
    placement: Placement, names: Sequence[str], reason: str, graph: onnx.GraphProto
) -> Placement:
    """Return the placement with some nodes back in float; no tensor is quantized that was not."""
    quantized = tuple(n for n in placement.quantized if n.name not in names)
    edges = skip_edges(graph, {node.name for node in quantized})
    known = set(placement.activations)
    return Placement(
        quantized=quantized,
        kept_float={**placement.kept_float, **dict.fromkeys(names, reason)},
        skips=tuple(edge for edge in edges if edge.tensor in known),
    )


def skip_edges(graph: onnx.GraphProto, quantized: set[str]) -> tuple[SkipEdge, ...]:
    """Return one operand of every Add whose other operand is a quantized Conv of its own.

    Between two convolutions the skip is the one with fewer quantized nodes behind it.
    """
    index = GraphIndex.of(graph)
    depth: dict[str, int] = {}
    skips = []
    for node in graph.node:
        behind = max((depth.get(name, 0) for name in node.input), default=0)
        for name in node.output:
            depth[name] = behind + (node.name in quantized)
        if node.op_type != "Add" or any(name in index.weights for name in node.input):
            continue
        fused = [name for name in node.input if _is_fused(name, index, quantized)]
        if not fused:
            continue
        branch = max(fused, key=lambda name: depth[name])
        others = [name for name in node.input if name != branch]
        skips += [SkipEdge(add=node.name, tensor=name) for name in others]
    return tuple(skips)


def shared_ranges(graph: onnx.GraphProto, tensors: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return groups of the tensors that must have one range, because a Concat joins them.

    TensorRT quantizes the inputs of a Concat instead of its output; with another scale at an
    input that others read too, it would write that tensor twice.
    """
    wanted = set(tensors)
    group_of: dict[str, set[str]] = {}
    for node in graph.node:
        if node.op_type != "Concat":
            continue
        joined = {name for name in (*node.input, *node.output) if name in wanted}
        joined.update(*(group_of[name] for name in joined if name in group_of))
        group_of.update(dict.fromkeys(joined, joined))
    groups = {id(group): group for group in group_of.values() if len(group) > 1}
    return tuple(tuple(sorted(group)) for group in groups.values())


def _is_fused(tensor: str, index: GraphIndex, quantized: set[str]) -> bool:
    """Whether a tensor is the output of a quantized Conv that nothing but one Add reads."""
    node = index.producers.get(tensor)
    is_conv = node is not None and node.op_type == "Conv" and node.name in quantized
    return is_conv and len(index.consumers[tensor]) == 1


def _candidate(node: onnx.NodeProto, index: GraphIndex) -> QuantizedNode | None:
    weight = index.weights.get(node.input[1])
    if (
        node.input[0] in index.weights
        or weight is None
        or weight.data_type != onnx.TensorProto.FLOAT
    ):
        return None
    if node.op_type == "Conv":
        axis = 0
    elif node.op_type == "ConvTranspose":
        axis = 1
    elif node.op_type == "Gemm":
        if attribute(node, "transA", 0):
            return None
        axis = 0 if attribute(node, "transB", 0) else 1
    elif len(weight.dims) == 2:
        axis = 1
    else:
        return None
    return QuantizedNode(
        name=node.name, activation=node.input[0], weight=node.input[1], channel_axis=axis
    )


def has_few_channels(node: onnx.NodeProto, dims: tuple[int, ...]) -> bool:
    """Whether int8 would be slower: tensor cores work on 16 and more channels at a time.

    dims: of the weight. A square Conv on a multiple of 8 has kernels too, and so has one that
    reads an image.
    """
    if node.op_type in {"MatMul", "Gemm"}:
        return bool(min(dims) < FEW_CHANNELS)
    if attribute(node, "group", 1) > 1:
        return False
    is_square = len(set(dims[2:])) == 1

    def is_few(channels: int) -> bool:
        fits = channels % _CHANNEL_STEP == 0 and is_square
        return channels < FEW_CHANNELS and not fits

    read, written = (dims[0], dims[1]) if node.op_type == "ConvTranspose" else (dims[1], dims[0])
    return is_few(written) or (read > _IMAGE_CHANNELS and is_few(read))


def _rows(model: onnx.ModelProto) -> dict[str, int]:
    """Return the size of the last axis but one, by tensor, where the graph alone tells it."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError):  # above 2 GB
        graph = model.graph
    known = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in known}
    return {name: dims[-2].dim_value for name, dims in shapes.items() if len(dims) > 1}


def _reads_one_row(node: onnx.NodeProto, rows: dict[str, int]) -> bool:
    """Whether a product has one row in every request: a batch that may grow does not count."""
    return node.op_type in {"MatMul", "Gemm"} and rows.get(node.input[0]) == 1


def _float_reason(node: onnx.NodeProto, index: GraphIndex) -> str:
    if not any(name in index.weights for name in node.input[:2]):
        return "product of two activations"
    return "weight in a form that is not quantized"


def _heads(graph: onnx.GraphProto, index: GraphIndex) -> set[str]:
    heads: set[str] = set()
    for output in graph.output:
        node = index.producers.get(output.name)
        while node is not None and node.op_type in _HEAD_TRANSPARENT:
            inputs = [name for name in node.input if name and name not in index.weights]
            node = index.producers.get(inputs[0]) if len(inputs) == 1 else None
        if node is not None and node.op_type in {"Gemm", "MatMul", "Conv"}:
            heads.add(node.name)
    return heads
